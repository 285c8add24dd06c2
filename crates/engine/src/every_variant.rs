//! For tests of texts: a list with a value of each variant of an enum.

/// A list of values, each with the name of its variant. The `match` names all variants, so an enum with a new variant does
/// not compile here until the list has a value of it. The assertion holds each value to the name before it.
macro_rules! every_variant {
    ($enum:ident { $($variant:ident: [$($value:expr),+ $(,)?]),+ $(,)? }) => {{
        let variant_of = |value: &$enum| match value {
            $($enum::$variant { .. } => concat!(stringify!($enum), "::", stringify!($variant)),)+
        };
        let named = [$((concat!(stringify!($enum), "::", stringify!($variant)), vec![$($value),+])),+];
        let values = named.into_iter().flat_map(|(name, values)| values.into_iter().map(move |value| (name, value)));
        values.inspect(|(name, value)| assert_eq!(variant_of(value), *name)).collect::<Vec<_>>()
    }};
}

pub(crate) use every_variant;

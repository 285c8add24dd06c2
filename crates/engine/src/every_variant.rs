//! For tests of texts: lists with a value of each variant of an enum, and errors as users read them.

use std::error::Error;

/// A list of values, each with the name of its variant. The `match` names all variants, so an enum with a new variant
/// does not compile here until the list has a value of it. The assertion holds each value to the name before it.
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

/// Each error with its chain of sources. `about` adds what else belongs to it, such as its kind or its hint.
pub(crate) fn chains<E: Error>(errors: &[(&str, E)], about: impl Fn(&E) -> Vec<String>) -> String {
    let mut lines = Vec::new();
    for (name, error) in errors {
        lines.push((*name).to_owned());
        lines.extend(chain_of(error).into_iter().map(|text| format!("  {text}")));
        lines.extend(about(error).into_iter().map(|text| format!("  ({text})")));
    }
    lines.join("\n")
}

/// The text of an error, then that of each of its sources.
pub(crate) fn chain_of(error: &dyn Error) -> Vec<String> {
    std::iter::successors(Some(error), |&error| error.source()).map(ToString::to_string).collect()
}

//! Names in hex digits: what they are made of, and the type of each kind of them.

/// Digits that no other name has.
pub(crate) fn random_hex<const BYTES: usize>() -> String {
    let mut bytes = [0; BYTES];
    // The kernel fills small requests whole once it has booted.
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .expect("getrandom has no way to fail for some bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a text is that many hex digits, in the one way in which they are written.
pub(crate) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A name of so many hex digits, and the error of a text that is none. It comes from outside as text, and is one only if it
/// is harmless as a file's name.
macro_rules! hex_id {
    (
        $(#[$about:meta])* $vis:vis $id:ident of $digits:ident digits,
        $(#[$about_error:meta])* $error:ident: $what:literal
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        $vis struct $id(String);

        $(#[$about_error])*
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        #[error("`{0}` is no {what}: {digits} digits of `[0-9a-f]`", what = $what, digits = $digits)]
        $vis struct $error(String);

        impl $id {
            /// As text, as it stands in paths.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $id {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                if crate::hex_id::is_hex(text, $digits) { Ok(Self(text.into())) } else { Err($error(text.into())) }
            }
        }

        impl TryFrom<String> for $id {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$id> for String {
            fn from(id: $id) -> Self {
                id.0
            }
        }

        impl std::fmt::Display for $id {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

pub(crate) use hex_id;

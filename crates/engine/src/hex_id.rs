//! Ids of hex digits: their random digits, and a macro that defines a type of ids.

/// Random hex digits, two for each byte.
pub(crate) fn random_hex<const BYTES: usize>() -> String {
    let mut bytes = [0; BYTES];
    // Once the kernel has booted, a small request is always filled whole.
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .expect("getrandom can't fail for a few bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a text has exactly that many lower case hex digits.
pub(crate) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Defines an id of hex digits, and the error for other texts. Ids are parsed from text of users and files, and each
/// parsed id is harmless as a file name.
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
        #[error("`{0}` is not a {what}: it must be {digits} digits of `[0-9a-f]`", what = $what, digits = $digits)]
        $vis struct $error(String);

        impl $id {
            /// The text, as it appears in paths.
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

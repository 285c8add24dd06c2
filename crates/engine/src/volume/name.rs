//! Names of volumes: a user's text in, a name of a directory out.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::files::PARTIAL_SUFFIX;

/// Longest name of a volume.
const NAME_BYTES_MAX: usize = 64;

/// The name of a volume: a letter or a digit, then letters, digits, `_`, `.` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

/// Text that is not the name of a volume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a name of a volume: a letter or digit, then up to {more} letters, digits, `_`, `.` and `-`, and not \
     `{PARTIAL_SUFFIX}` at the end",
    more = NAME_BYTES_MAX - 1
)]
pub struct NoVolumeName(String);

impl VolumeName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = NoVolumeName;

    fn from_str(text: &str) -> Result<Self, NoVolumeName> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let good = (1..=NAME_BYTES_MAX).contains(&text.len())
            && text.bytes().all(allowed)
            && text.as_bytes()[0].is_ascii_alphanumeric()
            && !text.ends_with(PARTIAL_SUFFIX);
        if good { Ok(Self(text.to_owned())) } else { Err(NoVolumeName(text.chars().take(NAME_BYTES_MAX).collect())) }
    }
}

impl TryFrom<String> for VolumeName {
    type Error = NoVolumeName;

    fn try_from(text: String) -> Result<Self, NoVolumeName> {
        text.parse()
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> Self {
        name.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_in_its_directory_and_is_not_one_of_an_unfinished_volume() {
        for good in ["a", "data", "db_1.x-y", &"x".repeat(64)] {
            assert_eq!(good.parse::<VolumeName>().map(String::from).as_deref(), Ok(good));
        }
        for bad in ["", ".", "..", "a/b", "/a", "-a", ".a", "_a", "a b", "a\0", "ä", "a-0.partial", &"x".repeat(65)] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?}");
        }
    }
}

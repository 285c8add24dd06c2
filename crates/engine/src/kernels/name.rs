//! Names of kernels, and the files that hold them: `debian:6.12` is in `names/debian%3A6.12`.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// Longest name.
const NAME_BYTES_MAX: usize = 64;

/// The name of a kernel: `debian:6.12`, `6.1.0-48-cloud-amd64`, `debug`. Its parts are separated by `:`; each has
/// letters, digits, `.`, `_`, `+`, `~` and `-`, and starts with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct KernelName(String);

/// A text is not a name of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a kernel's name must be 1 to {NAME_BYTES_MAX} letters, digits, `.`, `_`, `+`, `~` or `-`, in parts that `:` \
     separates, not `{}`", .name.escape_debug()
)]
pub struct BadKernelName {
    /// The text.
    pub name: String,
}

impl KernelName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `asked` is the last part of the name: `6.12` of `debian:6.12`.
    pub(super) fn ends_with_part(&self, asked: &str) -> bool {
        self.0.rsplit_once(':').is_some_and(|(_, last)| last == asked)
    }

    /// The name of the file that holds it.
    pub(super) fn file_name(&self) -> String {
        self.0.replace(':', "%3A")
    }

    /// The name that a file holds; `None` for other files.
    pub(super) fn of_file(file: &str) -> Option<Self> {
        let name: Self = file.replace("%3A", ":").parse().ok()?;
        (name.file_name() == file).then_some(name)
    }
}

impl FromStr for KernelName {
    type Err = BadKernelName;

    fn from_str(text: &str) -> Result<Self, BadKernelName> {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._+~-".contains(&byte);
        let part = |part: &str| part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.bytes().all(letter);
        let good = text.len() <= NAME_BYTES_MAX && text.split(':').all(part);
        if good { Ok(Self(text.to_owned())) } else { Err(BadKernelName { name: text.to_owned() }) }
    }
}

impl fmt::Display for KernelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_back_from_its_file() {
        for text in ["debian:6.12", "6.12.95+deb12-cloud-amd64", "debug", "a:b:c"] {
            let name: KernelName = text.parse().expect("a name");
            assert!(!name.file_name().contains(['/', ':']));
            assert_eq!(KernelName::of_file(&name.file_name()), Some(name));
        }
        assert_eq!(KernelName::of_file("debian:6.12"), None);
    }

    #[test]
    fn texts_that_could_leave_the_folder_or_hide_in_it_are_refused() {
        for text in ["", ".", "..", "a/b", "a:", ":a", "-a", "a b", "a\n", "a%3Ab", "\u{e4}", &"x".repeat(65)] {
            assert!(text.parse::<KernelName>().is_err(), "{text}");
        }
        insta::assert_snapshot!("a b\u{1b}".parse::<KernelName>().expect_err("refused"));
    }

    #[test]
    fn the_last_part_of_a_name_stands_for_it() {
        let name: KernelName = "debian:6.12".parse().expect("a name");
        assert!(name.ends_with_part("6.12"));
        assert!(!name.ends_with_part("12") && !name.ends_with_part("6.1") && !name.ends_with_part("debian:6.12"));
    }
}

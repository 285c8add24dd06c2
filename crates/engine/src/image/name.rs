//! Names of images, and the files that hold them.
//!
//! ```text
//!   docker.io/library/python:latest ──▶ python ──▶ names/python
//!   registry.example:5000/team/app:1 ────────────▶ names/registry.example%3A5000%2Fteam%2Fapp%3A1
//! ```
//! An image that was pulled has the name by which a registry knows it, in docker's short form, so that both forms find
//! the same image.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// Longest name. Each of its letters may take three in a file's name, which has at most 255.
pub(crate) const NAME_BYTES_MAX: usize = 200;
/// Longest name of a file, for names with many escapes.
const FILE_BYTES_MAX: usize = 255;
/// The registry and the namespace that docker leaves out.
const DEFAULT_PREFIXES: [&str; 2] = ["docker.io/library/", "docker.io/"];
/// The tag that docker leaves out.
const DEFAULT_TAG: &str = ":latest";

/// The name of an image: `mini`, `python:3.12`, `registry.example:5000/team/app:1`. Parts are separated by `/` and `:`;
/// each has letters, digits, `.`, `_` and `-`, and starts with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ImageName(String);

/// A text is not a name of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "an image's name must be 1 to {NAME_BYTES_MAX} letters, digits, `.`, `_` or `-`, in parts that `/` or `:` separate, \
     not `{}`", .name.escape_debug()
)]
pub struct BadName {
    /// The text.
    pub name: String,
}

impl ImageName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the file that holds it.
    pub(super) fn file_name(&self) -> String {
        self.0.replace(':', "%3A").replace('/', "%2F")
    }

    /// The name that a file holds; `None` for other files.
    pub(super) fn of_file(file: &str) -> Option<Self> {
        let name: Self = file.replace("%3A", ":").replace("%2F", "/").parse().ok()?;
        (name.file_name() == file).then_some(name)
    }
}

impl FromStr for ImageName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let short = DEFAULT_PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
        let short = short.strip_suffix(DEFAULT_TAG).unwrap_or(short);
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let part = |part: &str| part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.bytes().all(letter);
        let name = Self(short.to_owned());
        let fits = short.len() <= NAME_BYTES_MAX && name.file_name().len() <= FILE_BYTES_MAX;
        if fits && short.split(['/', ':']).all(part) { Ok(name) } else { Err(BadName { name: text.to_owned() }) }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_long_and_the_short_form_are_one_name() {
        for (text, name) in [
            ("mini", "mini"),
            ("python", "python"),
            ("python:latest", "python"),
            ("docker.io/library/python", "python"),
            ("docker.io/library/python:3.12", "python:3.12"),
            ("docker.io/team/app:latest", "team/app"),
            ("registry.example:5000/team/app:1", "registry.example:5000/team/app:1"),
        ] {
            assert_eq!(text.parse::<ImageName>().expect("a name").as_str(), name, "{text}");
        }
    }

    #[test]
    fn a_name_is_read_back_from_its_file() {
        for text in ["mini", "python:3.12", "registry.example:5000/team/app:1", "a%b"] {
            let Ok(name) = text.parse::<ImageName>() else { continue };
            assert!(!name.file_name().contains('/'));
            assert_eq!(ImageName::of_file(&name.file_name()), Some(name));
        }
        for file in ["python:3.12", "a%2f", "docker.io%2Flibrary%2Fpython", ".partial", "%2F", ""] {
            assert_eq!(ImageName::of_file(file), None, "{file}");
        }
    }

    #[test]
    fn texts_that_could_leave_the_folder_or_hide_in_it_are_refused() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        let escapes = "a:".repeat(90);
        for text in
            ["", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "-a", "a/.b", "a b", "a\nb", "ä", &long, &escapes]
        {
            assert!(text.parse::<ImageName>().is_err(), "{text}");
        }
        insta::assert_snapshot!("a b\u{1b}".parse::<ImageName>().expect_err("refused"));
    }
}

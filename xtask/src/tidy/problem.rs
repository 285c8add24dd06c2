//! One broken rule and its place.

use std::fmt;
use std::path::{Path, PathBuf};

/// Sorts by file, then line.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    path: PathBuf,
    line: usize,
    text: String,
}

impl Problem {
    /// Lines count from 1.
    pub fn new(path: &Path, line: usize, text: impl Into<String>) -> Self {
        Self { path: path.to_path_buf(), line, text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.text)
    }
}

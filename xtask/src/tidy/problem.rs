//! One broken rule and where.

use std::fmt;
use std::path::{Path, PathBuf};

/// Sorts by file, then line.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    path: PathBuf,
    line: usize,
    words: String,
}

impl Problem {
    /// Lines count from 1.
    pub fn new(path: &Path, line: usize, words: impl Into<String>) -> Self {
        Self { path: path.to_path_buf(), line, words: words.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.words)
    }
}

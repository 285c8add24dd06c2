//! Errors at the edge: an exit code, the chain of causes, and what the user can do about it.

use owo_colors::OwoColorize as _;

use serde::Serialize;

use crate::output::{plain, print_json, say};

/// The command line is wrong.
pub const USAGE: u8 = 2;
/// This host lacks something.
pub const HOST: u8 = 69;
/// Time is up, in `run`.
pub const TIMED_OUT: u8 = 124;
/// The VM could not run the command to its end, in `run`.
pub const VM: u8 = 125;
/// SIGINT.
pub const INTERRUPTED: u8 = 130;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    error: anyhow::Error,
    hint: Option<String>,
}

impl Failure {
    /// A failure with its exit code.
    pub fn new(code: u8, error: impl Into<anyhow::Error>) -> Self {
        Self { code, error: error.into(), hint: None }
    }

    /// Only words.
    pub fn words(code: u8, words: impl Into<String>) -> Self {
        Self::new(code, anyhow::Error::msg(words.into()))
    }

    /// Adds what the user can do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what the user can do, where there is something.
    pub fn maybe_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint.or(self.hint);
        self
    }

    /// Says what to do where a directory of Kiln's is not this user's.
    pub fn hint_where_not_writable(self) -> Self {
        use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        let kind = |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref().map(std::io::Error::kind);
        match self.error.chain().find_map(kind) {
            Some(PermissionDenied | ReadOnlyFilesystem) => {
                self.hint("set KILN_HOME to a directory that you may write to; kiln doctor says more")
            }
            _ => self,
        }
    }

    /// The chain in one line, for JSON.
    pub fn message(&self) -> String {
        format!("{:#}", self.error)
    }

    /// What the user can do.
    pub fn hint_words(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Prints one object: the code, the chain in one line and the hint. `kiln run` has these fields among others.
    pub fn print_json(&self) {
        let report = FailureReport { exit_code: self.code, error: self.message(), hint: self.hint_words() };
        if let Err(error) = print_json(&report) {
            say(format_args!("{} {}", "kiln:".red().bold(), plain(&format!("{error:#}"))));
        }
    }

    /// Prints the chain and the hint, once.
    pub fn print(&self) {
        say(format_args!("{} {}", "kiln:".red().bold(), plain(&self.message())));
        if let Some(hint) = &self.hint {
            say(format_args!("{} {}", "hint:".cyan(), plain(hint)));
        }
    }
}

/// A failure for programs.
#[derive(Debug, Serialize)]
struct FailureReport<'a> {
    exit_code: u8,
    error: String,
    hint: Option<&'a str>,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(1, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_the_users_comes_with_a_hint() {
        let failure = |kind| Failure::new(HOST, anyhow::Error::new(std::io::Error::from(kind)).context("no image"));
        assert!(failure(std::io::ErrorKind::PermissionDenied).hint_where_not_writable().hint.is_some());
        assert!(failure(std::io::ErrorKind::NotFound).hint_where_not_writable().hint.is_none());
    }
}

//! A command's failure: an exit code, the chain of causes, and a hint for the user.

use owo_colors::OwoColorize as _;

use serde::Serialize;

use crate::output::{plain, print_json, say};

/// Exit code: the command line is wrong.
pub const USAGE: u8 = 2;
/// Exit code: this host lacks something.
pub const HOST: u8 = 69;
/// Exit code of `run`: timed out.
pub const TIMED_OUT: u8 = 124;
/// Exit code of `run`: the VM failed before the command ended.
pub const VM: u8 = 125;
/// Exit code: interrupted by SIGINT.
pub const INTERRUPTED: u8 = 130;

/// Why a command failed.
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

    /// A failure without a source, from its text.
    pub fn words(code: u8, words: impl Into<String>) -> Self {
        Self::new(code, anyhow::Error::msg(words.into()))
    }

    /// Adds a hint: what the user can do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Replaces the hint, if there is a new one.
    pub fn maybe_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint.or(self.hint);
        self
    }

    /// Adds a hint if this user may not write to a directory of Kiln's.
    pub fn hint_if_not_writable(self) -> Self {
        use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        let kind = |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref().map(std::io::Error::kind);
        match self.error.chain().find_map(kind) {
            Some(PermissionDenied | ReadOnlyFilesystem) => {
                self.hint("set KILN_HOME to a directory that you can write to; kiln doctor shows details")
            }
            _ => self,
        }
    }

    /// The chain in one line, for JSON.
    pub fn message(&self) -> String {
        format!("{:#}", self.error)
    }

    /// The hint.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Prints one JSON object: the code, the chain in one line and the hint. `kiln run --json` has these fields and
    /// more.
    pub fn print_json(&self) {
        let report = FailureReport { exit_code: self.code, error: self.message(), hint: self.hint_text() };
        if let Err(error) = print_json(&report) {
            say(format_args!("{} {}", "kiln:".red().bold(), plain(&format!("{error:#}"))));
        }
    }

    /// Prints the chain and the hint on stderr.
    pub fn print(&self) {
        say(format_args!("{} {}", "kiln:".red().bold(), plain(&self.message())));
        if let Some(hint) = &self.hint {
            say(format_args!("{} {}", "hint:".cyan(), plain(hint)));
        }
    }
}

/// A failure as `--json` prints it.
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
    fn a_directory_that_is_not_writable_gets_a_hint() {
        let failure = |kind| Failure::new(HOST, anyhow::Error::new(std::io::Error::from(kind)).context("no image"));
        assert!(failure(std::io::ErrorKind::PermissionDenied).hint_if_not_writable().hint.is_some());
        assert!(failure(std::io::ErrorKind::NotFound).hint_if_not_writable().hint.is_none());
    }

    #[test]
    fn a_failure_in_json_has_these_fields() {
        let failures = [Failure::words(USAGE, "the name is empty"), Failure::words(HOST, "no QEMU").hint("install it")];
        let lines = failures.each_ref().map(|failure| {
            let report = FailureReport { exit_code: failure.code, error: failure.message(), hint: failure.hint_text() };
            serde_json::to_string(&report).expect("plain data")
        });
        insta::assert_snapshot!(lines.join("\n"));
    }
}

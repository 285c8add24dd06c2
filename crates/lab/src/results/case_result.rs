//! The result of one case of a suite.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Cases of one suite. Later ones are counted and dropped, and the suite has a problem.
pub const CASES_MAX: usize = 100_000;
/// Bytes kept of a name.
pub const NAME_BYTES_MAX: usize = 512;
/// Bytes kept of a message.
pub const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// Bytes of all names and messages of a suite. Later messages are dropped, then later cases, and the suite has a problem.
pub const TEXT_BYTES_MAX: usize = 32 << 20;

/// How a case of a suite ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It passed.
    Pass,
    /// It failed.
    Fail,
    /// It was not run. The message is the reason.
    Skip,
}

/// The result of one case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseResult {
    /// Its name in the suite. Names of nested cases are joined by ` > `.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What the suite printed about it: a reason, a diagnostic.
    pub message: String,
    /// Its time, if the suite measured it.
    pub duration: Option<Duration>,
}

impl CaseResult {
    pub(super) fn new(name: &str, outcome: Outcome) -> Self {
        Self { name: cut(name, NAME_BYTES_MAX).to_owned(), outcome, message: String::new(), duration: None }
    }

    /// Adds a line to the message, as far as there is room.
    pub(super) fn add_message(&mut self, line: &str) {
        let separator = usize::from(!self.message.is_empty());
        let room = MESSAGE_BYTES_MAX.saturating_sub(self.message.len() + separator);
        if room > 0 {
            self.message.push_str(&"\n"[..separator]);
            self.message.push_str(cut(line, room));
        }
    }

    /// Becomes a case of another one.
    pub(super) fn below(mut self, parent: &str) -> Self {
        self.name = cut(&format!("{parent} > {}", self.name), NAME_BYTES_MAX).to_owned();
        self
    }
}

/// The start of a text, at most this long.
pub(super) fn cut(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

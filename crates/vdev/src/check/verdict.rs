//! The result of a case: its level and its verdict.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use super::trace::Trace;

/// How binding a rule is, by the specification's own words. What crashes, hangs or grows a peer is
/// a [`Must`](Self::Must).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The specification has "must", or data is lost if the rule is broken.
    Must,
    /// The specification recommends it, or frontends in use rely on it.
    Should,
    /// Good to know.
    May,
}

impl Level {
    /// `must`, `should` or `may`.
    const fn name(self) -> &'static str {
        match self {
            Self::Must => "must",
            Self::Should => "should",
            Self::May => "may",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no level's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a level: `must`, `should` or `may`")]
pub struct UnknownLevel(pub String);

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(name: &str) -> Result<Self, UnknownLevel> {
        let levels = [Self::Must, Self::Should, Self::May];
        let found = levels.into_iter().find(|level| level.name() == name);
        found.ok_or_else(|| UnknownLevel(name.to_owned()))
    }
}

/// What came of a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", content = "because", rename_all = "lowercase")]
pub enum Verdict {
    /// The rule holds.
    Pass,
    /// The rule is broken.
    Fail(String),
    /// The rule does not apply, and why.
    Skip(String),
    /// The peer's process ended: how.
    Crash(String),
    /// The peer stopped answering: at what.
    Hang(String),
}

impl Verdict {
    /// `pass`, `fail`, `skip`, `crash` or `hang`.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail(_) => "fail",
            Self::Skip(_) => "skip",
            Self::Crash(_) => "crash",
            Self::Hang(_) => "hang",
        }
    }

    /// Every name that a verdict has.
    pub(super) const NAMES: [&str; 5] = ["pass", "fail", "skip", "crash", "hang"];

    /// What it has beyond its name.
    pub fn because(&self) -> Option<&str> {
        match self {
            Self::Pass => None,
            Self::Fail(because) | Self::Skip(because) | Self::Crash(because) | Self::Hang(because) => Some(because),
        }
    }

    /// Whether the rule is broken, in whatever way.
    pub const fn is_failure(&self) -> bool {
        matches!(self, Self::Fail(_) | Self::Crash(_) | Self::Hang(_))
    }
}

/// What a process held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Its open descriptors.
    pub descriptors: u64,
    /// Its threads.
    pub threads: u64,
    /// Its mappings.
    pub mappings: u64,
    /// Its resident memory.
    pub resident_kib: u64,
}

/// How a case stands against the file of expected failures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "expectation", content = "expected_because", rename_all = "kebab-case")]
pub enum Expectation {
    /// The file does not name it.
    None,
    /// It fails as expected, and what that means.
    Failure(String),
    /// It is expected to fail, and it passes now.
    PassesNow(String),
    /// It may fail, and it passes.
    MayFail(String),
    /// It is expected to fail, and it was skipped.
    NotRun(String),
}

/// The result of one case, with its messages.
#[derive(Debug, Clone, Serialize)]
pub struct CaseReport {
    /// Group and name: `features.never-offered-bit`.
    pub id: &'static str,
    /// How binding the rule is.
    pub level: Level,
    /// The specification's heading that it stands under.
    pub section: &'static str,
    /// Why it matters, in a line.
    pub reason: &'static str,
    /// What came of it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// How it stands against the file of expected failures.
    #[serde(flatten)]
    pub expectation: Expectation,
    /// What was sent and received.
    pub trace: Trace,
    /// How long it took.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub duration: Duration,
    /// What the peer's process held before and after, if that can be inspected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<[Resources; 2]>,
    /// The last that the peer wrote to its standard error.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stderr: Vec<String>,
    /// What else was seen that is no part of the verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// If it was run more than once and came out in more than one way: how often in which. `verdict` is the worst.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flaky: Option<BTreeMap<&'static str, usize>>,
}

impl CaseReport {
    /// The part of the id before the dot.
    pub(super) fn group(&self) -> &'static str {
        self.id.split_once('.').map_or(self.id, |(group, _)| group)
    }

    /// Whether the rule is broken and the file of expected failures does not have it.
    pub const fn is_unexpected_failure(&self) -> bool {
        self.verdict.is_failure() && !matches!(self.expectation, Expectation::Failure(_))
    }
}

/// A duration as a number of seconds.
pub(super) fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((duration.as_secs_f64() * 1e6).round() / 1e6)
}

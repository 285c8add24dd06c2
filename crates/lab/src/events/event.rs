//! What can happen in a run.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use kiln_detect::Finding;
use serde::{Deserialize, Serialize};

use crate::plan::SuiteKind;
use crate::{Cell, Verdict};

/// A run of a plan: its start in UTC and random digits, such as `20261130-221500-3fa9c1`. Ids sort by time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

impl RunId {
    /// The id of a run that starts at this time, in seconds since 1970.
    pub fn new(unix_seconds: u64, random: u32) -> Self {
        let time = humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_secs(unix_seconds));
        let digits: String = time.to_string().chars().filter(char::is_ascii_digit).collect();
        let (day, second) = digits.split_at(8);
        Self(format!("{day}-{second}-{:06x}", random & 0xff_ffff))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text is not an id of a run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the id of a run, such as 20261130-221500-3fa9c1")]
pub struct BadRunId(String);

impl FromStr for RunId {
    type Err = BadRunId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<_> = text.split('-').collect();
        let digits = |part: &str, length: usize, hex: bool| {
            part.len() == length
                && part
                    .chars()
                    .all(|digit| if hex { matches!(digit, '0'..='9' | 'a'..='f') } else { digit.is_ascii_digit() })
        };
        match parts[..] {
            [day, second, random] if digits(day, 8, false) && digits(second, 6, false) && digits(random, 6, true) => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(BadRunId(text.chars().take(80).collect())),
        }
    }
}

impl TryFrom<String> for RunId {
    type Error = BadRunId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RunId> for String {
    fn from(id: RunId) -> Self {
        id.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a run is of, and where it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunHead {
    /// Its id.
    pub run: RunId,
    /// Name of the plan.
    pub plan: String,
    /// Digest of the plan's text, so that a resumed run has the same plan.
    pub plan_digest: String,
    /// The level that was asked for.
    pub level: u8,
    /// Seconds since 1970.
    pub started_unix: u64,
    /// Version of Kiln.
    pub kiln: String,
    /// Facts of the host, by name: CPU, kernel, QEMU, acceleration.
    pub host: BTreeMap<String, String>,
    /// Baselines belong to a class of hosts: results of different classes are not compared.
    pub host_class: String,
    /// Its cells, in their order.
    pub cells: Vec<Cell>,
    /// Suites of each cell, in their order.
    pub suites: Vec<(String, SuiteKind)>,
    /// Attempts that are due if no case fails.
    pub attempts_planned: u64,
    /// A case that fails first and passes then fails the run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub flaky_fails: bool,
}

/// A case: a suite in a cell, and the name that the suite gave it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CaseKey {
    /// The cell.
    pub cell: Cell,
    /// Name of the suite.
    pub suite: String,
    /// Its name in the suite. Empty for the only case of a command.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub case: String,
}

impl fmt::Display for CaseKey {
    /// `suite: case [cell]`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.suite)?;
        if !self.case.is_empty() {
            write!(f, ": {}", self.case)?;
        }
        if !self.cell.values().is_empty() {
            write!(f, " [{}]", self.cell)?;
        }
        Ok(())
    }
}

/// The verdict of one case in one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseVerdict {
    /// Its name in the suite. Empty for the only case of a command.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub case: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Its time, if it was measured.
    #[serde(rename = "duration_ms", default, skip_serializing_if = "Option::is_none", with = "optional_millis")]
    pub duration: Option<Duration>,
}

/// One attempt of a suite in a cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// The cell.
    pub cell: Cell,
    /// Name of the suite.
    pub suite: String,
    /// From 1.
    pub number: u32,
    /// Verdicts of its cases. A crash or a timeout is the verdict of the suite, whose case has no name.
    pub verdicts: Vec<CaseVerdict>,
    /// What the kernel reported meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// From the fork to the end of the command.
    #[serde(rename = "duration_ms", with = "millis")]
    pub duration: Duration,
    /// The share of it that the fork took.
    #[serde(rename = "fork_ms", with = "millis")]
    pub fork: Duration,
    /// Directory of its files, relative to that of the run. Absent if nothing of it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<String>,
    /// Its failures are reported and don't count. The text is the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<String>,
}

/// One thing that happened in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The first event.
    RunStarted(Box<RunHead>),
    /// The run continues after it was interrupted.
    RunResumed {
        /// Seconds since 1970.
        at_unix: u64,
    },
    /// A cell is saved, and can be forked.
    CellReady {
        /// The cell.
        cell: Cell,
        /// The snapshot.
        snapshot: String,
        /// Time for the boot and the preparation.
        #[serde(rename = "duration_ms", with = "millis")]
        duration: Duration,
    },
    /// A cell can't be prepared, so none of its cases can run.
    CellFailed {
        /// The cell.
        cell: Cell,
        /// Why.
        message: String,
        /// What the kernel reported meanwhile.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        findings: Vec<Finding>,
    },
    /// An attempt has begun.
    AttemptStarted {
        /// The cell.
        cell: Cell,
        /// Name of the suite.
        suite: String,
        /// From 1.
        number: u32,
    },
    /// An attempt has ended.
    AttemptEnded(Box<Attempt>),
    /// A number that a suite printed.
    Metric {
        /// The cell.
        cell: Cell,
        /// Name of the suite.
        suite: String,
        /// Its name.
        name: String,
        /// Its value.
        value: f64,
        /// Its unit.
        unit: String,
    },
    /// The last event, unless the run was killed.
    RunEnded {
        /// Seconds since 1970.
        at_unix: u64,
        /// Why not all cases were run: a signal, the budget, `--fail-fast`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stopped: Option<String>,
    },
}

impl Event {
    /// Whether the event must survive a crash of the host: without it, a finished case would run again.
    pub fn is_durable(&self) -> bool {
        match self {
            Self::RunStarted(_) | Self::AttemptEnded(_) | Self::CellFailed { .. } | Self::RunEnded { .. } => true,
            Self::RunResumed { .. } | Self::CellReady { .. } | Self::AttemptStarted { .. } | Self::Metric { .. } => {
                false
            }
        }
    }
}

/// A duration as milliseconds with a fraction.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64((duration.as_secs_f64() * 1e6).round() / 1e3)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let millis = f64::deserialize(deserializer)?;
        Duration::try_from_secs_f64(millis / 1e3).map_err(D::Error::custom)
    }
}

/// See [`millis`].
mod optional_millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    struct Millis(#[serde(with = "super::millis")] Duration);

    #[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
    pub(super) fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::millis::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Millis>::deserialize(deserializer)?.map(|millis| millis.0))
    }
}

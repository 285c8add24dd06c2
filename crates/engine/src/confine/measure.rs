//! The measures, and what became of each.

use std::fmt;
use std::io::{self, Write as _};

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use crate::files::{plain_file, private_file};

/// Name of the file in a VM's directory.
const CONFINEMENT_FILE: &str = "confinement.json";
/// A few words for each measure.
const CONFINEMENT_BYTES_MAX: u64 = 64 << 10;

/// One way in which a VMM is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Landlock: it opens its own files, QEMU's and its libraries, and nothing else; no TCP, and from Linux 6.12 on no
    /// signals and no abstract sockets.
    Landlock,
    /// Namespaces: of mounts, all read-only but its directory; of the network, with nothing in it; of processes and IPC; if
    /// it is not started by root, of users.
    Namespaces,
    /// Limits of its descriptors, its processes and the size of its files.
    Limits,
    /// A user of its own. Needs root.
    User,
    /// A control group that bounds its memory, its processes and its share of the CPU. Needs root.
    Cgroup,
    /// A fork's VMM gets the memory of its snapshot open for reading alone.
    ForkMemory,
}

/// What became of a measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum MeasureState {
    /// It holds.
    On {
        /// More about it, for people; may be empty.
        detail: String,
    },
    /// This host does not allow it.
    Refused {
        /// Why, for people.
        reason: String,
    },
    /// The user turned it off.
    Off,
    /// There is nothing for it to hold.
    NotNeeded,
}

/// What became of each measure, for one VMM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Confinement {
    measures: Vec<(Measure, MeasureState)>,
}

impl Measure {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Landlock, Self::Namespaces, Self::Limits, Self::User, Self::Cgroup, Self::ForkMemory];

    /// Its name, as the policy and JSON have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Landlock => "landlock",
            Self::Namespaces => "namespaces",
            Self::Limits => "limits",
            Self::User => "user",
            Self::Cgroup => "cgroup",
            Self::ForkMemory => "fork-memory",
        }
    }

    /// Whether it is there for root alone.
    pub fn needs_root(self) -> bool {
        matches!(self, Self::User | Self::Cgroup)
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl MeasureState {
    /// It holds.
    pub(crate) fn on(detail: impl Into<String>) -> Self {
        Self::On { detail: detail.into() }
    }

    /// It does not hold, and why.
    pub(crate) fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into() }
    }
}

impl fmt::Display for MeasureState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On { detail } if detail.is_empty() => f.write_str("on"),
            Self::On { detail } => write!(f, "on: {detail}"),
            Self::Refused { reason } => write!(f, "refused by this host: {reason}"),
            Self::Off => write!(f, "off by `{}`", super::POLICY_VARIABLE),
            Self::NotNeeded => f.write_str("not needed"),
        }
    }
}

impl Confinement {
    /// What became of a measure; `None` for one that a Kiln did not know that wrote this.
    pub fn state(&self, measure: Measure) -> Option<&MeasureState> {
        self.measures.iter().find(|(one, _)| *one == measure).map(|(_, state)| state)
    }

    /// Each measure and what became of it.
    pub fn iter(&self) -> impl Iterator<Item = (Measure, &MeasureState)> {
        self.measures.iter().map(|(measure, state)| (*measure, state))
    }

    pub(crate) fn set(&mut self, measure: Measure, state: MeasureState) {
        match self.measures.iter_mut().find(|(one, _)| *one == measure) {
            Some((_, known)) => *known = state,
            None => self.measures.push((measure, state)),
        }
    }

    /// Measures that this host does not allow though this user could have them, with the reasons.
    pub fn missing(&self) -> impl Iterator<Item = (Measure, &str)> {
        let root = rustix::process::geteuid().is_root();
        self.iter().filter_map(move |(measure, state)| match state {
            MeasureState::Refused { reason } if root || !measure.needs_root() => Some((measure, reason.as_str())),
            _ => None,
        })
    }

    /// Writes it down in a VM's directory.
    pub(crate) fn store(&self, directory: &Utf8Path) -> io::Result<()> {
        let mut file = private_file::restart(&directory.join(CONFINEMENT_FILE))?;
        file.write_all(&serde_json::to_vec(self)?)
    }

    /// Reads what was written down in a VM's directory.
    pub(crate) fn load(directory: &Utf8Path) -> io::Result<Self> {
        let bytes = plain_file::read(&directory.join(CONFINEMENT_FILE), CONFINEMENT_BYTES_MAX)?;
        Ok(serde_json::from_slice(&bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_is_read_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8Path::from_path(directory.path()).expect("UTF-8");
        let mut confinement = Confinement::default();
        confinement.set(Measure::Landlock, MeasureState::on("ABI 7"));
        confinement.set(Measure::Limits, MeasureState::Off);
        confinement.set(Measure::Limits, MeasureState::refused("only root can"));
        confinement.store(path).expect("written");
        assert_eq!(Confinement::load(path).expect("reads"), confinement);
        let text = |measure| confinement.state(measure).map(ToString::to_string);
        assert_eq!(text(Measure::Landlock).as_deref(), Some("on: ABI 7"));
        assert_eq!(text(Measure::Limits).as_deref(), Some("refused by this host: only root can"));
        assert_eq!(text(Measure::Namespaces), None);
    }

    #[test]
    fn names_are_those_of_the_json() {
        for measure in Measure::ALL {
            assert_eq!(serde_json::to_value(measure).expect("JSON"), measure.name());
        }
    }
}

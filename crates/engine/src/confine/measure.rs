//! The measures, and the state of each.

use std::fmt;
use std::io::{self, Write as _};

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use crate::files::{plain_file, private_file};

/// Name of the file in a VM's directory.
const CONFINEMENT_FILE: &str = "confinement.json";
/// Each measure takes a few words.
const CONFINEMENT_BYTES_MAX: u64 = 64 << 10;

/// One way to confine a VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Landlock: the VMM opens its own files, QEMU's and its libraries, and nothing else. No TCP. Since Linux 6.12 no
    /// signals and no abstract sockets.
    Landlock,
    /// Namespaces: of mounts, all read-only except its directory; of the network, which is empty; of processes and IPC.
    /// Also of users, if root does not start it.
    Namespaces,
    /// Limits for its descriptors, its processes and the size of its files.
    Limits,
    /// A user of its own. Needs root.
    User,
    /// A control group that bounds its memory, its processes and its share of the CPU. Needs root.
    Cgroup,
    /// A fork's VMM gets the memory of its snapshot open for reading only.
    ForkMemory,
}

/// The state of a measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum MeasureState {
    /// It is in force.
    On {
        /// More about it, as text for the user; may be empty.
        detail: String,
    },
    /// This host does not allow it.
    Refused {
        /// Why, as text for the user.
        reason: String,
    },
    /// The user turned it off.
    Off,
    /// This VMM has nothing that it would protect.
    NotNeeded,
}

/// The state of each measure, for one VMM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Confinement {
    measures: Vec<(Measure, MeasureState)>,
}

impl Measure {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Landlock, Self::Namespaces, Self::Limits, Self::User, Self::Cgroup, Self::ForkMemory];

    /// Its name in the policy and in JSON.
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

    /// Whether only root can have it.
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
    /// It is in force.
    pub(crate) fn on(detail: impl Into<String>) -> Self {
        Self::On { detail: detail.into() }
    }

    /// It is not in force, and why.
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
    /// The state of a measure. `None` if the Kiln that wrote this did not have the measure.
    pub fn state(&self, measure: Measure) -> Option<&MeasureState> {
        self.measures.iter().find(|(one, _)| *one == measure).map(|(_, state)| state)
    }

    /// Each measure and its state.
    pub fn iter(&self) -> impl Iterator<Item = (Measure, &MeasureState)> {
        self.measures.iter().map(|(measure, state)| (*measure, state))
    }

    pub(crate) fn set(&mut self, measure: Measure, state: MeasureState) {
        match self.measures.iter_mut().find(|(one, _)| *one == measure) {
            Some((_, known)) => *known = state,
            None => self.measures.push((measure, state)),
        }
    }

    /// Measures that this host does not allow although this user could have them, with the reasons.
    pub fn missing(&self) -> impl Iterator<Item = (Measure, &str)> {
        let root = rustix::process::geteuid().is_root();
        self.iter().filter_map(move |(measure, state)| match state {
            MeasureState::Refused { reason } if root || !measure.needs_root() => Some((measure, reason.as_str())),
            _ => None,
        })
    }

    /// Writes the states to a VM's directory.
    pub(crate) fn store(&self, directory: &Utf8Path) -> io::Result<()> {
        let mut file = private_file::restart(&directory.join(CONFINEMENT_FILE))?;
        file.write_all(&serde_json::to_vec(self)?)
    }

    /// Reads the states from a VM's directory.
    pub(crate) fn load(directory: &Utf8Path) -> io::Result<Self> {
        let bytes = plain_file::read(&directory.join(CONFINEMENT_FILE), CONFINEMENT_BYTES_MAX)?;
        Ok(serde_json::from_slice(&bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::every_variant::every_variant;

    #[test]
    fn a_stored_confinement_is_read_again() {
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

    #[test]
    fn each_state_has_its_text() {
        let states = every_variant!(MeasureState {
            On: [MeasureState::on(""), MeasureState::on("ABI 7: files")],
            Refused: [MeasureState::refused("it needs root")],
            Off: [MeasureState::Off],
            NotNeeded: [MeasureState::NotNeeded],
        });
        let names = Measure::ALL.map(|measure| measure.to_string());
        let states = states.iter().map(|(_, state)| state.to_string());
        insta::assert_snapshot!(names.into_iter().chain(states).collect::<Vec<_>>().join("\n"));
    }
}

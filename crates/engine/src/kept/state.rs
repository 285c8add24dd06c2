//! The states of a kept VM, and why a request to it fails.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kiln_detect::Finding;
use serde::Serialize;
use tokio::time::Instant;

use super::activity::Activity;
use super::policy::Temperature;
use crate::driver::RestoreError;
use crate::error::ErrorKind;
use crate::guest::Gone;
use crate::link::LinkError;
use crate::vm::{ControlError, SaveError, VmExit};
use crate::vm_dir::ReopenError;

/// The state of a kept VM, or the state that it moves to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeptState {
    /// It runs.
    Hot,
    /// It is paused.
    Warm,
    /// It is a snapshot.
    Cold,
    /// It is being resumed or restored.
    Waking,
    /// It is being paused or saved, and will not run for now.
    Cooling,
    /// It is being saved, and will run on.
    Saving,
    /// It has ended.
    Ended(Ended),
}

impl KeptState {
    /// Whether it moves to another state.
    pub fn is_moving(&self) -> bool {
        matches!(self, Self::Waking | Self::Cooling | Self::Saving)
    }
}

/// How a kept VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Its kernel reported a fatal error.
    Crashed(Box<Finding>),
    /// It powered off, reset, or its VMM ended.
    Exited(VmExit),
    /// All of its CPUs were halted with interrupts off.
    Halted,
    /// Its agent did not answer for this long.
    Silent(Duration),
    /// [`KeptVm::destroy`](super::KeptVm::destroy).
    Destroyed,
}

impl From<Gone> for Ended {
    fn from(gone: Gone) -> Self {
        match gone {
            Gone::Crashed(finding) => Self::Crashed(finding),
            Gone::Exited(exit) => Self::Exited(exit),
            Gone::Halted => Self::Halted,
            Gone::Silent(time) => Self::Silent(time),
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crashed(finding) => write!(f, "the guest crashed: {}", finding.title),
            Self::Exited(exit) => exit.fmt(f),
            Self::Halted => Gone::Halted.fmt(f),
            Self::Silent(time) => Gone::Silent(*time).fmt(f),
            Self::Destroyed => f.write_str("the VM was destroyed"),
        }
    }
}

/// The state of a kept VM, and the reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// Its state, or the state that it moves to.
    pub state: KeptState,
    /// How far it is from running. While it moves, its last temperature.
    pub temperature: Temperature,
    /// How long it has been idle.
    pub idle: Duration,
    /// Why it is not idle; empty if it is. While it moves, the result of the last check.
    pub activity: Vec<Activity>,
    /// Why it could not be cooled, or how it ended.
    pub problem: Option<String>,
}

/// Why a kept VM does not run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WakeError {
    /// It has ended.
    #[error("the VM has ended: {0}")]
    Ended(Ended),
    /// Its CPUs did not continue, or its agent does not answer.
    #[error("failed to resume the VM")]
    Warm(#[source] Arc<WarmError>),
    /// It was not restored. It still exists.
    #[error("failed to restore the VM")]
    Cold(#[source] Arc<RestoreError>),
    /// Its keeper was dropped.
    #[error("the VM is not kept any more")]
    Dropped,
}

impl WakeError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Ended(_) | Self::Dropped => ErrorKind::Ended,
            Self::Warm(error) => match &**error {
                WarmError::Control(error) => error.kind(),
                WarmError::Link(error) => error.kind(),
            },
            Self::Cold(error) => error.kind(),
        }
    }
}

/// Why a kept VM was not saved or forked. It continues as before, unless it has ended.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// It does not run.
    #[error(transparent)]
    Wake(#[from] WakeError),
    /// It was not saved.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// The snapshot was taken, but not forked.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

impl KeptError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Wake(error) => error.kind(),
            Self::Save(error) => error.kind(),
            Self::Restore(error) => error.kind(),
        }
    }
}

/// Why a paused VM did not continue.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// The VMM refused or did not answer.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The agent did not answer, or could not set the clock.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// Why a kept VM was not destroyed.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    /// It is cold, and its directory can't be removed.
    #[error("failed to remove what is left of the VM")]
    Directory(#[from] ReopenError),
    /// Its keeper was dropped.
    #[error("the VM is not kept any more")]
    Dropped,
}

/// What the keeper publishes at each step.
#[derive(Debug, Clone)]
pub(super) struct Status {
    pub(super) state: KeptState,
    /// The temperature of the last state that was reached.
    pub(super) temperature: Temperature,
    /// When it was last needed.
    pub(super) needed: Instant,
    pub(super) activity: Vec<Activity>,
    pub(super) problem: Option<String>,
}

impl Status {
    pub(super) fn inspection(&self) -> Inspection {
        let Self { state, temperature, needed, activity, problem } = self.clone();
        let problem = match &state {
            KeptState::Ended(ended) => Some(ended.to_string()),
            _ => problem,
        };
        Inspection { state, temperature, idle: needed.elapsed(), activity, problem }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use kiln_detect::{Kind, Severity};

    use super::*;
    use crate::driver::LaunchError;
    use crate::every_variant::{chains, every_variant};
    use crate::process::VmmStatus;
    use crate::vm::ExitReason;

    fn panic() -> Box<Finding> {
        let (title, at) = ("kernel panic: no working init found".to_owned(), Duration::from_secs(1));
        Box::new(Finding::new(title, Kind::Panic, Severity::Fatal, Vec::new(), at))
    }

    #[test]
    fn each_end_of_a_kept_vm_has_its_text() {
        let exit = VmExit { status: VmmStatus::Code(0), reason: ExitReason::GuestPoweredOff };
        let ends = every_variant!(Ended {
            Crashed: [Ended::Crashed(panic())],
            Exited: [Ended::Exited(exit)],
            Halted: [Ended::Halted],
            Silent: [Ended::Silent(Duration::from_secs(60))],
            Destroyed: [Ended::Destroyed],
        });
        let texts: Vec<_> = ends.iter().map(|(_, ended)| ended.to_string()).collect();
        insta::assert_snapshot!(texts.join("\n"));
    }

    #[test]
    fn each_error_of_a_kept_vm_has_its_text() {
        let launch = || RestoreError::Launch(LaunchError::VmmMissing { program: "qemu-system-x86_64".into() });
        let late = || LinkError::TimedOut { waiting_for: "hello", waited: Duration::from_secs(30) };
        let wake = every_variant!(WakeError {
            Ended: [WakeError::Ended(Ended::Halted)],
            Warm: [WakeError::Warm(Arc::new(WarmError::Link(late())))],
            Cold: [WakeError::Cold(Arc::new(launch()))],
            Dropped: [WakeError::Dropped],
        });
        let kept = every_variant!(KeptError {
            Wake: [KeptError::Wake(WakeError::Dropped)],
            Save: [KeptError::Save(SaveError::Busy)],
            Restore: [KeptError::Restore(launch())],
        });
        let warm = every_variant!(WarmError {
            Control: [WarmError::Control(ControlError::Ended)],
            Link: [WarmError::Link(late())],
        });
        let directory =
            ReopenError::Io { path: "/vms/0123456789ab".into(), source: io::ErrorKind::PermissionDenied.into() };
        let destroy = every_variant!(DestroyError {
            Directory: [DestroyError::Directory(directory)],
            Dropped: [DestroyError::Dropped],
        });
        let texts = [
            chains(&wake, |error| vec![error.kind().to_string()]),
            chains(&kept, |error| vec![error.kind().to_string()]),
            chains(&warm, |_| Vec::new()),
            chains(&destroy, |_| Vec::new()),
        ];
        insta::assert_snapshot!(texts.join("\n"));
    }
}

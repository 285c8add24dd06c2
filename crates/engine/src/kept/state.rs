//! What a kept VM is and does, and why it does not do what it was told.

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

/// What a kept VM is, or is about to be.
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
    /// It is being paused or saved, to run no more for now.
    Cooling,
    /// It is being saved, to run on.
    Saving,
    /// It is over.
    Ended(Ended),
}

impl KeptState {
    /// It is on its way to another state.
    pub fn is_moving(&self) -> bool {
        matches!(self, Self::Waking | Self::Cooling | Self::Saving)
    }
}

/// Why a kept VM is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Its kernel reported something that it does not survive.
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

/// What a kept VM does, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// What it is, or is about to be.
    pub state: KeptState,
    /// How far it is from running; what it was if it is on its way.
    pub temperature: Temperature,
    /// Since when nobody has needed it.
    pub idle: Duration,
    /// Why it is not idle; empty if it is. Of the last look at it if it is on its way.
    pub activity: Vec<Activity>,
    /// Why it could not be cooled, or why it is over.
    pub problem: Option<String>,
}

/// Why a kept VM does not run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WakeError {
    /// It is over.
    #[error("the VM has ended: {0}")]
    Ended(Ended),
    /// Its CPUs did not go on, or its agent does not answer.
    #[error("failed to resume the VM")]
    Warm(#[source] Arc<WarmError>),
    /// It was not restored; it is still there.
    #[error("failed to restore the VM")]
    Cold(#[source] Arc<RestoreError>),
    /// Its keeper was dropped.
    #[error("nobody keeps the VM any more")]
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

/// Why a kept VM was not saved or forked. It goes on as before, unless it has ended.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// It does not run.
    #[error(transparent)]
    Wake(#[from] WakeError),
    /// It was not saved.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// What was saved of it was not forked.
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

/// Why a paused VM did not go on.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// The VMM did not do it.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The agent does not answer, or could not set the clock.
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
    #[error("nobody keeps the VM any more")]
    Dropped,
}

/// What the keeper publishes at each step.
#[derive(Debug, Clone)]
pub(super) struct Status {
    pub(super) state: KeptState,
    /// Of the last state that was reached.
    pub(super) temperature: Temperature,
    /// When it was needed last.
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

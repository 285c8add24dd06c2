//! Events of a VM, up to its end.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::process::VmmStatus;

/// Something that happened to a VM, in the order in which it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmEvent {
    /// The VMM runs.
    Started {
        /// The pid of the VMM.
        pid: u32,
    },
    /// Output of the guest's console.
    Console {
        /// When the first byte arrived, since the VM's start.
        at: Duration,
        /// The output.
        bytes: Bytes,
    },
    /// The guest's CPUs are paused.
    Paused,
    /// The guest's CPUs run again.
    Resumed,
    /// This host had no space for what the guest wrote to a disk, so the guest got an I/O error. Sent once.
    NoSpace,
    /// The VM has ended. This is always the last event.
    Exited(VmExit),
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmExit {
    /// How its VMM process ended.
    pub status: VmmStatus,
    /// Why.
    pub reason: ExitReason,
}

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest turned itself off.
    GuestPoweredOff,
    /// The guest rebooted. A VM ends then, because QEMU is started with `-no-reboot`.
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanicked,
    /// [`Vm::kill`](crate::Vm::kill), [`Vm::shutdown`](crate::Vm::shutdown) or a dropped [`Vm`](crate::Vm).
    Killed,
    /// The VMM exited on its own, or another process killed it.
    VmmFailed {
        /// The end of its error output.
        stderr: String,
    },
}

impl fmt::Display for VmExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            ExitReason::GuestPoweredOff => f.write_str("the guest powered off"),
            ExitReason::GuestReset => f.write_str("the guest rebooted"),
            ExitReason::GuestPanicked => f.write_str("the guest's kernel panicked"),
            ExitReason::Killed => f.write_str("the VM was killed"),
            ExitReason::VmmFailed { stderr } if stderr.is_empty() => write!(f, "the VMM ended with {}", self.status),
            ExitReason::VmmFailed { stderr } => write!(f, "the VMM ended with {}: {stderr}", self.status),
        }
    }
}

/// The stream of a VM's events. Reading is optional: a VM never waits for its reader.
#[derive(Debug)]
pub struct VmEvents(pub(crate) mpsc::Receiver<VmEvent>);

impl VmEvents {
    /// The next event; `None` after [`VmEvent::Exited`]. Safe to cancel.
    pub async fn next(&mut self) -> Option<VmEvent> {
        self.0.recv().await
    }
}

//! A running VM: one task owns it, others hold a handle.
//!
//! ```text
//!   Vm (handle) ──Command──▶ owner ──┬──▶ vmm: Monitor, Saver, Transport of any VMM
//!    │    ▲                          ├──▶ console, log_writer: the guest's output
//!    │    └───────VmEvents───────────┤
//!    └──▶ pulse: state of the CPUs   └──▶ save ──▶ Snapshot
//! ```

#[expect(clippy::disallowed_methods, reason = "what blocks in it is called by `operation` or `blocking`")]
mod save;

mod console;
mod control;
mod error;
mod events;
mod handle;
mod log_writer;
mod owner;
mod pulse;
mod vmm;

pub use self::console::CONSOLE_RING_BYTES;
pub(crate) use self::control::{Cpus, Shared};
pub use self::error::{ControlError, PortError, SaveError, VmmError};
pub use self::events::{ExitReason, VmEvent, VmEvents, VmExit};
pub use self::handle::Vm;
pub(crate) use self::handle::{AGENT_SOCKET, port_socket};
pub(crate) use self::owner::{Ends, Parts, start};
pub(crate) use self::pulse::Pulse;
pub(crate) use self::save::put;
pub use self::vmm::BoxFuture;
pub(crate) use self::vmm::{Files, Monitor, MonitorEvent, MonitorEvents, Saver, Transport, Written};

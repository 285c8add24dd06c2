//! `vms/<id>/`: the directory of one VM.
//!
//! ```text
//!   spec.json     the VM's spec
//!   journal       what the VM is about to do and has done, see `journal.rs`
//!   pid           pid and start time of the VMM, see `orphan.rs`
//!   *.sock        monitor, agent and extra ports: Kiln binds them, the VMM serves them
//!   *.fifo        output of the console and of the VMM, see `fifo.rs`
//!   console.log   the console's log, and its later parts
//!
//!   create ──▶ VmDir (locked) ──drop──▶ removed
//!                 └──keep──▶ spec, journal, console logs ──reopen──▶ VmDir (locked) ──drop──▶ unchanged
//! ```

#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
mod directory;

#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
mod journal;
#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
pub(crate) mod orphan;

#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
mod console_log;
pub(crate) mod fifo;
mod id;
mod spec_file;

#[cfg(test)]
pub(crate) use self::console_log::CONSOLE_LOGS;
pub(crate) use self::console_log::ConsoleLog;
pub use self::console_log::{CONSOLE_LOG_HEAD_BYTES, CONSOLE_LOG_TAIL_BYTES};
pub use self::directory::ReopenError;
pub(crate) use self::directory::{
    DEVICE_STATE_FILE, Fate, MEMORY_FILE, SocketDir, VmDir, tidy_lost, tidy_stopped, try_lock,
};
pub use self::id::{NoVmId, VmId};
pub use self::journal::JournalError;
#[cfg(test)]
pub(crate) use self::journal::Record;
pub(crate) use self::journal::{History, Journal, State, Then};
pub(crate) use self::orphan::Orphan;
pub(crate) use self::spec_file::read_spec;

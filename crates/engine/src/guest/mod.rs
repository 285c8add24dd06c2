//! A VM whose agent answers, what happens in it, and a watch on its end.
//!
//! ```text
//!   VmSpec   ──▶ Guest::start ──┐             ┌──▶ link: commands, files
//!   Snapshot ──▶ Guest::fork  ──┴──▶ Guest ───┤
//!                                             └──▶ gone(): Crashed (from its console), Exited (from its engine),
//!                                                          Halted (from its CPUs), Silent (from its agent)
//!   VmEvents ──▶ Watch ──▶ rows of the console ──▶ kiln_detect ──▶ findings
//!                  └──▶ EventLog: numbered, bounded, for any number of readers
//! ```
//! Nothing here prints or decides an exit code: programs do that with what they get here.

mod booted;
mod events;
mod findings;
mod vitals;
mod watch;

pub use booted::{BOOT_TAIL_ROWS, BootError, Guest};
pub use events::{EVENTS_BYTES_MAX, EVENTS_MAX, Entry, Events, GuestEvent, Lagged};
pub use findings::{FINDINGS_BYTES_MAX, FINDINGS_HEAD, FINDINGS_TAIL};
pub use vitals::{SILENCE_DEADLINE, SILENCE_MAX};
pub use watch::{Gone, Watch};

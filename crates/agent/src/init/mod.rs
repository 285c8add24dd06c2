//! PID 1 of a guest.
//!
//! ```text
//!   first line ─▶ mounts ─▶ virtio modules ─▶ root, modules (if named) ─▶ control groups ─▶ port ─▶ links
//!                                                                                       │
//!                                   drivers of other devices, extra modules ◀───────────┘ (commands wait for them)
//!   SIGTERM, SIGPWR, Goodbye{shutdown} ─▶ TERM, KILL, sync, unmount, power off
//! ```
//!
//! With `kiln.init=image` the root's own init becomes PID 1 after the root is there, and the agent runs beside it: see
//! [`beside`].
//!
//! Each step before the link makes every boot longer, so only the steps that the link needs are done before it.

mod beside;
mod boot_options;
mod guest;
mod module_disk;
mod modules;
mod mounts;
mod port;
mod root;
mod shutdown;

pub use beside::{OPTION as BESIDE_INIT, run as run_beside};
pub use guest::run;

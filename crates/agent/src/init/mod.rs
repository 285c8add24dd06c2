//! PID 1 of a guest.
//!
//! ```text
//!   first line ─▶ mounts ─▶ virtio modules ─▶ root (where asked) ─▶ control groups ─▶ port ─▶ links
//!                                                                                       │
//!                                   drivers of other devices, extra modules ◀───────────┘ (commands wait for them)
//!   SIGTERM, SIGPWR, Goodbye{shutdown} ─▶ TERM, KILL, sync, unmount, power off
//! ```
//!
//! What comes before the link is part of every boot's price, so it is only what the link needs.

mod boot_options;
mod guest;
mod modules;
mod mounts;
mod port;
mod root;
mod shutdown;

pub use guest::run;

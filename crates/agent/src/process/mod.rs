//! Commands in the guest: starts a request's command as a process group, supervises and limits it, and kills what is
//! left.
//!
//! ```text
//!   ExecRequest ─▶ command (strings, PATH, user) ─▶ spawn (clone3, child) ─▶ job ─▶ supervise ─▶ Exited
//!                                                       ▲                                ▲
//!                                  cgroup (spare one) ──┘          reaper (SIGCHLD) ─────┘
//! ```

mod child;
mod command;
mod commands;
mod freezer;
mod gather;
mod input_end;
mod job;
mod kworkers;
mod stdio;
mod supervise;
mod tree;
mod users;

pub mod cgroup;
pub mod reaper;
pub mod signals;
pub mod spawn;

pub use command::{Command, Defaults};
pub use commands::{Commands, Running};
pub use job::{Job, Output};
pub use stdio::Terminal;
pub use supervise::{Outcome, Sink, supervise};

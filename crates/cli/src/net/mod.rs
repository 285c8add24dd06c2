//! `kiln net`: the networks of running VMs.
//!
//! ```text
//!   kiln run --net nat ── Control ── networks/control/<vm> ◀── one request, one reply ── kiln net policy web --allow …
//! ```
//! The process that runs a VM owns its network and answers on a socket, so a change is in force when the reply arrives.
//! The socket is in a directory that only this user can enter.

mod client;
mod command;
mod control;
mod message;

pub use command::run;
pub use control::Control;

//! The services for hosts: a module for each kind of request, and one that dispatches requests to them.
//!
//! ```text
//!   link ─▶ dispatch ─┬▶ exec, session       commands
//!                     ├▶ files, watch        files of the guest
//!                     ├▶ forward             connections into the guest
//!                     ├▶ metrics, logs       the guest's resources and messages
//!                     ├▶ activity            whether the guest is needed
//!                     ├▶ freeze              freezes all commands for a snapshot
//!                     └▶ sync                clock, randomness and identity of a fork
//! ```
//!
//! Each service gets the parts of the agent that it needs and its stream, and ends the stream.

pub mod activity;
mod dispatch;
mod exec;
mod files;
mod forward;
mod freeze;
mod logs;
mod metrics;
mod sync;
mod watch;

pub use dispatch::Services;
pub use sync::Machine;

//! What the agent does for a host: a module for each kind of request, and one that knows which request goes where.
//!
//! ```text
//!   link ─▶ dispatch ─┬▶ exec, session       commands
//!                     ├▶ files, watch        files of the guest
//!                     ├▶ forward             connections into the guest
//!                     ├▶ metrics, logs       what the guest uses and says
//!                     ├▶ activity            whether the guest is needed
//!                     ├▶ freeze              every command stands still, for a snapshot
//!                     └▶ sync                clock, randomness and identity of a fork
//! ```
//!
//! Each takes the parts of the agent that it needs and its stream, and ends the stream.

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

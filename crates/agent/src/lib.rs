//! The guest program: PID 1 of a VM, or a service in one.
//!
//! ```text
//!   transport ─▶ link ─┬▶ exec ─────▶ process (spawn, supervise, reap, control groups)
//!                      ├▶ session ──▶ process
//!                      ├▶ file_streams ▶ files
//!                      ├▶ forward, watch, metrics, logs, activity
//!                      ├▶ freeze (every command, for a snapshot)
//!                      └▶ renew (clock, randomness, identity of a fork)
//! ```
//!
//! One thread runs everything that talks to the host; blocking file work goes to a small bounded pool. The host is
//! trusted with the guest, but not to be free of faults: everything it sends is bounded before it is stored.

pub mod activity;
pub mod agent;
pub mod arguments;
pub mod bench;
pub mod exec;
pub mod file_streams;
pub mod files;
pub mod forward;
pub mod freeze;
pub mod heap;
pub mod init;
pub mod link;
pub mod log;
pub mod logs;
pub mod metrics;
pub mod process;
pub mod relay;
pub mod renew;
pub mod serve;
pub mod session;
pub mod tally;
pub mod transport;
pub mod watch;
pub mod watched;

//! The guest program: PID 1 of a VM, or a service in one.
//!
//! ```text
//!   init (PID 1) or serve (a socket) ─▶ agent (the parts, put together)
//!                                          │
//!   transport ─▶ link ── each request ─▶ services ─┬▶ session ─▶ process (spawn, supervise, reap, control groups)
//!                                                  ├▶ files
//!                                                  └▶ machine (names, addresses), drivers
//! ```
//!
//! The modules stand in this order from top to bottom, and none uses one above it. A link knows no service: it hands each
//! stream to what implements [`link::Service`].
//!
//! One thread runs everything that talks to the host; blocking file work goes to a small bounded pool. The host is
//! trusted with the guest, but not to be free of faults: everything it sends is bounded before it is stored.

pub mod agent;
pub mod serve;

pub mod init;
pub mod services;

pub mod session;

pub mod process;

pub mod drivers;
pub mod files;
pub mod machine;

pub mod link;
pub mod relay;
pub mod transport;
pub mod watched;

pub mod arguments;
pub mod bench;
pub mod heap;
pub mod log;
pub mod runtime;
pub mod tally;

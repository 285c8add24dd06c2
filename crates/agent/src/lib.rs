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
//! The modules are listed from top to bottom in this order, and none uses a module above it. A link doesn't depend on
//! the services: it passes each stream to the implementation of [`link::Service`].
//!
//! One thread runs everything that communicates with the host. Blocking file work runs in a small bounded pool. The
//! host is trusted with the guest, but it may have bugs: everything that it sends is bounded before it is stored.

pub mod init;
pub mod serve;

pub mod agent;

pub mod services;

pub mod session;

pub mod runtime;

pub mod process;

pub mod drivers;
pub mod files;
pub mod machine;

pub mod relay;

pub mod link;
pub mod transport;
pub mod watched;

pub mod arguments;
pub mod bench;
pub mod heap;
pub mod log;
pub mod tally;

//! The fake driver: the real agent as a process of this host, without a VM. It tests everything above the engine in
//! milliseconds.
//!
//! ```text
//!   vms/<id>/guest/   the guest's files; its commands start here
//!   save  ──▶ pause, guest/ as a tar archive in the snapshot's `memory`      restore ──▶ unpacked, a new agent
//! ```
//! Its limits:
//!
//! - There is no kernel, no console and no isolation: commands run as this user and see this host.
//! - A save holds the files below `guest/`, not processes: no command continues in a fork, and a fork has no sessions.
//!   It leaves out everything except ordinary files, directories and links. `memory_mib` bounds the archive.
//! - Every snapshot is a full one, so chains and diffs need a real VM.
//! - A sync names the guest in `etc/hostname` and `etc/machine-id` below `guest/`, and leaves the host's clock alone.
//! - A frozen guest starts no new commands; running ones continue.
//!
//! A feature that works only here is not finished.

mod engine;
mod process;

mod monitor;
mod saved;

pub use self::engine::FakeEngine;

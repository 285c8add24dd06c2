//! Snapshots and forks as a user meets them: `kiln run`, `kiln image warm` and `kiln snapshot`, with real VMs.
//!
//! Tests that only use snapshots share the ready-made one of the home that all tests share. Those that make, break or
//! remove some have a home of their own.

mod vm_commands;
mod vm_fork;
mod vm_prepared;
mod vm_ready;

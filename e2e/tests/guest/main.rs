//! The agent as PID 1 of a real guest: what test mode on a Unix socket can't show.
//!
//! Tests in modules named `vm_…` boot a VM each.

mod vm_freeze;
mod vm_link;
mod vm_machine;
mod vm_pressure;
mod vm_root;
mod vm_terminal;

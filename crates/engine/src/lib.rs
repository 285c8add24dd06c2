//! Runs VMs: specs in, events out.

pub mod link;

//! Drivers: each turns a [`VmSpec`](crate::VmSpec) into a running guest.

pub mod fake;
pub mod qemu;

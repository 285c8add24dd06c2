//! `kiln vhost` as a user runs it: the real binary with QEMU's storage daemon, a real QEMU, and silent peers.
//!
//! Tests in modules named `vm_…` start a VM's firmware.

mod check;
mod mock;
mod place;
mod probe;
mod refused;
mod runner;
mod stop;
mod stress;
mod tap;
mod vm_tap;

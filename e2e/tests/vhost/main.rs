//! `kiln vhost` as a user meets it: the real binary beside QEMU's storage daemon, a real QEMU, and peers that say nothing.
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

//! Our frontend on a real backend: QEMU's storage daemon.

mod allocations;
mod daemon;
mod load;
mod reconnect;
mod rings;

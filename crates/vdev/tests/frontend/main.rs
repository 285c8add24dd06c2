//! Our frontend on a real backend: QEMU's storage daemon.

mod daemon;
mod load;
mod reconnect;
mod rings;

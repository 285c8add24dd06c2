//! Our frontend on a real backend, QEMU's storage daemon, and on disks that keep it busy and do nothing.

mod allocations;
mod daemon;
mod hostile;
mod load;
mod reconnect;
mod rings;

//! `kiln verify` with real VMs: its checks hold, and it leaves nothing behind.

mod vm_fork;

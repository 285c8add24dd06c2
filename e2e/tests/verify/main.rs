//! `kiln verify` as a user meets it: it proves what it says with real VMs, and leaves nothing behind.

mod vm_fork;

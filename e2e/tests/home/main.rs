//! A `$KILN_HOME` that other users could change, or that has unexpected files.

mod refused;
mod vm_damaged;
mod vm_inheritance;
mod vm_memory;
mod vm_planted;
mod vm_umask;

//! A `$KILN_HOME` that others could change, or have filled.

mod refused;
mod vm_damaged;
mod vm_inheritance;
mod vm_memory;
mod vm_planted;
mod vm_umask;

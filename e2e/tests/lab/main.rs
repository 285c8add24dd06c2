//! `kiln lab` as a user meets it: the real binary, plans, real VMs.
//!
//! Tests in modules named `vm_…` fork VMs; each has a home of its own, in which its runs are.

mod refused;
mod runs;
mod vm_interrupts;
mod vm_plans;
mod vm_verdicts;

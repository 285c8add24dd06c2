//! This host: its CPUs, memory, programs, KVM and TAP devices. [`doctor`](crate::doctor) reports what is missing.

#[expect(clippy::disallowed_methods, reason = "what blocks in it is called by `operation` or `blocking`")]
mod capacity;
#[expect(clippy::disallowed_methods, reason = "what blocks in it is called by `operation` or `blocking`")]
mod kvm;
#[expect(clippy::disallowed_methods, reason = "what blocks in it is called by `operation` or `blocking`")]
mod programs;
#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
pub(crate) mod tap;

pub(crate) use self::capacity::{
    cpu_identity, cpuinfo_field, free_mib, limits, memory_available_mib, proportional_set_bytes,
};
pub use self::kvm::{KvmState, open_kvm};
pub use self::programs::{find_program, is_static};
pub use self::tap::TapError;

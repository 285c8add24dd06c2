//! The QEMU driver: KVM or TCG, version 7.2 and later.
//!
//! ```text
//!   VmSpec ──validate──▶ accelerator ──▶ vms/<id>/ ──▶ launch ──▶ Vm ──▶ save ──▶ Snapshot
//!                                                       ▲                             │
//!                                                       └────────── restore ◀─────────┘
//! ```

mod engine;

mod launch;
mod restore;
mod save;

mod adopt;

mod args;
mod blockdev;
mod files;
mod firmware;
mod guest_memory;
mod machine;
mod version;

mod cpus;
mod monitor;
mod qmp;
mod transport;

mod kvm_probe;

pub use self::args::TCG_CPU;
pub use self::engine::{QEMU_PROGRAM, QEMU_VARIABLE, QemuEngine};
pub use self::kvm_probe::{PROBE_DEADLINE, forget_probe, kvm_works};
pub use self::version::QemuVersion;

//! Runs VMs: specs in, events out.
//!
//! ```text
//!   VmSpec ──▶ Engine::launch ──▶ Vm ──▶ VmEvents: Started, Console …, Exited
//!                                  └───▶ connect ──▶ link::GuestLink
//!   VmSpec or Snapshot ──▶ Guest: a VM whose agent answers, its findings, how it ended
//! ```
//! Drivers turn a spec into a guest: [`QemuEngine`] into a VM under KVM or TCG, [`FakeEngine`] into a process for tests.

// What blocks, and where it may: see `clippy.toml` beside this crate's manifest. Tests may wait for what they like.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod deadlines;
#[expect(clippy::disallowed_methods, reason = "what blocks in it is called by `operation` or `blocking`")]
pub mod doctor;
pub mod failpoint;
pub mod guest;
#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
pub mod home;
pub mod host;
#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
pub mod image;
pub mod kept;
pub mod link;
#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
pub mod snapshot;

mod blocking;
#[expect(
    clippy::disallowed_methods,
    reason = "what blocks in it is called by `operation` or `blocking`, or with the end of a VMM"
)]
mod confine;
mod driver;
#[expect(clippy::disallowed_methods, reason = "what blocks in it is called by `operation` or `blocking`")]
mod drivers;
mod engine;
mod error;
#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
mod files;
mod hex_id;
#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
mod kernel;
#[expect(clippy::disallowed_methods, reason = "what blocks in it is called by `operation` or `blocking`")]
mod process;
mod spec;
mod vm;
mod vm_dir;

pub use blocking::blocking;
pub use confine::{Confinement, Measure, MeasureState, POLICY_VARIABLE, Policy, PolicyError};
pub use driver::{AdoptError, Capabilities, FORKS_MAX, Isolation, LaunchError, RestoreError};
pub use drivers::fake::FakeEngine;
pub use drivers::qemu::{
    PROBE_DEADLINE, QEMU_PROGRAM, QEMU_VARIABLE, QemuEngine, QemuVersion, TCG_CPU, forget_probe, kvm_works,
};
pub use engine::{
    Engine, Fork, ForkIdentity, ForkPart, ForkPool, ForkSpec, NicPart, Outcome, POOL_MAX, PoolSpec, PoolStatus,
    READY_SNAPSHOTS_MAX, ReadyError, ReadyRequest, ReadyStep, Recovered, Renew, Template, VolumeFile, discard, recover,
};
pub use error::ErrorKind;
pub use guest::Guest;
pub use host::TapError;
pub use process::VmmStatus;
pub use spec::{
    AGENT_PORT, Acceleration, AccelerationRequest, Attachment, CMDLINE_BYTES_MAX, CPUS_MAX, DISKS_MAX, Disk,
    DiskFormat, DiskRole, EXTRA_PORTS_MAX, HostLimits, MEMORY_MIB_MIN, MacAddress, NICS_MAX, Nic, NoMacAddress,
    OwnerLoss, QUEUES_MAX, RootSpec, SHARES_MAX, SpecError, Tap, VhostUser, VhostUserDevice, VmSpec,
};
pub use vm::{
    BoxFuture, CONSOLE_RING_BYTES, ControlError, ExitReason, PortError, SaveError, Vm, VmEvent, VmEvents, VmExit,
    VmmError,
};
pub use vm_dir::{CONSOLE_LOG_HEAD_BYTES, CONSOLE_LOG_TAIL_BYTES, NoVmId, ReopenError, VmId};

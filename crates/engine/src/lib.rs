//! Runs VMs: specs and snapshots in, running VMs and their events out.
//!
//! ```text
//!   VmSpec ──▶ Engine::launch ──▶ Vm ──▶ VmEvents: Started, Console …, Exited
//!                                  └───▶ connect ──▶ link::GuestLink
//!   VmSpec or Snapshot ──▶ Guest: a VM whose agent answers, its findings, its end
//! ```
//! Drivers turn a spec into a guest: [`QemuEngine`] into a VM under KVM or TCG, [`FakeEngine`] into a process for
//! tests.
//!
//! The modules are in this order from top to bottom, and none uses a module above it:
//!
//! ```text
//!   kept ─────┬──▶ guest ──▶ engine ───┐                  hot, warm, cold; a VM with its agent; launch, fork, recover
//!   image ────┘    network ──┘         ├──▶ driver        a VM's way out; the interface of a driver
//!   volume ──▶ image, snapshot         │                  named disks that outlive VMs
//!   directory ─▶ home                  │                  directories of the host as read-only disks
//!   kernels ──▶ image                  │                  kernels that images boot
//!   doctor ───────▶ drivers ───────────┘      │           what this host lacks; QEMU, fake
//!                                             ▼
//!                                            vm           one task owns it, others hold its handle
//!                                 ┌───────────┼──────────────────┐
//!                                 ▼           ▼                  ▼
//!                              process ──▶ vm_dir ────────▶ snapshot ──▶ link
//!                                 │                              │
//!                                 ▼                              ▼
//!                              confine                   home, kernel, host ──▶ spec
//!                                 │                              │
//!                                 ▼                              ▼
//!                 files; blocking, deadlines, error, failpoint, hex_id
//! ```

// `clippy.toml` of this crate lists the calls that block. A module in which they are allowed has the reason. Tests may
// block.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
pub mod directory;
#[expect(clippy::disallowed_methods, reason = "what blocks in it is called by `operation` or `blocking`")]
pub mod doctor;
#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
pub mod image;
pub mod kept;
#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
pub mod kernels;
#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
pub mod volume;

pub mod guest;
pub mod network;

mod engine;

#[expect(clippy::disallowed_methods, reason = "what blocks in it is called by `operation` or `blocking`")]
mod drivers;

mod driver;

mod vm;

#[expect(clippy::disallowed_methods, reason = "what blocks in it is called by `operation` or `blocking`")]
mod process;

#[expect(
    clippy::disallowed_methods,
    reason = "what blocks in it is called by `operation` or `blocking`, or with the end of a VMM"
)]
mod confine;

mod vm_dir;

#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
pub mod snapshot;

pub mod link;

#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
pub mod home;
pub mod host;
#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
mod kernel;

mod spec;

#[expect(clippy::disallowed_methods, reason = "all of it blocks")]
mod files;

mod blocking;
pub mod deadlines;
mod error;
#[cfg(test)]
mod every_variant;
pub mod failpoint;
mod hex_id;

pub use blocking::blocking;
pub use confine::{Confinement, Measure, MeasureState, POLICY_VARIABLE, Policy, PolicyError};
pub use driver::{AdoptError, Capabilities, FORKS_MAX, Isolation, LaunchError, RestoreError};
pub use drivers::fake::FakeEngine;
pub use drivers::qemu::{
    PROBE_DEADLINE, QEMU_PROGRAM, QEMU_VARIABLE, QemuEngine, QemuVersion, TCG_CPU, forget_probe, kvm_works,
};
pub use engine::{
    Engine, Fork, ForkIdentity, ForkPart, ForkPool, ForkSpec, MakePart, NicPart, Outcome, POOL_MAX, PoolSpec,
    PoolStatus, READY_SNAPSHOTS_MAX, ReadyError, ReadyRequest, ReadyStep, Recovered, Renew, Template, VolumeFile,
    discard, recover,
};
pub use error::ErrorKind;
pub use guest::Guest;
pub use host::TapError;
pub use process::VmmStatus;
pub use spec::{
    AGENT_PORT, Acceleration, AccelerationRequest, Attachment, CMDLINE_BYTES_MAX, CPUS_MAX, DISKS_MAX, Disk,
    DiskFormat, DiskRole, EXTRA_PORTS_MAX, HostLimits, MEMORY_MIB_MIN, MacAddress, ModuleDisk, NICS_MAX, Nic,
    NoMacAddress, OwnerLoss, QUEUES_MAX, RootSpec, SHARES_MAX, SpecError, Tap, VhostUser, VhostUserDevice, VmSpec,
};
pub use vm::{
    BoxFuture, CONSOLE_RING_BYTES, ControlError, ExitReason, PortError, SaveError, Vm, VmEvent, VmEvents, VmExit,
    VmmError,
};
pub use vm_dir::{CONSOLE_LOG_HEAD_BYTES, CONSOLE_LOG_TAIL_BYTES, NoVmId, ReopenError, VmId};

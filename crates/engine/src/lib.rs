//! Runs VMs: specs in, events out.
//!
//! ```text
//!   VmSpec ──▶ Engine::launch ──▶ Vm ──▶ VmEvents: Started, Console …, Exited
//!                                  └───▶ connect ──▶ link::GuestLink
//!   VmSpec or Snapshot ──▶ Guest: a VM whose agent answers, its findings, how it ended
//! ```
//! Drivers turn a spec into a guest: [`QemuEngine`] into a VM under KVM or TCG, [`FakeEngine`] into a process for tests.

pub mod acceleration;
pub mod failpoint;
pub mod guest;
pub mod home;
pub mod host;
pub mod image;
pub mod kept;
pub mod link;
pub mod snapshot;

mod adopt;
mod blocking;
mod confine;
mod console;
mod driver;
mod drivers;
mod engine;
mod error;
mod fifo;
mod file_facts;
mod fork;
mod journal;
mod log_writer;
mod mac_address;
mod orphan;
mod owner;
mod plain_file;
mod pool;
mod private_file;
mod process;
mod ready;
mod recover;
mod restore;
mod save;
mod vhost_user;
mod vm;
mod vm_dir;
mod vm_spec;

pub use adopt::AdoptError;
pub use blocking::blocking;
pub use console::{CONSOLE_LOG_HEAD_BYTES, CONSOLE_LOG_TAIL_BYTES, CONSOLE_RING_BYTES};
pub use driver::VmmError;
pub use drivers::fake::FakeEngine;
pub use drivers::qemu::{QEMU_PROGRAM, QEMU_VARIABLE, QemuEngine, QemuVersion, TCG_CPU};
pub use engine::{BoxFuture, Capabilities, Engine, Isolation, LaunchError};
pub use error::{ErrorKind, RestoreError, SaveError};
pub use fork::{FORKS_MAX, Fork, ForkIdentity, ForkSpec};
pub use guest::Guest;
pub use mac_address::{MacAddress, NoMacAddress};
pub use pool::{ForkPool, POOL_MAX, PoolSpec, PoolStatus};
pub use ready::{READY_SNAPSHOTS_MAX, ReadyError, ReadyRequest, ReadyStep, Renew};
pub use recover::{Outcome, Recovered, discard, recover};
pub use restore::Template;
pub use vhost_user::{QUEUES_MAX, SHARES_MAX, VhostUser, VhostUserDevice};
pub use vm::{Acceleration, ControlError, ExitReason, PortError, Vm, VmEvent, VmEvents, VmExit, VmmStatus};
pub use vm_dir::{NoVmId, ReopenError, VmId};
pub use vm_spec::{
    AGENT_PORT, AccelerationRequest, CMDLINE_BYTES_MAX, CPUS_MAX, DISKS_MAX, Disk, DiskFormat, EXTRA_PORTS_MAX,
    HostLimits, MEMORY_MIB_MIN, NICS_MAX, Nic, OwnerLoss, RootSpec, SpecError, VmSpec,
};

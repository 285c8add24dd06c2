//! The interface of a driver. With the traits of a running VM in [`crate::vm`], it is all that the engine uses of a
//! VMM. No other module depends on which VMM runs.
//!
//! ```text
//!   Engine ──▶ Driver:    validate, decide, boot, restorer, reattach   one for each engine
//!   restore ─▶ Restorer:  a VMM with a snapshot's memory, waiting      one for each snapshot that is forked
//!   owner ───▶ Monitor:   pause, resume, power down, does it run?      one for each VM
//!         ◀─── MonitorEvents
//!   save ────▶ Saver:     memory, devices and disks into a draft       one for each VM that can be saved
//!   vm ──────▶ Transport: a byte stream to the agent                   one for each VM
//! ```
//! How to add a driver for another VMM: `docs/design/0006-drivers.md`.

mod capabilities;
mod error;

use std::fmt;
use std::sync::Arc;

use camino::Utf8Path;
use tokio::sync::OnceCell;

pub use self::capabilities::{Capabilities, Isolation};
pub use self::error::{AdoptError, FORKS_MAX, LaunchError, RestoreError};

use crate::snapshot::{MachineIdentity, Snapshot};
use crate::spec::{Acceleration, VmSpec};
use crate::vm::{BoxFuture, Ends, Vm};
use crate::vm_dir::{Orphan, VmDir};

/// One kind of VMM. Each driver is an [`Engine`](crate::Engine), by one implementation for all drivers.
pub(crate) trait Driver: fmt::Debug + Send + Sync {
    /// `$KILN_HOME`.
    fn home(&self) -> &Utf8Path;

    /// The features of its guests.
    fn capabilities(&self) -> Capabilities;

    /// Set once this engine has recovered the VMs without an owner.
    fn recovered(&self) -> &OnceCell<()>;

    /// Refuses a spec that this driver can't start. Checks only values, files and the size of the host.
    fn validate(&self, spec: &VmSpec) -> Result<(), LaunchError>;

    /// Decides what runs the instructions of a valid spec.
    fn decide<'a>(&'a self, spec: &'a VmSpec) -> BoxFuture<'a, Result<Acceleration, LaunchError>>;

    /// The machine of a VM of this spec. The spec's acceleration is decided.
    fn machine<'a>(&'a self, spec: &'a VmSpec) -> BoxFuture<'a, Result<MachineIdentity, LaunchError>>;

    /// Boots a VM of a valid spec.
    fn boot<'a>(&'a self, spec: &'a VmSpec, on: Acceleration) -> BoxFuture<'a, Result<Vm, LaunchError>>;

    /// Makes a restorer for a snapshot with a valid spec. The caller compares its machine with the saved one.
    fn restorer<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        spec: &'a VmSpec,
    ) -> BoxFuture<'a, Result<Arc<dyn Restorer>, RestoreError>>;

    /// Connects to a VMM that outlived its owner. A failure leaves the VMM as it was.
    fn reattach<'a>(
        &'a self,
        dir: &'a VmDir,
        spec: &'a VmSpec,
        vmm: &'a Orphan,
    ) -> BoxFuture<'a, Result<Ends, AdoptError>>;
}

/// Restores one snapshot, any number of times.
pub(crate) trait Restorer: fmt::Debug + Send + Sync {
    /// The machine of its VMs.
    fn machine(&self) -> &MachineIdentity;

    /// Starts a VMM for the VM of `dir`, up to the point before it loads the device state. A pool of forks does this
    /// part in advance. `spec` is the spec of this fork: the snapshot's, with the fork's volumes and attachments.
    fn start(&self, dir: VmDir, spec: VmSpec) -> BoxFuture<'_, Result<Box<dyn Waiting>, RestoreError>>;
}

/// A VMM that has not loaded the device state yet.
pub(crate) trait Waiting: fmt::Debug + Send + Sync {
    /// The pid of its process.
    fn pid(&self) -> u32;

    /// Loads the device state, and starts the task that owns the VM. The guest stays paused.
    fn load(self: Box<Self>) -> BoxFuture<'static, Result<Vm, RestoreError>>;
}

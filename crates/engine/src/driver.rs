//! What a driver implements: with what a running VM needs of it ([`crate::vm`]), all that the rest of the engine asks of a
//! VMM. Nothing else knows which VMM runs.
//!
//! ```text
//!   Engine ──▶ Driver:    validate, decide, boot, restorer, reattach   one for each engine
//!   restore ─▶ Restorer:  a VMM with a snapshot's memory, waiting      one for each snapshot that is forked
//!   owner ───▶ Monitor:   pause, resume, power down, does it run?      one for each VM
//!         ◀─── MonitorEvents
//!   save ────▶ Saver:     memory, devices and disks into a draft       one for each VM that can be saved
//!   vm ──────▶ Transport: a byte stream to the agent                   one for each VM
//! ```
//! How a driver of another VMM fits in here: `docs/design/0006-drivers.md`.

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

/// One kind of VMM. [`Engine`](crate::Engine) is made of it, alike for all.
pub(crate) trait Driver: fmt::Debug + Send + Sync {
    /// `$KILN_HOME`.
    fn home(&self) -> &Utf8Path;

    /// What its guests have.
    fn capabilities(&self) -> Capabilities;

    /// Set once VMs without an owner were looked after.
    fn recovered(&self) -> &OnceCell<()>;

    /// Refuses a spec that this driver could not start. Looks at files and the host's size, no more.
    fn validate(&self, spec: &VmSpec) -> Result<(), LaunchError>;

    /// Decides what runs the instructions of a spec that is valid.
    fn decide<'a>(&'a self, spec: &'a VmSpec) -> BoxFuture<'a, Result<Acceleration, LaunchError>>;

    /// What a VM of this spec, whose acceleration is decided, runs on.
    fn machine<'a>(&'a self, spec: &'a VmSpec) -> BoxFuture<'a, Result<MachineIdentity, LaunchError>>;

    /// Boots a VM of a spec that was checked.
    fn boot<'a>(&'a self, spec: &'a VmSpec, on: Acceleration) -> BoxFuture<'a, Result<Vm, LaunchError>>;

    /// What restores this snapshot, whose spec was checked. The caller compares the machine with the one that was saved.
    fn restorer<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        spec: &'a VmSpec,
    ) -> BoxFuture<'a, Result<Arc<dyn Restorer>, RestoreError>>;

    /// Connects to a VMM that outlived its owner. On failure the VMM goes on as it did.
    fn reattach<'a>(
        &'a self,
        dir: &'a VmDir,
        spec: &'a VmSpec,
        vmm: &'a Orphan,
    ) -> BoxFuture<'a, Result<Ends, AdoptError>>;
}

/// Restores one snapshot, any number of times.
pub(crate) trait Restorer: fmt::Debug + Send + Sync {
    /// What its VMs run on.
    fn machine(&self) -> &MachineIdentity;

    /// Starts a VMM for the VM of `dir`, which is told of everything but not to load the state of the devices: what it
    /// takes so far is time that a pool spends ahead. The spec is that fork's own: the snapshot's with its volumes and
    /// attachments.
    fn start(&self, dir: VmDir, spec: VmSpec) -> BoxFuture<'_, Result<Box<dyn Waiting>, RestoreError>>;
}

/// A VMM that waits to load its state.
pub(crate) trait Waiting: fmt::Debug + Send + Sync {
    /// Its process.
    fn pid(&self) -> u32;

    /// Loads the state, and hands the VM over to the task that owns it. The guest is paused.
    fn load(self: Box<Self>) -> BoxFuture<'static, Result<Vm, RestoreError>>;
}

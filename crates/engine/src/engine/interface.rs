//! The one thing every driver does: turn a [`VmSpec`] into a running [`Vm`], and snapshots into more of them.

use std::sync::Arc;

use camino::Utf8Path;

use super::adopt;
use super::fork::{Fork, ForkSpec};
use super::launch;
use super::ready::{self, ReadyError, ReadyRequest};
use super::restore::{self, Template};
use crate::driver::{AdoptError, Capabilities, Driver, LaunchError, RestoreError};
use crate::snapshot::Snapshot;
use crate::spec::{Acceleration, VmSpec};
use crate::vm::{BoxFuture, Vm};
use crate::vm_dir::VmId;

/// Starts VMs. One engine serves any number of VMs at once.
pub trait Engine: Send + Sync {
    /// What guests of this engine have.
    fn capabilities(&self) -> Capabilities;

    /// Where it keeps its VMs: `$KILN_HOME`.
    fn home(&self) -> &Utf8Path;

    /// What would run this spec's instructions. Decides
    /// [`AccelerationRequest::Auto`](crate::AccelerationRequest::Auto), which takes a probe guest of a few seconds once;
    /// [`launch`](Self::launch) does the same if this was not asked before.
    ///
    /// # Errors
    /// The spec can't be started on this host.
    fn decide<'a>(&'a self, spec: &'a VmSpec) -> BoxFuture<'a, Result<Acceleration, LaunchError>>;

    /// Starts a VM. Ready means that the VMM runs and answers; the guest may still be booting.
    ///
    /// # Errors
    /// [`LaunchError`]; nothing is left behind then.
    fn launch(&self, spec: VmSpec) -> BoxFuture<'_, Result<Vm, LaunchError>>;

    /// Restores a snapshot as VMs that run at once. Each is its own machine before any of its commands goes on; where
    /// one of them can't be made so, none is handed out.
    ///
    /// ```no_run
    /// # async fn example(engine: &dyn kiln_engine::Engine, spec: kiln_engine::VmSpec) -> Result<(), Box<dyn std::error::Error>> {
    /// use kiln_engine::snapshot::{AfterSave, SnapshotRequest};
    /// use kiln_engine::{ForkSpec, VmSpec};
    /// use std::time::Duration;
    ///
    /// // Boot once, prepare once …
    /// let vm = engine.launch(VmSpec { forkable: true, ..spec }).await?;
    /// let link = vm.connect(Duration::from_secs(60)).await?;
    /// // … save it, and fork it many times.
    /// let request = SnapshotRequest { link: Some(&link), then: AfterSave::End, label: "prepared".into() };
    /// let snapshot = vm.snapshot(request).await?;
    /// for fork in engine.restore(&snapshot, ForkSpec { count: 8, ..ForkSpec::default() }).await? {
    ///     println!("{} runs", fork.vm.id());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`RestoreError`]; nothing is left behind then.
    fn restore<'a>(&'a self, snapshot: &'a Snapshot, forks: ForkSpec)
    -> BoxFuture<'a, Result<Vec<Fork>, RestoreError>>;

    /// Resumes a VM that [`AfterSave::Stop`](crate::snapshot::AfterSave::Stop) stopped, as the same machine under the
    /// same id, with the same volumes and on the same TAP devices: those are opened again.
    ///
    /// # Errors
    /// [`RestoreError`]; the VM is stopped as before then. One whose TAP device is gone is resumed once there is one of that
    /// name again.
    fn resume<'a>(&'a self, vm: &'a VmId) -> BoxFuture<'a, Result<Fork, RestoreError>>;

    /// Makes a snapshot ready to be forked time and again, for a [`ForkPool`](crate::ForkPool), say: what it takes to
    /// find out whether it fits this host is paid once. `forks.count` is not looked at.
    ///
    /// # Errors
    /// The snapshot can't be restored on this host.
    fn template<'a>(&'a self, snapshot: &'a Snapshot, forks: ForkSpec)
    -> BoxFuture<'a, Result<Template, RestoreError>>;

    /// The ready-made snapshot of a spec's VM, made if it is not there: a boot of some seconds, once. Afterwards it takes
    /// a few looks at files.
    ///
    /// It is kept for as long as image, kernel, VMM, acceleration, CPUs, memory and all else of the spec are the same. Its
    /// network cards are unplugged, whatever the spec says of them, so that its forks go onto any network.
    ///
    /// # Errors
    /// [`ReadyError`]
    fn ready<'a>(&'a self, request: ReadyRequest<'a>) -> BoxFuture<'a, Result<Snapshot, ReadyError>>;

    /// Takes over a VM with [`OwnerLoss::KeepRunning`](crate::OwnerLoss::KeepRunning) whose owner is gone, as
    /// [`recover`](crate::recover) names it [`Adoptable`](crate::Outcome::Adoptable). From then on it is this process's
    /// VM: dropping the handle ends it.
    ///
    /// The guest link is started again with [`Vm::connect`]. If the owner was lost in the middle of a save, the guest's
    /// commands may still be frozen for it: send `Thaw` before anything else, which does no harm elsewhere. Console bytes
    /// from before are in the log; those that were printed while there was no owner are lost. How the VMM exits will be
    /// unknown, because it is not this process's child.
    ///
    /// # Errors
    /// [`AdoptError`]; the VM is then as it was.
    fn adopt<'a>(&'a self, vm: &'a VmId) -> BoxFuture<'a, Result<Vm, AdoptError>>;
}

/// All that a driver does for an engine may block: each is an `operation`.
impl<D: Driver + Clone + 'static> Engine for D {
    fn capabilities(&self) -> Capabilities {
        Driver::capabilities(self)
    }

    fn home(&self) -> &Utf8Path {
        Driver::home(self)
    }

    fn decide<'a>(&'a self, spec: &'a VmSpec) -> BoxFuture<'a, Result<Acceleration, LaunchError>> {
        Box::pin(launch::decide(shared(self), spec.clone()))
    }

    fn launch(&self, spec: VmSpec) -> BoxFuture<'_, Result<Vm, LaunchError>> {
        Box::pin(launch::launch(shared(self), spec))
    }

    fn restore<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        forks: ForkSpec,
    ) -> BoxFuture<'a, Result<Vec<Fork>, RestoreError>> {
        Box::pin(restore::restore(shared(self), snapshot.clone(), forks))
    }

    fn resume<'a>(&'a self, vm: &'a VmId) -> BoxFuture<'a, Result<Fork, RestoreError>> {
        Box::pin(restore::resume(shared(self), vm.clone()))
    }

    fn template<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        forks: ForkSpec,
    ) -> BoxFuture<'a, Result<Template, RestoreError>> {
        Box::pin(restore::template(shared(self), snapshot.clone(), forks))
    }

    fn ready<'a>(&'a self, request: ReadyRequest<'a>) -> BoxFuture<'a, Result<Snapshot, ReadyError>> {
        Box::pin(ready::ready(shared(self), request))
    }

    fn adopt<'a>(&'a self, vm: &'a VmId) -> BoxFuture<'a, Result<Vm, AdoptError>> {
        Box::pin(adopt::adopt(shared(self), vm.clone()))
    }
}

/// The driver, for as long as an operation needs it.
fn shared<D: Driver + Clone + 'static>(driver: &D) -> Arc<dyn Driver> {
    Arc::new(driver.clone())
}

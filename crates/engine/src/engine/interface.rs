//! The interface of every engine: [`VmSpec`]s and snapshots in, running [`Vm`]s out.

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
    /// The features of its guests.
    fn capabilities(&self) -> Capabilities;

    /// The directory of its VMs and snapshots: `$KILN_HOME`.
    fn home(&self) -> &Utf8Path;

    /// Decides between KVM and TCG for a spec, as [`launch`](Self::launch) does. For
    /// [`AccelerationRequest::Auto`](crate::AccelerationRequest::Auto) the first call may boot a probe guest, which
    /// takes some seconds. The result is remembered.
    ///
    /// # Errors
    /// The spec can't be started on this host.
    fn decide<'a>(&'a self, spec: &'a VmSpec) -> BoxFuture<'a, Result<Acceleration, LaunchError>>;

    /// Starts a VM. When this returns, the VMM runs and answers. The guest may still be booting.
    ///
    /// # Errors
    /// [`LaunchError`]. Nothing of the VM is left then.
    fn launch(&self, spec: VmSpec) -> BoxFuture<'_, Result<Vm, LaunchError>>;

    /// Restores a snapshot as one or more running VMs. Each has its own clock, randomness and names before any of its
    /// commands continues. If one fork fails, all of them end and the caller gets the error.
    ///
    /// ```no_run
    /// # async fn example(
    /// #     engine: &dyn kiln_engine::Engine,
    /// #     spec: kiln_engine::VmSpec,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
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
    /// [`RestoreError`]. Nothing of the forks is left then.
    fn restore<'a>(&'a self, snapshot: &'a Snapshot, forks: ForkSpec)
    -> BoxFuture<'a, Result<Vec<Fork>, RestoreError>>;

    /// Resumes a VM that [`AfterSave::Stop`](crate::snapshot::AfterSave::Stop) stopped. It is the same machine with the
    /// same id and the same volumes. Its TAP devices are opened again.
    ///
    /// # Errors
    /// [`RestoreError`]. The VM stays stopped then. If a TAP device is missing, a later attempt succeeds once a device
    /// of that name exists again.
    fn resume<'a>(&'a self, vm: &'a VmId) -> BoxFuture<'a, Result<Fork, RestoreError>>;

    /// Checks once that a snapshot fits this host, so that it can then be forked many times, for example by a
    /// [`ForkPool`](crate::ForkPool). Ignores `forks.count`.
    ///
    /// # Errors
    /// The snapshot can't be restored on this host.
    fn template<'a>(&'a self, snapshot: &'a Snapshot, forks: ForkSpec)
    -> BoxFuture<'a, Result<Template, RestoreError>>;

    /// The ready-made snapshot of a spec's VM. If it does not exist, a VM is booted and saved, which takes some
    /// seconds. Later calls only read a few files.
    ///
    /// It is used as long as the image, the VMM, the acceleration and the spec are the same. Its network cards are
    /// unplugged, so its forks can be put on any network, except cards that are
    /// [idle](crate::Attachment::Idle) in the spec: they stay idle, so its forks need a TAP device, and have its full speed.
    ///
    /// # Errors
    /// [`ReadyError`]
    fn ready<'a>(&'a self, request: ReadyRequest<'a>) -> BoxFuture<'a, Result<Snapshot, ReadyError>>;

    /// Takes over a VM with [`OwnerLoss::KeepRunning`](crate::OwnerLoss::KeepRunning) whose owner is gone:
    /// [`recover`](crate::recover) reports it as [`Adoptable`](crate::Outcome::Adoptable). This process owns the VM
    /// from then on, so dropping the handle ends the VM.
    ///
    /// Start the guest link again with [`Vm::connect`]. If the owner was lost during a save, the guest's commands may
    /// still be frozen. So send `Thaw` first. It does nothing if they are not frozen. The console's output from before
    /// is in the log. Output that was printed without an owner is lost. The exit status of the VMM will be unknown,
    /// because the VMM is not a child of this process.
    ///
    /// # Errors
    /// [`AdoptError`]. The VM stays as it was.
    fn adopt<'a>(&'a self, vm: &'a VmId) -> BoxFuture<'a, Result<Vm, AdoptError>>;
}

/// Functions of a driver may block, so each runs as an `operation`.
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

/// A driver for an operation, which may outlive the engine's reference.
fn shared<D: Driver + Clone + 'static>(driver: &D) -> Arc<dyn Driver> {
    Arc::new(driver.clone())
}

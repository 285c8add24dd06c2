//! The one thing every driver does: turn a [`VmSpec`] into a running [`Vm`], and snapshots into more of them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use crate::acceleration::KvmState;
use crate::adopt::{self, AdoptError};
use crate::blocking::operation;
use crate::confine::PolicyError;
use crate::driver::{Driver, VmmError};
use crate::error::RestoreError;
use crate::fork::{Fork, ForkSpec};
use crate::home::HomeError;
use crate::ready::{self, ReadyError, ReadyRequest};
use crate::recover;
use crate::restore::{self, Template};
use crate::snapshot::Snapshot;
use crate::spec::{Acceleration, SpecError, Tap, VmSpec};
use crate::tap::TapError;
use crate::vm::{Vm, VmmStatus};
use crate::vm_dir::VmId;

/// A future behind a pointer, so that [`Engine`] can be a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

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

    /// Goes on with a VM that [`AfterSave::Stop`](crate::snapshot::AfterSave::Stop) stopped, as the same machine under the
    /// same id, with the same volumes and on the same TAP devices: those are opened anew.
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
    /// The guest link is begun anew with [`Vm::connect`]. If the owner was lost in the middle of a save, the guest's
    /// commands may still be frozen for it: send `Thaw` before anything else, which does no harm elsewhere. Console bytes
    /// from before are in the log; those that were printed while there was no owner are lost. How the VMM exits will be
    /// unknown, because it is not this process's child.
    ///
    /// # Errors
    /// [`AdoptError`]; the VM is then as it was.
    fn adopt<'a>(&'a self, vm: &'a VmId) -> BoxFuture<'a, Result<Vm, AdoptError>>;
}

/// All that a driver does for an engine may block: each is an [`operation`].
impl<D: Driver + Clone + 'static> Engine for D {
    fn capabilities(&self) -> Capabilities {
        Driver::capabilities(self)
    }

    fn home(&self) -> &Utf8Path {
        Driver::home(self)
    }

    fn decide<'a>(&'a self, spec: &'a VmSpec) -> BoxFuture<'a, Result<Acceleration, LaunchError>> {
        Box::pin(decide(shared(self), spec.clone()))
    }

    fn launch(&self, spec: VmSpec) -> BoxFuture<'_, Result<Vm, LaunchError>> {
        Box::pin(launch(shared(self), spec))
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

/// Checks a spec, clears up after earlier processes, and decides what runs the spec's instructions.
pub(crate) async fn decide(driver: Arc<dyn Driver>, spec: VmSpec) -> Result<Acceleration, LaunchError> {
    operation(async move { decide_here(&*driver, &spec).await }).await
}

async fn decide_here(driver: &dyn Driver, spec: &VmSpec) -> Result<Acceleration, LaunchError> {
    driver.validate(spec)?;
    recover::once(driver).await;
    driver.decide(spec).await
}

async fn launch(driver: Arc<dyn Driver>, spec: VmSpec) -> Result<Vm, LaunchError> {
    operation(async move {
        let acceleration = decide_here(&*driver, &spec).await?;
        driver.boot(&spec, acceleration).await
    })
    .await
}

/// The driver, for as long as an operation needs it.
fn shared<D: Driver + Clone + 'static>(driver: &D) -> Arc<dyn Driver> {
    Arc::new(driver.clone())
}

/// How far a guest is from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// None: the guest is a process of this user.
    Process,
    /// A VMM in user space alone.
    Emulated,
    /// Hardware virtualisation below the VMM.
    Hardware,
}

/// What guests of an engine have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Name of the driver.
    pub driver: &'static str,
    /// The guest has a kernel of its own.
    pub kernel: bool,
    /// The guest has a console that gives [`VmEvent::Console`](crate::VmEvent::Console).
    pub console: bool,
    /// The guest can be paused.
    pub pause: bool,
    /// The guest can have disks.
    pub disks: bool,
    /// The guest can have network cards.
    pub nics: bool,
    /// The guest can be saved and forked.
    pub snapshots: bool,
    /// What every guest of this engine has at least.
    pub isolation: Isolation,
}

/// Why a VM did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The spec can't be started on this host.
    #[error("the VM can't be started as asked for")]
    Spec(#[from] SpecError),
    /// Other users could have put anything into the home.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// This engine's guests don't have what the spec asks for.
    #[error("the {driver} engine has no {what}")]
    Unsupported {
        /// Name of the driver.
        driver: &'static str,
        /// What the spec asks for.
        what: &'static str,
    },
    /// `$KILN_CONFINE_OFF` names what is no measure.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The VMM is not installed, or not where it was said to be.
    #[error("`{program}` was not found")]
    VmmMissing {
        /// What was looked for.
        program: Utf8PathBuf,
    },
    /// KVM was asked for and can't run guests here.
    #[error("KVM can't be used: {}", .0.reason())]
    NoKvm(KvmState),
    /// The kernel, the initramfs or a disk can't be read.
    #[error("failed to read `{path}`")]
    Image {
        /// Which.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VM's directory could not be made.
    #[error("failed to make the VM's directory below `{path}`")]
    Directory {
        /// Where.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VMM could not be started.
    #[error("failed to start `{program}`")]
    Spawn {
        /// What was to be started.
        program: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VMM ended before the guest ran.
    #[error("`{program}` ended at once with {status}: {stderr}")]
    VmmFailed {
        /// The VMM.
        program: Utf8PathBuf,
        /// How it ended.
        status: VmmStatus,
        /// The end of what it said.
        stderr: String,
    },
    /// A network card can't be attached.
    #[error("failed to attach network card {index} to {tap}")]
    Attachment {
        /// Its place in the spec.
        index: usize,
        /// Where to.
        tap: Tap,
        /// Why not.
        #[source]
        source: TapError,
    },
    /// The backend of a device keeps the VM from starting.
    #[error("{device} {problem}")]
    Backend {
        /// What it is and where its socket is, for people.
        device: String,
        /// What went wrong.
        problem: String,
    },
    /// The VMM runs and can't be talked to.
    #[error("`{program}` does not answer")]
    Monitor {
        /// The VMM.
        program: Utf8PathBuf,
        /// Why.
        #[source]
        source: VmmError,
    },
}

//! Restores a snapshot: new VMMs map its memory and load its device state.
//!
//! ```text
//!   check machine, budget ─▶ for each fork: VmDir ─▶ Restorer: a VMM, waiting ─▶ state loaded
//!       ─▶ resume ─▶ link with Sync: clock, randomness, names ─▶ Fork
//! ```
//! The driver decides how a VMM gets the snapshot's memory, disks and devices, see [`Restorer`]. This module makes sure
//! that a fork has its own identity before a caller gets it, and that a failed fork leaves nothing.
//!
//! Each stage ([`NewFork`], [`Started`], [`Linked`]) owns all that it has made, and dropping it removes that. So an
//! error, a deadline and a cancelled future take the same path. An error or a deadline is returned only after the VMM
//! is gone, because it holds what the caller uses next: the TAP device of the VM that is booted instead, the lock of a
//! volume. `Running` is written to the journal only after Sync:
//! until then recovery removes the fork, so a guest that still has the identity of its snapshot is never adopted.

use std::sync::Arc;
use std::time::Duration;

use camino::Utf8PathBuf;
use kiln_wire::{ExecRequest, Text};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::fork::{self, Fork, ForkIdentity, ForkPart, ForkSpec, NicPart, VolumeFile, fresh_identity};
use super::recover;
use crate::blocking::{OffRuntime, blocking, operation};
use crate::driver::{Driver, FORKS_MAX, LaunchError, RestoreError, Restorer, Waiting};
use crate::failpoint;
use crate::home::Home;
use crate::host;
use crate::link::{GuestLink, LinkError, Renewal};
use crate::snapshot::{Snapshot, SnapshotError, SnapshotStore};
use crate::spec::VmSpec;
use crate::vm::{ControlError, Vm};
use crate::vm_dir::{Journal, State, VmDir, VmId};

/// Memory of a fork beside what it shares, for the budget. 20 forks of an idle guest took a little less each.
const FORK_MEMORY_MIB: u64 = 48;
/// Memory that is left to the host.
const HOST_MEMORY_MIB: u64 = 256;
/// The command that a held fork runs if its pool names none.
const WARM_UP: &str = "/bin/true";
/// A VMM answers when its guest lets it, some milliseconds after the guest resumed.
const RESUME_DEADLINE: Duration = Duration::from_secs(20);

/// A snapshot that fits this host, and can be forked any number of times.
///
/// ```no_run
/// # async fn example(
/// #     engine: &dyn kiln_engine::Engine,
/// #     snapshot: &kiln_engine::snapshot::Snapshot,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// use kiln_engine::ForkSpec;
///
/// let template = engine.template(snapshot, ForkSpec::default()).await?;
/// let one = template.fork().await?;
/// let other = template.fork().await?;
/// assert_ne!(one.vm.id(), other.vm.id());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Template {
    vms: Utf8PathBuf,
    snapshot: Snapshot,
    spec: VmSpec,
    restorer: Arc<dyn Restorer>,
    identity: ForkIdentity,
    deadline: Duration,
    warm_up: Vec<ExecRequest>,
}

/// Restores a snapshot.
pub(crate) async fn restore(
    driver: Arc<dyn Driver>,
    snapshot: Snapshot,
    forks: ForkSpec,
) -> Result<Vec<Fork>, RestoreError> {
    let (count, mut parts) = (forks.count, forks.parts.clone());
    blocking(move || check_budget(count)).await?;
    if parts.len() > count {
        return Err(RestoreError::Part { problem: format!("{} parts for {count} forks", parts.len()) });
    }
    parts.resize_with(count, ForkPart::default);
    let template = Arc::new(template(driver, snapshot, forks).await?);
    if count == 1 {
        return Ok(vec![template.fork_with(parts.remove(0)).await?]);
    }
    // Checked before the first fork starts: all of them, or none.
    template.check(parts.clone()).await?;
    // The start of a fork is mostly CPU time of its VMM. With more at a time, all of them would be ready later, and
    // none earlier. The deadline of a fork starts when its turn comes.
    let at_once = Arc::new(Semaphore::new(2 * host::limits().cpus as usize));
    let mut tasks = JoinSet::new();
    for (number, part) in parts.into_iter().enumerate() {
        let (template, at_once) = (Arc::clone(&template), Arc::clone(&at_once));
        tasks.spawn(async move {
            // The semaphore is closed after a failure.
            let _permit = at_once.acquire_owned().await.map_err(|_| ControlError::Ended)?;
            template.fork_with(part).await.map(|fork| (number, fork))
        });
    }
    // If this future is dropped, that drops `tasks`, which aborts the forks at their next await, and `ready`. Each fork
    // drops the stage that it has reached, so nothing is left of any.
    let (mut ready, mut failure) = (Vec::with_capacity(count), None);
    while let Some(joined) = tasks.join_next().await {
        // A task that can't be joined has panicked, or the runtime ends.
        match joined.unwrap_or(Err(ControlError::Ended.into())) {
            Ok(fork) => ready.push(fork),
            Err(error) => {
                // Those that wait for their turn end at once. Those that have begun are few, and their end is awaited,
                // because the error promises that they are gone.
                at_once.close();
                failure.get_or_insert(error);
            }
        }
    }
    if let Some(error) = failure {
        let ends: Vec<_> = ready.iter().map(|(_, fork): &(usize, Fork)| fork.vm.ended()).collect();
        drop(ready);
        for ended in ends {
            ended.await;
        }
        return Err(error);
    }
    ready.sort_by_key(|(number, _)| *number);
    Ok(ready.into_iter().map(|(_, fork)| fork).collect())
}

/// Resumes a stopped VM.
pub(crate) async fn resume(driver: Arc<dyn Driver>, id: VmId) -> Result<Fork, RestoreError> {
    let (template, new) = operation(async move { reopen(&*driver, &id).await }).await?;
    template.finish(new).await
}

/// Takes over the directory of a stopped VM, and opens the snapshot at which it stopped.
async fn reopen(driver: &dyn Driver, id: &VmId) -> Result<(Template, NewFork), RestoreError> {
    recover::once(driver).await;
    let home = Home::at(driver.home());
    let dir = VmDir::reopen(&home.vms(), id)?;
    let Some(State::Stopped { snapshot: stopped }) = dir.journal().last().map(|last| last.state) else {
        return Err(RestoreError::NotStopped(id.clone()));
    };
    let snapshot = SnapshotStore::new(&home).open(&stopped)?;
    let path = dir.path().to_owned();
    let spec = dir.spec().map_err(|source| SnapshotError::io("read the spec in", path, source))?;
    let forks = ForkSpec { identity: ForkIdentity::Keep, owner_loss: spec.owner_loss, ..ForkSpec::default() };
    let template = prepare(driver, &snapshot, &forks).await?;
    // It is the same machine, so it has the same volumes, and its memory has cached parts of them. So they must not
    // have changed. Its TAP devices are opened again.
    if let Some(volume) = snapshot.manifest().volumes.iter().find(|volume| !volume.is_unchanged()) {
        return Err(RestoreError::DiskMoved { id: snapshot.id().clone(), path: volume.path.clone() });
    }
    let volumes = VolumeFile::of(&spec);
    let nics = spec.nics.iter().map(|nic| NicPart { attachment: nic.attachment.clone(), ..NicPart::default() });
    let part = ForkPart { volumes, nics: nics.collect(), ..ForkPart::default() };
    let spec = part.apply(snapshot.manifest(), &template.spec)?;
    dir.journal().append(State::Restoring { snapshot: stopped })?;
    dir.stay_stopped_on_drop();
    Ok((template, NewFork { dir: OffRuntime::new(dir), spec, part }))
}

/// Refuses more forks than this host can hold.
pub(crate) fn check_budget(count: usize) -> Result<(), RestoreError> {
    let refuse = |why: String| Err(RestoreError::Budget { count, why });
    if count == 0 {
        return refuse("at least 1".into());
    }
    if count > FORKS_MAX {
        return refuse(format!("at most {FORKS_MAX} at a time"));
    }
    let (wanted, free) = (count as u64 * FORK_MEMORY_MIB + HOST_MEMORY_MIB, host::memory_available_mib());
    match free {
        Some(free) if free < wanted => {
            refuse(format!("they would take about {wanted} MiB of memory, and this host has {free} MiB available"))
        }
        _ => Ok(()),
    }
}

/// Checks whether a snapshot can be restored on this host.
pub(crate) async fn template(
    driver: Arc<dyn Driver>,
    snapshot: Snapshot,
    forks: ForkSpec,
) -> Result<Template, RestoreError> {
    operation(async move { prepare(&*driver, &snapshot, &forks).await }).await
}

async fn prepare(driver: &dyn Driver, snapshot: &Snapshot, forks: &ForkSpec) -> Result<Template, RestoreError> {
    let manifest = snapshot.manifest();
    let spec = VmSpec { owner_loss: forks.owner_loss, ..manifest.spec.clone() };
    check_spec(&spec)?;
    let restorer = driver.restorer(snapshot, &spec).await?;
    if let Some((what, saved, here)) = manifest.machine.difference(restorer.machine()) {
        return Err(RestoreError::OtherMachine { id: snapshot.id().clone(), what, saved, here });
    }
    if let Some(disk) = manifest.external.iter().find(|disk| !disk.is_unchanged()) {
        return Err(RestoreError::DiskMoved { id: snapshot.id().clone(), path: disk.path.clone() });
    }
    recover::once(driver).await;
    Ok(Template {
        vms: Home::at(driver.home()).vms(),
        snapshot: snapshot.clone(),
        spec,
        restorer,
        identity: forks.identity,
        deadline: forks.deadline,
        warm_up: forks.warm_up.clone(),
    })
}

/// The spec is read from disk, and becomes arguments of a VMM.
fn check_spec(spec: &VmSpec) -> Result<(), RestoreError> {
    if let Some(device) = spec.unmigratable() {
        return Err(RestoreError::Unmigratable { device });
    }
    spec.validate_size(host::limits()).and_then(|()| spec.validate_names()).map_err(LaunchError::from)?;
    Ok(())
}

impl Template {
    /// Makes one more fork.
    ///
    /// # Errors
    /// See [`Engine::restore`](crate::Engine::restore).
    pub async fn fork(&self) -> Result<Fork, RestoreError> {
        self.fork_with(ForkPart::default()).await
    }

    /// Makes one more fork with its own parts.
    ///
    /// # Errors
    /// See [`Engine::restore`](crate::Engine::restore).
    pub async fn fork_with(&self, part: ForkPart) -> Result<Fork, RestoreError> {
        self.finish(self.begin(part).await?).await
    }

    /// Refuses parts that do not fit the snapshot or each other.
    pub(crate) async fn check(&self, parts: Vec<ForkPart>) -> Result<(), RestoreError> {
        let (snapshot, spec) = (self.snapshot.clone(), self.spec.clone());
        blocking(move || fork::check_parts(&parts, snapshot.manifest(), &spec)).await
    }

    /// Makes a fork's directory.
    async fn begin(&self, part: ForkPart) -> Result<NewFork, RestoreError> {
        let (vms, spec, snapshot) = (self.vms.clone(), self.spec.clone(), self.snapshot.clone());
        blocking(move || {
            let spec = part.apply(snapshot.manifest(), &spec)?;
            let dir = VmDir::create_fork(&vms, &spec, snapshot.id().clone());
            let dir = dir.map_err(|source| LaunchError::Directory { path: vms, source })?;
            failpoint::hit("restore.dir")?;
            Ok(NewFork { dir: OffRuntime::new(dir), spec, part })
        })
        .await
    }

    /// Takes one fork from its directory to its own identity.
    async fn finish(&self, new: NewFork) -> Result<Fork, RestoreError> {
        let deadline = Instant::now() + self.deadline;
        let NewFork { dir, spec, part } = new;
        let (journal, restorer) = (dir.journal().clone(), Arc::clone(&self.restorer));
        // One operation, because each switch to a thread and back takes time that a fork does not have. The steps of a
        // VMM have deadlines of their own. Their sum is longer than a short deadline of the caller.
        let (late, started) = (self.late(), async move { restorer.start(dir.into_inner(), spec).await?.load().await });
        let vm = operation(async move { timeout_at(deadline, started).await.unwrap_or(Err(late)) }).await?;
        self.identify(vm, journal, part, deadline).await
    }

    /// Takes one fork from its loaded state to its own identity.
    async fn identify(
        &self,
        vm: Vm,
        journal: Journal,
        part: ForkPart,
        deadline: Instant,
    ) -> Result<Fork, RestoreError> {
        undone_on_error(vm.ended(), async {
            let steps = async { Linked::new(vm, journal, part, deadline).await?.renew(self, deadline).await };
            // Dropping the future at the deadline drops the stage that it has reached, and that undoes the fork.
            timeout_at(deadline, steps).await.unwrap_or_else(|_| Err(self.late()))
        })
        .await
    }

    fn late(&self) -> RestoreError {
        LinkError::TimedOut { waiting_for: "answer", waited: self.deadline }.into()
    }
}

/// Steps that own a VM. Their error is returned after the end of the VM.
async fn undone_on_error<T>(
    ended: impl Future<Output = ()>,
    steps: impl Future<Output = Result<T, RestoreError>>,
) -> Result<T, RestoreError> {
    let outcome = steps.await;
    if outcome.is_err() {
        ended.await;
    }
    outcome
}

/// A fork whose VMM has not started.
#[derive(Debug)]
struct NewFork {
    // Dropping it removes the directory.
    dir: OffRuntime<VmDir>,
    /// The snapshot's spec, with the volumes and attachments of this fork.
    spec: VmSpec,
    part: ForkPart,
}

/// A fork whose VMM waits.
#[derive(Debug)]
pub(crate) struct Started {
    // Dropping it ends the process and removes the directory.
    vmm: OffRuntime<Box<dyn Waiting>>,
    journal: Journal,
    part: ForkPart,
}

impl Started {
    async fn new(template: &Template, new: NewFork) -> Result<Self, RestoreError> {
        let NewFork { dir, spec, part } = new;
        let (journal, restorer) = (dir.journal().clone(), Arc::clone(&template.restorer));
        let vmm = operation(async move { restorer.start(dir.into_inner(), spec).await.map(OffRuntime::new) }).await?;
        Ok(Self { vmm, journal, part })
    }

    /// Loads its state and lets it run until it has its own identity.
    async fn identify(self, template: &Template, deadline: Instant) -> Result<Fork, RestoreError> {
        let Self { vmm, journal, part } = self;
        let vm = operation(async move { vmm.into_inner().load().await }).await?;
        template.identify(vm, journal, part, deadline).await
    }
}

/// A fork whose agent answers, but that does not have its own identity yet.
#[derive(Debug)]
struct Linked {
    vm: Vm,
    link: GuestLink,
    journal: Journal,
    part: ForkPart,
}

impl Linked {
    /// Lets a fork run until its agent answers. The resume and the link start at the same time: the agent can answer as
    /// soon as the guest runs, and QEMU's reply to `cont` may come some milliseconds later.
    async fn new(vm: Vm, journal: Journal, part: ForkPart, deadline: Instant) -> Result<Self, RestoreError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let run = async { Ok::<_, RestoreError>(vm.resume_within(RESUME_DEADLINE).await?) };
        let link = async { Ok::<_, RestoreError>(vm.connect(left).await?) };
        let ((), link) = tokio::try_join!(run, link)?;
        Ok(Self { vm, link, journal, part })
    }

    async fn renew(self, template: &Template, deadline: Instant) -> Result<Fork, RestoreError> {
        let Self { vm, link, journal, part } = self;
        let identity = match template.identity {
            ForkIdentity::Fresh => Some(fresh_identity(vm.id(), &template.spec, &part)),
            ForkIdentity::Keep => None,
        };
        let renewal = Renewal { identity, network: part.network, mounts: part.mounts };
        link.renew(renewal, deadline.saturating_duration_since(Instant::now())).await?;
        // Only now may recovery adopt the fork. Until Sync has succeeded, the guest has the clock, the randomness and
        // the names of its snapshot. Two such guests would generate the same keys. So a crash before this line has to
        // lose the fork, and `Restoring` in the journal does that, even if the fork's spec keeps it running.
        blocking(move || {
            journal.append(State::Running)?;
            Ok::<_, RestoreError>(failpoint::hit("restore.running")?)
        })
        .await?;
        vm.shared.fate.remove_on_drop();
        Ok(Fork { vm, link })
    }
}

/// A fork that is ready to be taken.
#[derive(Debug)]
pub(crate) enum Held {
    /// It has its own identity, has run its warm-up, and is paused. All other commands are frozen as they were saved.
    Warm(Box<Fork>),
    /// Its commands would run before it has its own identity, so it has not started to run.
    Waiting(Started),
}

impl Held {
    /// Makes one more.
    pub(crate) async fn new(template: &Template, part: ForkPart) -> Result<Self, RestoreError> {
        let deadline = Instant::now() + template.deadline;
        let started = Started::new(template, template.begin(part).await?).await?;
        if !template.snapshot.manifest().frozen {
            return Ok(Self::Waiting(started));
        }
        let fork = started.identify(template, deadline).await?;
        // The first time, a guest reads files and takes memory for a command. Under TCG its code has to be translated,
        // too, which takes ten times as long as a short command.
        let warm_up = match &*template.warm_up {
            [] => &[ExecRequest { argv: vec![Text::from(WARM_UP)], ..ExecRequest::default() }][..],
            commands => commands,
        };
        for command in warm_up {
            match timeout_at(deadline, fork.link.run(command.clone(), b"", 0)).await {
                Ok(Err(error)) => tracing::debug!(%error, "a held fork did not run its first command"),
                Err(_) => tracing::debug!("the first command of a held fork does not end"),
                Ok(Ok(_)) => {}
            }
        }
        fork.link.freeze().await.map_err(RestoreError::Freeze)?;
        fork.vm.pause().await?;
        Ok(Self::Warm(Box::new(fork)))
    }

    /// Lets it run. Its commands run only after `ready`, whose error is the outer one.
    pub(crate) async fn take<E>(
        self,
        template: &Template,
        ready: impl Future<Output = Result<(), E>>,
    ) -> Result<Result<Fork, RestoreError>, E> {
        match self {
            Self::Warm(fork) => {
                let ended = fork.vm.ended();
                let (resumed, ready) = tokio::join!(fork.vm.resume(), ready);
                if let Err(error) = ready {
                    drop(fork);
                    ended.await;
                    return Err(error);
                }
                let taken = undone_on_error(ended, async {
                    resumed?;
                    // It gets the current time and fresh randomness, and then its commands are thawed.
                    fork.link.renew(Renewal::default(), template.deadline).await?;
                    Ok(*fork)
                });
                Ok(taken.await)
            }
            Self::Waiting(started) => {
                ready.await?;
                let deadline = Instant::now() + template.deadline;
                Ok(started.identify(template, deadline).await)
            }
        }
    }

    /// Ends it. When this returns, its VMM is gone.
    pub(crate) async fn end(self) {
        match self {
            Self::Warm(fork) => drop(fork.vm.kill().await),
            // Its drop waits for the process.
            Self::Waiting(started) => blocking(move || drop(started)).await,
        }
    }

    /// The pid of its VMM.
    pub(crate) fn pid(&self) -> u32 {
        match self {
            Self::Warm(fork) => fork.vm.pid(),
            Self::Waiting(started) => started.vmm.pid(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{SpecError, VhostUser, VhostUserDevice};

    #[test]
    fn a_spec_that_would_add_arguments_to_the_vmm_is_refused() {
        let good = VmSpec { memory_mib: 256, ..VmSpec::new("/k", "/i") };
        check_spec(&good).expect("is fine, also where its files are gone");
        let port = VmSpec { extra_ports: vec!["a,chardev=monitor".into()], ..good.clone() };
        let error = check_spec(&port).expect_err("has a comma");
        assert!(matches!(error, RestoreError::Launch(LaunchError::Spec(SpecError::Name { .. }))), "{error:?}");
        let large = VmSpec { memory_mib: u64::MAX, ..good };
        assert!(matches!(check_spec(&large), Err(RestoreError::Launch(LaunchError::Spec(SpecError::Memory { .. })))));
    }

    #[test]
    fn a_spec_with_a_device_of_another_process_is_refused_whatever_it_is() {
        let mac = "52:54:00:12:34:56".parse().expect("an address");
        let share = VhostUserDevice::Fs { tag: "share".into() };
        for kind in [VhostUserDevice::Blk, VhostUserDevice::Net { mac }, VhostUserDevice::Vsock, share] {
            let name = kind.name();
            let spec = VmSpec { vhost_user: vec![VhostUser::new(kind, "/s")], ..VmSpec::new("/k", "/i") };
            let error = check_spec(&spec).expect_err("no VMM saves that");
            assert_eq!(error.to_string(), format!("a VM with the {name} device `/s` can't be saved"));
        }
    }
}

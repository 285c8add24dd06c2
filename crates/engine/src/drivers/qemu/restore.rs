//! Restoring a snapshot: new QEMUs that map its memory privately and load the state of its devices.
//!
//! ```text
//!   check machine, budget ─▶ for each fork: VmDir, disk overlays ─▶ QEMU, waiting ─▶ pages of diffs into its memory
//!       ─▶ device state ─▶ cont ─▶ link with Sync: clock, randomness, names ─▶ Fork
//! ```
//! The pages of diffs come first: devices look at their queues in the guest's memory while they are loaded.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use kiln_wire::{ExecRequest, Text};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::args::{self, Accelerator, Facts, Memory, Start};
use super::blockdev::blockdev;
use super::launch::{self, Plan, Started};
use super::qmp::{Qmp, QmpEvent};
use super::save::{SavedMemory, Saver, blocking};
use super::{QemuEngine, guest_memory, machine};
use crate::acceleration;
use crate::engine::LaunchError;
use crate::failpoint;
use crate::fork::{FORKS_MAX, Fork, ForkIdentity, ForkSpec, fresh_identity};
use crate::home::Home;
use crate::host;
use crate::journal::{Journal, State};
use crate::link::{GuestLink, Renewal};
use crate::snapshot::{MANIFEST_FILE, Snapshot, SnapshotError, SnapshotStore, overlay};
use crate::vm::{ControlError, Vm};
use crate::vm_dir::{VmDir, VmId};
use crate::vm_spec::{Disk, DiskFormat, VmSpec};
use crate::vmm::VmmError;

/// Memory that a fork takes beside what it shares, as the budget counts it: what 20 forks of an idle guest were seen to
/// take, and some.
const FORK_MEMORY_MIB: u64 = 48;
/// Memory that forks leave to the host.
const HOST_MEMORY_MIB: u64 = 256;
/// What a held fork runs before it is taken.
const WARM_UP: &str = "/bin/true";
/// A QEMU loads the state of its devices in milliseconds.
const LOAD_DEADLINE: Duration = Duration::from_secs(20);

/// All that forks of one snapshot have in common.
#[derive(Debug)]
pub(super) struct Common {
    home: Utf8PathBuf,
    binary: Utf8PathBuf,
    snapshot: Snapshot,
    spec: VmSpec,
    facts: Facts,
    identity: ForkIdentity,
    deadline: Duration,
}

/// Restores a snapshot.
pub(super) async fn restore(
    engine: &QemuEngine,
    snapshot: &Snapshot,
    forks: ForkSpec,
) -> Result<Vec<Fork>, SnapshotError> {
    check_budget(forks.count)?;
    let common = Arc::new(prepare(engine, snapshot, &forks).await?);
    if forks.count == 1 {
        return Ok(vec![new_fork(&common).await?]);
    }
    // More at once would only wait for a CPU.
    let at_once = Arc::new(Semaphore::new(2 * host::limits().cpus as usize));
    let mut tasks = JoinSet::new();
    for _ in 0..forks.count {
        let (common, at_once) = (Arc::clone(&common), Arc::clone(&at_once));
        tasks.spawn(async move {
            let _permit = at_once.acquire_owned().await;
            new_fork(&common).await
        });
    }
    let mut ready = Vec::with_capacity(forks.count);
    while let Some(joined) = tasks.join_next().await {
        // The first failure drops the forks that are ready, and so ends them.
        ready.push(joined.map_err(|_| ControlError::Ended)??);
    }
    Ok(ready)
}

/// Goes on with a stopped VM.
pub(super) async fn resume(engine: &QemuEngine, id: &VmId) -> Result<Fork, SnapshotError> {
    engine.recover_once().await;
    let home = Home::at(engine.home());
    let (vms, wanted) = (home.vms(), id.clone());
    let dir = blocking(move || Ok(VmDir::reopen(&vms, &wanted)?)).await?;
    let Some(State::Stopped { snapshot: stopped }) = dir.journal().last().map(|last| last.state) else {
        return Err(SnapshotError::NotStopped(id.clone()));
    };
    let (store, wanted) = (SnapshotStore::new(&home), stopped.clone());
    let snapshot = blocking(move || store.open(&wanted)).await?;
    let path = dir.path().to_owned();
    let spec = dir.spec().map_err(|source| SnapshotError::io("read the spec in", path, source))?;
    let forks = ForkSpec { identity: ForkIdentity::Keep, owner_loss: spec.owner_loss, ..ForkSpec::default() };
    let common = prepare(engine, &snapshot, &forks).await?;
    dir.journal().append(State::Restoring { snapshot: stopped })?;
    dir.stay_stopped_on_drop();
    fork(&common, dir).await
}

fn new_dir(common: &Common) -> Result<VmDir, SnapshotError> {
    let vms = common.home.join("vms");
    let dir = VmDir::create_fork(&vms, &common.spec, common.snapshot.id().clone());
    let dir = dir.map_err(|source| LaunchError::Directory { path: vms, source })?;
    failpoint::hit("restore.dir")?;
    Ok(dir)
}

pub(super) fn check_budget(count: usize) -> Result<(), SnapshotError> {
    let refuse = |why: String| Err(SnapshotError::Budget { count, why });
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

pub(super) async fn prepare(
    engine: &QemuEngine,
    snapshot: &Snapshot,
    forks: &ForkSpec,
) -> Result<Common, SnapshotError> {
    let manifest = snapshot.manifest();
    let saved = &manifest.machine;
    let accelerator = match saved.acceleration.as_str() {
        "kvm" if saved.cpu.starts_with("host,-arch-capabilities") => Accelerator::KvmWithoutArchCapabilities,
        "kvm" => Accelerator::Kvm,
        _ => Accelerator::Tcg,
    };
    if accelerator != Accelerator::Tcg && acceleration::open_kvm().is_err() {
        let (id, what) = (snapshot.id().clone(), "acceleration");
        return Err(SnapshotError::OtherMachine { id, what, saved: "kvm".into(), here: "tcg".into() });
    }
    let spec = VmSpec { owner_loss: forks.owner_loss, ..manifest.spec.clone() };
    check_spec(&spec)?;
    let facts = machine::facts(engine.home(), engine.binary(), &spec, accelerator).await;
    let here = machine::identity(engine.home(), &spec, &facts)
        .map_err(|source| SnapshotError::io("read", &spec.kernel, source))?;
    if let Some((what, saved, here)) = saved.difference(&here) {
        return Err(SnapshotError::OtherMachine { id: snapshot.id().clone(), what, saved, here });
    }
    for disk in &manifest.external {
        disk.check(snapshot.id())?;
    }
    engine.recover_once().await;
    Ok(Common {
        home: engine.home().into(),
        binary: engine.binary().into(),
        snapshot: snapshot.clone(),
        spec,
        facts,
        identity: forks.identity,
        deadline: forks.deadline,
    })
}

/// The spec came from the disk, and makes arguments of QEMU.
fn check_spec(spec: &VmSpec) -> Result<(), SnapshotError> {
    if let Some(device) = spec.unmigratable() {
        return Err(SnapshotError::Unmigratable { device });
    }
    spec.validate_size(host::limits()).and_then(|()| spec.validate_names()).map_err(LaunchError::from)?;
    Ok(())
}

/// One more fork.
pub(super) async fn new_fork(common: &Common) -> Result<Fork, SnapshotError> {
    fork(common, new_dir(common)?).await
}

/// One fork, from its directory to its own identity.
async fn fork(common: &Common, dir: VmDir) -> Result<Fork, SnapshotError> {
    let deadline = Instant::now() + common.deadline;
    let linked = Linked::new(Waiting::start(common, dir).await?, common, deadline).await?;
    linked.renew(common).await
}

/// A fork whose agent answers, and that is not its own machine yet.
#[derive(Debug)]
struct Linked {
    vm: Vm,
    link: GuestLink,
    journal: Journal,
}

impl Linked {
    async fn new(waiting: Waiting, common: &Common, deadline: Instant) -> Result<Self, SnapshotError> {
        let journal = waiting.dir.journal().clone();
        let qmp = waiting.started.monitor.0.clone();
        let vm = waiting.load(common).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        // QEMU answers `cont` when the guest lets it, some milliseconds into the guest's first work.
        let run = async { Ok(qmp.execute("cont", None, LOAD_DEADLINE).await.map_err(ControlError::from)?) };
        let link = async { Ok::<_, SnapshotError>(vm.connect(left).await?) };
        let (_, link) = tokio::try_join!(run, link)?;
        Ok(Self { vm, link, journal })
    }

    async fn renew(self, common: &Common) -> Result<Fork, SnapshotError> {
        let Self { vm, link, journal } = self;
        let identity = match common.identity {
            ForkIdentity::Fresh => Some(fresh_identity(vm.id(), &common.spec)),
            ForkIdentity::Keep => None,
        };
        link.renew(Renewal { identity }).await?;
        // Not before: a recovery must not take for a machine what is none yet.
        journal.append(State::Running)?;
        failpoint::hit("restore.running")?;
        vm.shared.fate.remove_on_drop();
        Ok(Fork { vm, link })
    }
}

/// A fork that waits for somebody who takes it.
#[derive(Debug)]
pub(super) enum Held {
    /// It is its own machine, has run a command, and stands still with all others frozen as they were saved.
    Warm(Box<Fork>),
    /// Its commands would run before it is its own machine, so it has not begun to.
    Waiting(Box<Waiting>),
}

impl Held {
    /// Makes one more.
    pub(super) async fn new(common: &Common) -> Result<Self, SnapshotError> {
        let deadline = Instant::now() + common.deadline;
        let waiting = Waiting::start(common, new_dir(common)?).await?;
        if !common.snapshot.manifest().frozen {
            return Ok(Self::Waiting(Box::new(waiting)));
        }
        let fork = Linked::new(waiting, common, deadline).await?.renew(common).await?;
        // Under TCG the code of a first command is translated first, which takes ten times as long as the command.
        let warm_up = ExecRequest { argv: vec![Text::from(WARM_UP)], ..ExecRequest::default() };
        match tokio::time::timeout_at(deadline, fork.link.run(warm_up, b"", 0)).await {
            Ok(Err(error)) => tracing::debug!(%error, "a held fork did not run its first command"),
            Err(_) => tracing::debug!("the first command of a held fork does not end"),
            Ok(Ok(_)) => {}
        }
        fork.link.freeze().await.map_err(SnapshotError::Freeze)?;
        fork.vm.pause().await?;
        Ok(Self::Warm(Box::new(fork)))
    }

    /// Lets it run.
    pub(super) async fn take(self, common: &Common) -> Result<Fork, SnapshotError> {
        match self {
            Self::Warm(fork) => {
                fork.vm.resume().await?;
                // The time as it is now, fresh randomness, and then its commands go on.
                fork.link.renew(Renewal::default()).await?;
                Ok(*fork)
            }
            Self::Waiting(waiting) => {
                let deadline = Instant::now() + common.deadline;
                Linked::new(*waiting, common, deadline).await?.renew(common).await
            }
        }
    }

    /// Its VMM.
    pub(super) fn pid(&self) -> u32 {
        match self {
            Self::Warm(fork) => fork.vm.pid(),
            Self::Waiting(waiting) => waiting.started.child.pid(),
        }
    }
}

/// A QEMU with the snapshot's memory that has not loaded the state of its devices yet.
#[derive(Debug)]
pub(super) struct Waiting {
    // Dropped first: the directory is cleared when the process is gone.
    started: Started,
    dir: VmDir,
    overlays: Vec<(usize, Utf8PathBuf)>,
    /// The memory file.
    mapped: File,
    /// Of the device state, in QEMU.
    device_fd: RawFd,
}

impl Waiting {
    async fn start(common: &Common, dir: VmDir) -> Result<Self, SnapshotError> {
        let (spec, snapshot) = (&common.spec, &common.snapshot);
        let no_directory = |source| LaunchError::Directory { path: dir.path().into(), source };
        let overlays = make_overlays(&dir, common)?;
        let disks = spec.disks.iter().enumerate().map(|(index, disk)| {
            let node = args::disk_node(index);
            let Some((_, overlay)) = overlays.iter().find(|(of, _)| *of == index) else {
                return Ok(blockdev(&node, disk, &[]));
            };
            let (root, mut above) = layers(snapshot, index, disk)?;
            above.push(overlay.clone());
            Ok(blockdev(&node, &root, &above))
        });
        let disks = disks.collect::<Result<_, SnapshotError>>()?;
        let device = snapshot.device();
        let opened = OwnedFd::from(open(&device)?);
        let device_fd = opened.as_raw_fd();
        // The VMM holds the locks too: a snapshot stays for as long as a fork of it runs, with an owner or without.
        let locks = snapshot.lock_fds().into_iter().map(|lock| lock.try_clone_to_owned());
        let mut inherit = locks.collect::<io::Result<Vec<_>>>().map_err(no_directory)?;
        inherit.push(opened);
        let mapped = open(&snapshot.memory_root())?;
        let plan = Plan {
            binary: &common.binary,
            spec,
            facts: common.facts.clone(),
            memory: Memory::Private(snapshot.memory_root()),
            start: Start::Restore { disks },
            inherit,
        };
        let started = launch::start(&dir, plan).await?;
        Ok(Self { dir, started, overlays, mapped, device_fd })
    }

    /// Gives it the pages of the diffs and the state of its devices. It stands still yet.
    async fn load(mut self, common: &Common) -> Result<Vm, SnapshotError> {
        let pid = self.started.child.pid();
        if !common.snapshot.page_files().is_empty() {
            let snapshot = common.snapshot.clone();
            // It has the process meanwhile: where nobody waits for it any more, the pid must not be another's yet.
            self = blocking(move || guest_memory::apply_diffs(pid, &self.mapped, &snapshot).map(|()| self)).await?;
        }
        failpoint::hit("restore.pages")?;
        if let Err(error) = load(&mut self.started.monitor, self.device_fd).await {
            let Started { child, stderr, .. } = &mut self.started;
            return Err(match error {
                // QEMU ends where it can't load a state, and its own words say why.
                VmmError::Closed { .. } => launch::why_it_ended(&common.binary, child, stderr, error).await.into(),
                other => ControlError::from(other).into(),
            });
        }
        failpoint::hit("restore.loaded")?;
        let base = common.snapshot.id().clone();
        let memory = SavedMemory::Fork { base, mapped: self.mapped, overlays: self.overlays };
        let qmp = self.started.monitor.0.clone();
        let saver = Saver::new(&common.home, &common.spec, common.facts.clone(), qmp, pid, memory);
        let path = self.dir.path().to_owned();
        let vm = launch::own(self.dir, self.started, &common.spec, common.facts.accelerator, saver)
            .map_err(|source| LaunchError::Directory { path, source })?;
        Ok(vm)
    }
}

/// Loads the state of the devices.
async fn load(monitor: &mut (Qmp, mpsc::Receiver<QmpEvent>), device_fd: RawFd) -> Result<(), VmmError> {
    let (qmp, events) = monitor;
    let from = json!({"uri": format!("fd:{device_fd}")});
    qmp.execute("migrate-incoming", Some(from), LOAD_DEADLINE).await?;
    let loaded = async {
        while let Some(event) = events.recv().await {
            match (event.name.as_str(), event.data["status"].as_str()) {
                ("MIGRATION", Some("completed")) => return Ok(()),
                ("MIGRATION", Some("failed")) => break,
                _ => {}
            }
        }
        Err(VmmError::Closed { reason: "the state of the devices was not loaded".into() })
    };
    let late = |_| VmmError::Deadline { command: "migrate-incoming".into(), waited: LOAD_DEADLINE };
    tokio::time::timeout(LOAD_DEADLINE, loaded).await.map_err(late)?
}

fn open(path: &Utf8Path) -> Result<File, SnapshotError> {
    let file = fs_err::File::open(path).map_err(|source| SnapshotError::io("open", path, source))?;
    Ok(file.into_file())
}

/// Makes an overlay for each disk that can be written.
fn make_overlays(dir: &VmDir, common: &Common) -> Result<Vec<(usize, Utf8PathBuf)>, SnapshotError> {
    let writable = common.spec.disks.iter().enumerate().filter(|(_, disk)| !disk.read_only);
    let overlays = writable.map(|(index, disk)| {
        let (root, above) = layers(&common.snapshot, index, disk)?;
        overlay::refuse_external_data(&root.path, root.format)
            .map_err(|source| SnapshotError::io("use", &root.path, source))?;
        let (top, format) = above.last().map_or((&root.path, root.format), |top| (top, DiskFormat::Qcow2));
        let path = dir.path().join(format!("disk-{index}"));
        let bytes = overlay::virtual_size(top, format).map_err(|source| SnapshotError::io("read", top, source))?;
        overlay::create(&path, bytes).map_err(|source| SnapshotError::io("make", &path, source))?;
        Ok((index, path))
    });
    overlays.collect()
}

/// The layers of a disk in a snapshot: what it was, and the overlays on it.
fn layers(snapshot: &Snapshot, index: usize, disk: &Disk) -> Result<(Disk, Vec<Utf8PathBuf>), SnapshotError> {
    let mut layers = snapshot.disk_layers(index).into_iter();
    let path = layers.next().ok_or_else(|| SnapshotError::Broken {
        id: snapshot.id().clone(),
        file: MANIFEST_FILE.into(),
        problem: format!("has no layer of disk {index}, which can be written"),
    })?;
    Ok((Disk { path, ..disk.clone() }, layers.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhost_user::{VhostUser, VhostUserDevice};
    use crate::vm_spec::{DiskFormat, SpecError};

    #[test]
    fn a_spec_that_would_add_arguments_to_the_vmm_is_refused() {
        let good = VmSpec { memory_mib: 256, ..VmSpec::new("/k", "/i") };
        check_spec(&good).expect("is fine, also where its files are gone");
        let port = VmSpec { extra_ports: vec!["a,chardev=monitor".into()], ..good.clone() };
        let error = check_spec(&port).expect_err("has a comma");
        assert!(matches!(error, SnapshotError::Launch(LaunchError::Spec(SpecError::Name { .. }))), "{error:?}");
        let large = VmSpec { memory_mib: u64::MAX, ..good };
        assert!(matches!(check_spec(&large), Err(SnapshotError::Launch(LaunchError::Spec(SpecError::Memory { .. })))));
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

    #[test]
    fn a_disk_without_a_layer_is_a_broken_manifest() {
        let place = crate::snapshot::testing::place();
        let snapshot = place.full("root");
        let disk = Disk { path: "/d".into(), format: DiskFormat::Raw, read_only: false };
        let error = layers(&snapshot, 0, &disk).expect_err("has none");
        assert!(matches!(&error, SnapshotError::Broken { file, .. } if file == MANIFEST_FILE), "{error:?}");
    }
}

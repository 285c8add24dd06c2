//! Ready-made snapshots: a spec's VM is booted once and saved, and from then on forked.
//!
//! ```text
//!   key(spec, kernel, initramfs, machine) ──▶ snapshots/ready/<key> ── exists ──▶ Snapshot
//!                                                     └── missing or broken ──▶ boot, settle, save, seal ──▶ Snapshot
//! ```
//! One process makes the snapshot while others wait. At most [`READY_SNAPSHOTS_MAX`] are kept. The least recently used
//! are removed.
//!
//! The key covers everything that decides the memory of the booted guest: the version of Kiln, the spec, the contents
//! of kernel, initramfs and disks, the machine, and what is done before the save. Two runs with the same key would boot
//! the same guest, so one snapshot serves both. The paths of kernel and initramfs are not part of it, because the guest
//! never sees them. What each fork gets for itself is not part of it either: the paths and contents of volumes, what a
//! network card is connected to, and what happens when the owner ends. Whether a card is idle is part of it. Of a volume
//! only the size is part of it, see [`blank`](super::blank).

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_wire::{ErrorCode, ExecRequest, ExitStatus, Identity, Network, Text};

use super::blank::{self, Blanks};
use super::fork::fresh_names;
use super::launch;
use crate::blocking::{blocking, operation};
use crate::driver::{Driver, LaunchError};
use crate::error::ErrorKind;
use crate::files::FileFacts;
use crate::home::Home;
use crate::link::{GuestLink, LinkError, Renewal, StreamError};
use crate::snapshot::{AfterSave, ReadyKey, ReadyLock, Snapshot, SnapshotError, SnapshotRequest, SnapshotStore};
use crate::spec::{Attachment, Disk, DiskRole, Nic, OwnerLoss, VmSpec};
use crate::vm::{SaveError, Vm};

/// Most ready-made snapshots of one home. Each takes the memory that its guest has used, some 100 MiB.
pub const READY_SNAPSHOTS_MAX: usize = 16;
/// How long to wait for another process that makes the same snapshot: a boot on a busy host, and some more.
const LOCK_PATIENCE: Duration = Duration::from_secs(180);
/// Waiting for the lock takes a thread that can't be cancelled, so each wait is this short.
const LOCK_STEP: Duration = Duration::from_millis(100);
/// The command of a rehearsal, see [`rehearse`].
const WARM_UP: &str = "/bin/true";
/// How long a command of a user's rehearsal may take: it may start an interpreter and load much, on a slow host.
const COMMAND_DEADLINE: Duration = Duration::from_secs(600);
/// How much of its messages is kept.
const STDERR_BYTES_MAX: u64 = 4 << 10;
/// How often the start of a fork is rehearsed before the save.
const REHEARSALS: usize = 3;
/// Time for the kernel's work after the boot, so that it is done once here and not in every fork.
const SETTLE: Duration = Duration::from_millis(150);

/// Why there is no ready-made snapshot.
#[derive(Debug, thiserror::Error)]
pub enum ReadyError {
    /// Its guest did not start.
    #[error("failed to start the guest of the ready-made snapshot")]
    Launch(#[from] LaunchError),
    /// Its guest did not come up.
    #[error("the guest of the ready-made snapshot did not come up")]
    Link(#[from] LinkError),
    /// Its guest does not freeze.
    #[error("the guest of the ready-made snapshot failed to freeze its commands")]
    Freeze(#[source] StreamError),
    /// Its guest does not run commands.
    #[error("the guest of the ready-made snapshot failed to run `{command}`")]
    WarmUp {
        /// The command.
        command: String,
        /// Why.
        #[source]
        source: StreamError,
    },
    /// A command that it was to run before the save failed.
    #[error("`{command}` exited with {code} before the save: {stderr}")]
    Rehearsal {
        /// The command.
        command: String,
        /// Its exit code, or 128 and the number of the signal that ended it.
        code: i32,
        /// The start of what it wrote to stderr.
        stderr: String,
    },
    /// Its guest can't be saved.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// It can't be read or written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl ReadyError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Launch(error) => error.kind(),
            Self::Link(error) => error.kind(),
            Self::Freeze(_) | Self::WarmUp { .. } | Self::Rehearsal { .. } => ErrorKind::Guest,
            Self::Save(error) => error.kind(),
            Self::Snapshot(error) => error.kind(),
        }
    }
}

/// Steps of [`Engine::ready`](crate::Engine::ready) that take longer than a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadyStep {
    /// Waits for another process that makes it, or boots its guest.
    Booting,
    /// Saves the guest.
    Saving,
    /// Reads all of it again for its checksums.
    Sealing,
}

/// Whether an existing ready-made snapshot may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renew {
    /// Makes one only if there is none, or if it is broken.
    IfNeeded,
    /// Makes a new one.
    Always,
}

/// A request for a ready-made snapshot.
pub struct ReadyRequest<'a> {
    /// The spec of its VM.
    pub spec: &'a VmSpec,
    /// A name for users.
    pub label: &'a str,
    /// Whether an existing one may be used.
    pub renew: Renew,
    /// For the boot of its guest, and for each command that it runs then.
    pub boot_deadline: Duration,
    /// What the network cards of its forks are connected to, see [`ForkPart::network`](crate::ForkPart::network). Its VM is
    /// configured like that before it is saved, so a fork with the same network finds nothing to change.
    pub network: Option<Network>,
    /// Commands that its VM runs before it is saved, each to its end, so that forks find what they read in their memory.
    /// Requests with other commands get other snapshots.
    pub rehearse: Vec<ExecRequest>,
    /// Called at each step that takes longer than a moment.
    pub progress: Option<&'a mut (dyn FnMut(ReadyStep) + Send)>,
}

impl<'a> ReadyRequest<'a> {
    /// Requests an existing or a new one, without progress.
    pub fn new(spec: &'a VmSpec, label: &'a str, boot_deadline: Duration) -> Self {
        Self { spec, label, renew: Renew::IfNeeded, boot_deadline, network: None, rehearse: Vec::new(), progress: None }
    }
}

impl fmt::Debug for ReadyRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { spec, label, renew, boot_deadline, network, rehearse, progress: _ } = self;
        let mut shown = f.debug_struct("ReadyRequest");
        shown.field("spec", spec).field("label", label).field("renew", renew).field("boot_deadline", boot_deadline);
        shown.field("network", network).field("rehearse", rehearse);
        shown.finish_non_exhaustive()
    }
}

/// The ready-made snapshot of a spec's VM, see [`Engine::ready`](crate::Engine::ready).
pub(crate) async fn ready(driver: Arc<dyn Driver>, request: ReadyRequest<'_>) -> Result<Snapshot, ReadyError> {
    let ReadyRequest { spec, label, renew, boot_deadline, network, rehearse, progress } = request;
    let mut silent = |_| {};
    let progress = progress.unwrap_or(&mut silent);
    // What happens to a fork when its owner ends is set for each fork. A network that belongs to one VM could not be every
    // fork's, so a network card is saved unplugged, and a fork can attach it to any network. An idle card stays idle, so
    // that the guest negotiates the offloads of a TAP device.
    let nics = spec.nics.iter().map(saved_card).collect();
    let spec = VmSpec { forkable: true, owner_loss: OwnerLoss::Kill, nics, ..spec.clone() };
    let acceleration = launch::decide(Arc::clone(&driver), spec.clone()).await?;
    let spec = VmSpec { acceleration: acceleration.into(), ..spec };
    let key = {
        let (driver, spec, network, commands) = (Arc::clone(&driver), spec.clone(), network.clone(), rehearse.clone());
        operation(async move { ready_key(&*driver, &spec, network.as_ref(), &commands).await }).await?
    };
    let store = SnapshotStore::new(&Home::at(driver.home()));
    if renew == Renew::IfNeeded
        && let Some(found) = find(&store, &key).await?
    {
        return Ok(found);
    }
    progress(ReadyStep::Booting);
    // Of several processes that need the same snapshot, one gets the lock and boots. The others wait here for the whole
    // boot. When they get the lock, the snapshot exists, so they look again before they boot one too. The first look,
    // without the lock, is the usual case: it keeps commands that use an existing snapshot from waiting for each other.
    let _lock = lock(&store, &key).await?;
    if renew == Renew::IfNeeded
        && let Some(found) = find(&store, &key).await?
    {
        return Ok(found);
    }
    let cache = Home::at(driver.home()).cache();
    let (blanks, spec) = blocking(move || Blanks::make(&cache, spec)).await?;
    // A fork in a network has the address of the spec, unless it is given another one.
    let macs = spec.nics.iter().filter(|_| network.is_some()).map(|nic| nic.mac.to_string()).collect();
    let rehearsal = Rehearsal { commands: rehearse, network, macs, deadline: boot_deadline };
    let vm = operation(async move { driver.boot(&spec, acceleration).await }).await?;
    let snapshot = save(&vm, label, rehearsal, progress).await?;
    blocking(move || drop(blanks)).await;
    progress(ReadyStep::Sealing);
    let made = snapshot.clone();
    let named = blocking(move || {
        // The key is set before the seal, which takes a while. If the process were killed in between, a snapshot
        // without a key would never be removed.
        let before = store.set_ready(&key, made.id())?;
        made.seal()?;
        if let Some(before) = before {
            store.retire(&before)?;
        }
        store.trim_ready(READY_SNAPSHOTS_MAX)
    });
    named.await?;
    Ok(snapshot)
}

async fn ready_key(
    driver: &dyn Driver,
    spec: &VmSpec,
    network: Option<&Network>,
    commands: &[ExecRequest],
) -> Result<ReadyKey, LaunchError> {
    let machine = driver.machine(spec).await?;
    let facts = FileFacts::new(driver.home());
    let initramfs = match &spec.initramfs {
        None => String::new(),
        Some(path) => facts.digest(path).map_err(|source| LaunchError::Image { path: path.clone(), source })?,
    };
    let disks = disk_digests(&facts, &spec.disks)?;
    let json = |value: serde_json::Result<String>| value.expect("specs have string keys and no failing serializers");
    // The path of the image does not change what the guest is, nor does the path of a volume or a fresh disk.
    let mut spec = VmSpec { kernel: "kernel".into(), initramfs: None, ..spec.clone() };
    for disk in spec.disks.iter_mut().filter(|disk| disk.role.is_volume() || disk.role == DiskRole::Fresh) {
        disk.path = "volume".into();
    }
    let (spec, machine) = (json(serde_json::to_string(&spec)), json(serde_json::to_string(&machine)));
    let mut words = vec![env!("CARGO_PKG_VERSION"), &spec, &machine, &initramfs];
    words.extend(disks.iter().map(String::as_str));
    // The digests of disks have 64 digits, a network is a list, and a request is an object, so none can be taken for another.
    let network = network.map(|network| json(serde_json::to_string(&[network])));
    words.extend(network.as_deref());
    let commands: Vec<_> = commands.iter().map(|command| json(serde_json::to_string(command))).collect();
    words.extend(commands.iter().map(String::as_str));
    Ok(ReadyKey::of(&words))
}

/// A network card as it is saved.
fn saved_card(nic: &Nic) -> Nic {
    let attachment = match nic.attachment {
        Attachment::Idle => Attachment::Idle,
        Attachment::Unplugged | Attachment::Tap(_) | Attachment::Stream { .. } => Attachment::Unplugged,
    };
    Nic { mac: nic.mac, attachment }
}

/// Digests of a spec's disks. The memory of a booted guest holds what it read from them, and the snapshot has a copy of
/// those that it could write to. If a disk's file was changed in place, it is another disk. A volume is not part of the
/// snapshot, but its guest knows the size. The spec and the size say what is on a fresh disk, so none of them is read.
fn disk_digests(facts: &FileFacts, disks: &[Disk]) -> Result<Vec<String>, LaunchError> {
    let digest = |disk: &Disk| match disk.role {
        DiskRole::Volume | DiskRole::VolumeReadOnly | DiskRole::Fresh => {
            let bytes = blank::disk_bytes(disk);
            bytes
                .map(|bytes| bytes.to_string())
                .map_err(|source| LaunchError::Image { path: disk.path.clone(), source })
        }
        DiskRole::Shared | DiskRole::Scratch => {
            facts.digest(&disk.path).map_err(|source| LaunchError::Image { path: disk.path.clone(), source })
        }
    };
    disks.iter().map(digest).collect()
}

/// The existing snapshot. If it is broken, it is removed.
async fn find(store: &SnapshotStore, key: &ReadyKey) -> Result<Option<Snapshot>, SnapshotError> {
    let (store, key) = (store.clone(), key.clone());
    blocking(move || {
        let Some(id) = store.ready(&key)? else { return Ok(None) };
        match store.open(&id).and_then(sealed) {
            Ok(snapshot) => Ok(Some(snapshot)),
            Err(error @ (SnapshotError::Broken { .. } | SnapshotError::MissingLink { .. })) => {
                tracing::warn!(%error, "a ready-made snapshot can't be used and is made again");
                // If a fork of it still runs, it stays until then, and the new one gets its key.
                store.retire(&id).map(|()| None)
            }
            // Another process has just removed it.
            Err(SnapshotError::Unknown(_)) => Ok(None),
            Err(error) => Err(error),
        }
    })
    .await
}

/// Seals a snapshot whose maker was interrupted before the seal.
fn sealed(snapshot: Snapshot) -> Result<Snapshot, SnapshotError> {
    match snapshot.seal() {
        Err(error @ SnapshotError::Broken { .. }) => return Err(error),
        // It is whole as long as the host runs.
        Err(error) => tracing::warn!(snapshot = %snapshot.id(), %error, "failed to seal a ready-made snapshot"),
        Ok(()) => {}
    }
    Ok(snapshot)
}

/// Waits until this is the process that makes it. Safe to cancel.
async fn lock(store: &SnapshotStore, key: &ReadyKey) -> Result<ReadyLock, SnapshotError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let (store, key) = (store.clone(), key.clone());
        match blocking(move || store.ready_lock(&key, LOCK_STEP)).await {
            Err(SnapshotError::Locked { .. }) if Instant::now() < deadline => {}
            Err(SnapshotError::Locked { path, .. }) => {
                return Err(SnapshotError::Locked { path, waited: LOCK_PATIENCE });
            }
            other => return other,
        }
    }
}

/// What its VM does before it is saved.
struct Rehearsal {
    commands: Vec<ExecRequest>,
    network: Option<Network>,
    macs: Vec<String>,
    /// For the boot, and for each rehearsal.
    deadline: Duration,
}

async fn save(
    vm: &Vm,
    label: &str,
    rehearsal: Rehearsal,
    progress: &mut (dyn FnMut(ReadyStep) + Send),
) -> Result<Snapshot, ReadyError> {
    let Rehearsal { commands, network, macs, deadline } = rehearsal;
    let link = vm.connect(deadline).await?;
    for command in commands {
        run(&link, command, COMMAND_DEADLINE).await?;
    }
    for _ in 0..REHEARSALS {
        // What a fork gets with its first link: names, and the addresses of a network if it has one.
        let identity = Identity { macs: macs.clone(), ..fresh_names(vm.id()) };
        let renewal = Renewal { network: network.clone(), ..Renewal::of(identity) };
        rehearse(&link, renewal, deadline).await?;
    }
    tokio::time::sleep(SETTLE).await;
    progress(ReadyStep::Saving);
    let request = SnapshotRequest { link: Some(&link), then: AfterSave::End, label: label.into() };
    Ok(vm.snapshot(request).await?)
}

/// Does once what every fork does first: takes a new identity, thaws, and runs a command.
///
/// The first time costs the guest most: files that do not exist yet are created, names are looked up on the file system,
/// and memory is taken from the kernel page by page. If it is done before the save, every fork finds it done. Under TCG
/// the VMM translates each block of code that a fork runs for the first time, and that is most of a fork's time. The name
/// is as long as that of a fork, which overwrites it in place.
async fn rehearse(link: &GuestLink, renewal: Renewal, deadline: Duration) -> Result<(), ReadyError> {
    link.freeze().await.map_err(ReadyError::Freeze)?;
    link.renew(renewal, deadline).await?;
    // The program need not exist: an image may have none at all. Then the search for it is what is rehearsed.
    match run(link, ExecRequest { argv: vec![Text::from(WARM_UP)], ..ExecRequest::default() }, deadline).await {
        Err(ReadyError::WarmUp { source: StreamError::Fault(fault), .. })
            if matches!(fault.code, ErrorCode::CommandNotFound | ErrorCode::NotExecutable) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Runs a command of a rehearsal. It must exit with 0.
async fn run(link: &GuestLink, request: ExecRequest, deadline: Duration) -> Result<(), ReadyError> {
    let command = request.argv.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let late = |_| StreamError::LinkLost(format!("it did not end within {deadline:?}"));
    let ran = tokio::time::timeout(deadline, link.run(request, b"", STDERR_BYTES_MAX)).await;
    let ran = match ran.map_err(late).and_then(|ran| ran) {
        Ok(ran) => ran,
        Err(source) => return Err(ReadyError::WarmUp { command, source }),
    };
    match ran.exited.status {
        ExitStatus::Code(0) => Ok(()),
        status => Err(ReadyError::Rehearsal {
            command,
            code: status.shell_code(),
            stderr: String::from_utf8_lossy(&ran.stderr).trim_end().to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::every_variant::{chains, every_variant};
    use crate::spec::DiskFormat;

    #[test]
    fn a_disk_that_was_changed_in_place_is_another_one_unless_only_its_size_counts() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = camino::Utf8Path::from_path(directory.path()).expect("UTF-8");
        let path = home.join("disk");
        let disk = |role| Disk { path: path.clone(), format: DiskFormat::Raw, role };
        let digests = || {
            let roles =
                [DiskRole::Shared, DiskRole::Scratch, DiskRole::Volume, DiskRole::VolumeReadOnly, DiskRole::Fresh];
            disk_digests(&FileFacts::new(home), &roles.map(disk)).expect("reads")
        };
        fs_err::write(&path, "one").expect("written");
        let one = digests();
        assert_eq!(digests(), one);
        // The same size, and the same time as far as it can be set.
        let modified = fs_err::metadata(&path).and_then(|meta| meta.modified()).expect("facts");
        fs_err::write(&path, "two").expect("written");
        std::fs::File::options().write(true).open(&path).expect("opens").set_modified(modified).expect("set");
        let two = digests();
        assert!(one[0] != two[0] && one[1] != two[1] && one[2..] == two[2..], "{one:?} {two:?}");
        fs_err::write(&path, [2; 2000]).expect("written");
        let large = digests();
        assert!((2..5).all(|index| one[index] != large[index]), "{one:?} {large:?}");
    }

    #[test]
    fn each_error_has_its_text() {
        let errors = every_variant!(ReadyError {
            Launch: [ReadyError::Launch(LaunchError::VmmMissing { program: "qemu-system-x86_64".into() })],
            Link: [ReadyError::Link(LinkError::Closed { waiting_for: "hello" })],
            Freeze: [ReadyError::Freeze(StreamError::Ended)],
            WarmUp: [ReadyError::WarmUp { command: WARM_UP.into(), source: StreamError::Ended }],
            Rehearsal: [ReadyError::Rehearsal {
                command: "/bin/sh -c false".into(),
                code: 1,
                stderr: "not today".into(),
            }],
            Save: [ReadyError::Save(SaveError::Busy)],
            Snapshot: [ReadyError::Snapshot(SnapshotError::Locked { path: "/s".into(), waited: LOCK_PATIENCE })],
        });
        insta::assert_snapshot!(chains(&errors, |error| vec![error.kind().to_string()]));
    }
}

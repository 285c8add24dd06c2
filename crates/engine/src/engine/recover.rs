//! Decides about VMs whose owner is gone.
//!
//! ```text
//!   vms/<id>/, lock free ──▶ journal, spec, pid ──decide──▶ Adopt               left running, for `Engine::adopt`
//!                                                    ├────▶ Stop { snapshot }   VMM killed; Lost (why), Stopped
//!                                                    ├────▶ Lose { reason }     VMM killed; Lost
//!                                                    └────▶ Remove              VMM killed, directory removed
//! ```
//! A VMM that is not to be adopted is killed, and its exit awaited, before anything else. So no second VMM ever uses
//! its disks. A VM goes back to its last whole snapshot. Snapshots never change and hold their disks, so that is safe
//! at any time.
//!
//! The decision is written to the journal before the directory is tidied. If recovery is killed in between, the next
//! one reads the decision and tidies again, with the same result. The other order would be wrong: tidying removes files
//! by which the decision is made, so a second recovery could decide differently. And if recovery is killed before the
//! decision is written, only the VMM is gone, which the next recovery takes for a VMM that ended on its own.
//!
//! The lock on the directory is held from the first read to the last write, so a VM can't get an owner meanwhile, and
//! two recoveries can't work on one VM. The snapshot that a fork was made from is not its own. So a fork that was never
//! saved leaves nothing.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use camino::Utf8Path;
use fs_err as fs;

use crate::blocking;
use crate::confine;
use crate::driver::Driver;
use crate::failpoint;
use crate::files::plain_file;
use crate::home::Home;
use crate::snapshot::{FileEntry, MANIFEST_FILE, Manifest, Seal, SnapshotError, SnapshotId, SnapshotStore};
use crate::spec::OwnerLoss;
use crate::vm_dir::{self, History, Journal, JournalError, MEMORY_FILE, Orphan, ReopenError, State, Then, VmDir, VmId};

/// How long to wait for the seal of a snapshot that is to be removed. Sealing reads the saved data once more.
const SEAL_PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two attempts.
const SEAL_PAUSE: Duration = Duration::from_millis(10);

/// The longest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// The longest chain that is followed. Savers stop long before.
const CHAIN_MAX: usize = 256;

/// A VM without an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The VM's id.
    pub id: VmId,
    /// What was decided.
    pub outcome: Outcome,
}

/// What was decided about a VM whose owner is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It runs or is paused, and waits for [`Engine::adopt`](crate::Engine::adopt).
    Adoptable,
    /// It has no VMM and can be resumed from its last whole snapshot.
    Stopped {
        /// The snapshot.
        snapshot: SnapshotId,
        /// What was lost since, as text for users. `None` if the VM was stopped in order.
        lost: Option<String>,
    },
    /// It ended, and has no whole snapshot. The rest of its directory is kept.
    Lost {
        /// Why, as text for users.
        reason: String,
    },
    /// It ended, its spec does not keep it, and its directory was removed.
    Removed,
}

/// Runs [`recover`] once for each engine. If that fails, VMs can still start.
pub(crate) async fn once(driver: &dyn Driver) {
    let home = Home::at(driver.home());
    driver.recovered().get_or_init(|| recover_all(home)).await;
}

async fn recover_all(home: Home) {
    match blocking(move || recover(&home)).await {
        Ok(recovered) => {
            for Recovered { id, outcome } in recovered {
                if outcome == Outcome::Removed {
                    tracing::info!(vm = %id, "removed a vm without an owner");
                }
            }
        }
        Err(error) => tracing::warn!(%error, "failed to recover vms without an owner"),
    }
}

/// Decides about every VM below `home` whose owner is gone, and removes what crashed builders left
/// ([`Home::sweep_partials`]). Stopped and lost VMs are returned each time.
///
/// # Errors
/// The directory of VMs can't be read. If a single VM can't be recovered, that is logged, and the next recovery tries
/// again.
pub fn recover(home: &Home) -> io::Result<Vec<Recovered>> {
    if let Err(error) = home.sweep_partials() {
        tracing::warn!(%error, "failed to remove unfinished files");
    }
    let mut recovered = Vec::new();
    let entries = match fs::read_dir(home.vms()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(recovered),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let id = entry.file_name().to_str().and_then(|name| name.parse::<VmId>().ok());
        // Other files are not Kiln's.
        let (Some(id), true) = (id, entry.file_type()?.is_dir()) else { continue };
        match recover_one(home, &id) {
            Ok(Some(outcome)) => recovered.push(Recovered { id, outcome }),
            Ok(None) => {}
            Err(error) => tracing::warn!(vm = %id, %error, "failed to recover a VM whose owner is gone"),
        }
    }
    // After their VMMs were killed.
    confine::sweep_cgroups();
    recovered.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(recovered)
}

/// Ends a VM that has no owner, and removes its directory. Its snapshots stay. For stopped and lost VMs that are not
/// needed any more.
///
/// # Errors
/// [`ReopenError`]: the VM does not exist, has an owner, or can't be removed.
pub fn discard(home: &Home, id: &VmId) -> Result<(), ReopenError> {
    let dir = VmDir::reopen(&home.vms(), id)?;
    let ended = Orphan::find(dir.path()).and_then(|vmm| vmm.map_or(Ok(()), Orphan::kill));
    ended
        .and_then(|()| fs::remove_dir_all(dir.path()))
        .map_err(|source| ReopenError::Io { path: dir.path().into(), source })
}

/// Runs [`discard`], and removes the snapshots at which the VM stopped. Snapshots with other children stay.
pub(crate) fn discard_with_stops(home: &Home, id: &VmId) -> Result<(), ReopenError> {
    // If the journal can't be read, no snapshots are known.
    let stops = History::read(&home.vms().join(id.as_str())).map(|history| history.stopped_snapshots());
    match discard(home, id) {
        Ok(()) | Err(ReopenError::Unknown(_)) => {}
        Err(error) => return Err(error),
    }
    let store = SnapshotStore::new(home);
    // Each is the child of the one before, so the newest has to be removed first.
    for stop in stops.unwrap_or_default().iter().rev() {
        if let Err(error) = remove_stop(&store, stop) {
            tracing::debug!(vm = %id, snapshot = %stop, %error, "a snapshot of a discarded vm stays");
        }
    }
    Ok(())
}

/// Removes a snapshot at which a VM stopped. The process that stopped the VM may still be sealing it.
fn remove_stop(store: &SnapshotStore, stop: &SnapshotId) -> Result<(), SnapshotError> {
    let deadline = Instant::now() + SEAL_PATIENCE;
    loop {
        match store.remove(stop) {
            Err(SnapshotError::InUse { .. }) if Instant::now() < deadline && !store.is_parent(stop)? => {
                std::thread::sleep(SEAL_PAUSE);
            }
            Err(SnapshotError::Unknown(_)) => return Ok(()),
            other => return other,
        }
    }
}

/// `None` if the VM has an owner.
fn recover_one(home: &Home, id: &VmId) -> io::Result<Option<Outcome>> {
    let path = home.vms().join(id.as_str());
    // Held until all is done.
    let Some(_lock) = vm_dir::try_lock(&path)? else { return Ok(None) };
    let history = History::read(&path)?;
    // Only with the lock: a child shares its owner's lock until its exec, and writes its pid file before that. So now
    // no child of this directory is between its fork and its exec, and each VMM that runs has a pid file.
    let vmm = Orphan::find(&path)?;
    let decision = decide(home, &path, &history, vmm.is_some());
    if decision == Decision::Adopt {
        return Ok(Some(Outcome::Adoptable));
    }
    if let Some(vmm) = vmm {
        tracing::info!(vm = %id, pid = vmm.pid, "killing a VMM whose owner is gone");
        vmm.kill()?;
    }
    failpoint::hit("recover.killed")?;
    act(&path, history, decision).map(Some)
}

fn act(path: &Utf8Path, history: History, decision: Decision) -> io::Result<Outcome> {
    match decision {
        Decision::Adopt => Ok(Outcome::Adoptable),
        Decision::Remove => {
            fs::remove_dir_all(path)?;
            Ok(Outcome::Removed)
        }
        Decision::Lose { reason } => {
            lose(path, history, &reason)?;
            failpoint::hit("recover.decided")?;
            vm_dir::tidy_lost(path)?;
            Ok(Outcome::Lost { reason })
        }
        Decision::Stop { snapshot, lost } => {
            let journal = match &lost {
                Some(reason) => lose(path, history, reason)?,
                None => Journal::open(path)?,
            };
            failpoint::hit("recover.lost")?;
            journal.enter(State::Stopped { snapshot: snapshot.clone() })?;
            failpoint::hit("recover.decided")?;
            vm_dir::tidy_stopped(path)?;
            Ok(Outcome::Stopped { snapshot, lost })
        }
    }
}

/// Records that the VM was lost, unless the journal ends with that already.
fn lose(path: &Utf8Path, history: History, reason: &str) -> Result<Journal, JournalError> {
    if history.problem.is_some() {
        return Journal::repair(path, history, reason);
    }
    let journal = Journal::open(path)?;
    if history.lost().is_none() {
        journal.append(State::Lost { reason: reason.into() })?;
    }
    Ok(journal)
}

/// What to do about a VM whose owner is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    Adopt,
    Stop { snapshot: SnapshotId, lost: Option<String> },
    Lose { reason: String },
    Remove,
}

/// The facts that decide.
pub(crate) struct Case<'a> {
    pub(crate) history: &'a History,
    pub(crate) owner_loss: OwnerLoss,
    /// Whether its VMM lives.
    pub(crate) alive: bool,
    /// Whether a snapshot and all its ancestors exist.
    pub(crate) is_whole: &'a dyn Fn(&SnapshotId) -> bool,
    /// Whether the VM's memory file is that snapshot's, which must not change any more.
    pub(crate) is_memory_of: &'a dyn Fn(&SnapshotId) -> bool,
}

impl Case<'_> {
    pub(crate) fn decide(&self) -> Decision {
        if let Some(problem) = &self.history.problem {
            return self.go_back(&format!("its journal is broken: {problem}"));
        }
        let adoptable = self.owner_loss == OwnerLoss::KeepRunning && self.alive;
        let Some(last) = self.history.records.last() else { return Decision::Remove };
        match &last.state {
            State::Stopped { snapshot } if (self.is_whole)(snapshot) => {
                Decision::Stop { snapshot: snapshot.clone(), lost: self.history.lost().map(str::to_owned) }
            }
            State::Stopped { snapshot } => self.go_back(&format!("its snapshot `{snapshot}` is gone or broken")),
            State::Running | State::Paused if adoptable => Decision::Adopt,
            State::Running | State::Paused if self.owner_loss == OwnerLoss::KeepRunning => {
                self.go_back("its VMM ended while it had no owner")
            }
            State::Running | State::Paused => self.go_back("it ended with the process that owned it"),
            // The caller wanted only the snapshot.
            State::Saving { snapshot, then: Then::End } if (self.is_whole)(snapshot) => Decision::Remove,
            State::Saving { snapshot, then } => self.interrupted_save(snapshot, *then, adoptable),
            // Nothing of it has run yet.
            State::Restoring { snapshot } if self.is_own(snapshot) && (self.is_whole)(snapshot) => {
                Decision::Stop { snapshot: snapshot.clone(), lost: None }
            }
            State::Restoring { .. } => self.go_back("its owner ended while it was being restored"),
            State::Launching => self.go_back("its owner ended while it was being started"),
            State::Lost { reason } => self.go_back(reason),
        }
    }

    fn interrupted_save(&self, snapshot: &SnapshotId, then: Then, adoptable: bool) -> Decision {
        if !(self.is_whole)(snapshot) {
            return if adoptable { Decision::Adopt } else { self.go_back("its owner ended while it was being saved") };
        }
        // The snapshot is published, but the journal has no state after `Saving`. If the VM was to continue, its guest
        // was resumed or would have been, and it is adopted: the snapshot has a copy of its memory. The check of the
        // memory file guards against a link: a guest that continued would write into a published snapshot.
        if then == Then::GoOn && adoptable && !(self.is_memory_of)(snapshot) {
            return Decision::Adopt;
        }
        // Going back to the snapshot loses next to nothing: the VM was paused since then, or ran only until its owner
        // died.
        Decision::Stop { snapshot: snapshot.clone(), lost: None }
    }

    /// Goes back to the last whole snapshot, if there is one.
    fn go_back(&self, reason: &str) -> Decision {
        let own = self.history.own_snapshots();
        if let Some(snapshot) = own.iter().find(|snapshot| (self.is_whole)(snapshot)) {
            return Decision::Stop { snapshot: snapshot.clone(), lost: Some(reason.into()) };
        }
        let asked_to_keep = self.owner_loss == OwnerLoss::KeepRunning && self.history.has_run();
        match asked_to_keep || self.history.was_stopped() || self.history.lost().is_some() {
            true => Decision::Lose { reason: reason.into() },
            false => Decision::Remove,
        }
    }

    fn is_own(&self, snapshot: &SnapshotId) -> bool {
        self.history.own_snapshots().contains(snapshot)
    }
}

/// Decides about the VM in this directory. The caller holds its lock.
pub(crate) fn decide(home: &Home, path: &Utf8Path, history: &History, alive: bool) -> Decision {
    // If the spec can't be read, it can't show that the VM was to be kept.
    let owner_loss = vm_dir::read_spec(path).map_or(OwnerLoss::Kill, |spec| spec.owner_loss);
    let is_whole = |snapshot: &SnapshotId| is_whole(home, snapshot);
    let is_memory_of =
        |snapshot: &SnapshotId| is_same(&path.join(MEMORY_FILE), &home.snapshots().join(snapshot.as_str()));
    Case { history, owner_loss, alive, is_whole: &is_whole, is_memory_of: &is_memory_of }.decide()
}

/// Whether a snapshot and its ancestors exist, by names and sizes. Comparing checksums would read all of it; a restore
/// does that.
fn is_whole(home: &Home, snapshot: &SnapshotId) -> bool {
    let mut next = Some(snapshot.clone());
    for _ in 0..CHAIN_MAX {
        let Some(id) = next else { return true };
        let directory = home.snapshots().join(id.as_str());
        let Ok(manifest) = read_manifest(&directory) else { return false };
        let is_there = |file: &FileEntry| {
            let name = Utf8Path::new(&file.name).file_name();
            name.is_some_and(|name| fs::metadata(directory.join(name)).is_ok_and(|found| found.len() == file.bytes))
        };
        // A snapshot that was never synced may be incomplete after a crash of the host.
        let is_on_disk = match &manifest.seal {
            Seal::Done => true,
            Seal::Pending { host_boot_id } => host_boot_id_now().is_ok_and(|now| now == *host_boot_id),
        };
        if manifest.id != id || !is_on_disk || !manifest.files.iter().all(is_there) {
            return false;
        }
        next = manifest.parent;
    }
    false
}

fn read_manifest(directory: &Utf8Path) -> io::Result<Manifest> {
    Ok(serde_json::from_slice(&plain_file::read(&directory.join(MANIFEST_FILE), MANIFEST_BYTES_MAX)?)?)
}

fn host_boot_id_now() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Whether `memory` is the same file as in the snapshot's directory. `true` if that can't be found out, which is the
/// safe answer.
fn is_same(memory: &Utf8Path, snapshot: &Utf8Path) -> bool {
    let identity = |path: &Utf8Path| match fs::metadata(path) {
        Ok(found) => Ok(Some((found.dev(), found.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    match (identity(memory), identity(&snapshot.join(MEMORY_FILE))) {
        (Ok(ours), Ok(theirs)) => ours.is_some() && ours == theirs,
        _ => true,
    }
}

#[cfg(test)]
mod tests;

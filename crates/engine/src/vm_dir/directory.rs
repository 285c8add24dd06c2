//! Creates, locks, takes over and removes the directory of one VM.
//!
//! The owner of a VM holds a lock (`flock`) on the directory itself. If the lock is free, the VM has lost its owner or
//! is stopped, and [`recover`](crate::recover) decides which. The kernel releases the lock when the last descriptor of
//! it is closed, also if the process is killed, so a lock can't become stale. A lock file would not do: it would have
//! to be removed with the directory, and a process that waits for it would then hold a lock on a file without a name.
//!
//! Two races remain, and both are closed here:
//!
//! - *Between `mkdir` and `flock`* the new directory has no lock. A recovery in another process can take it for a VM
//!   without an owner, lock it and remove it. Then `make_and_lock` finds the lock taken or the directory gone, and
//!   tries again with another id.
//! - *Between `open` and `flock`* the last owner can remove the directory and release the lock. Then the lock succeeds
//!   on a directory that no path leads to. So `try_lock` checks the number of links after it has the lock. With the
//!   lock held, no other process removes the directory, so the result stays true.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::console_log::CONSOLE_LOGS;
use super::id::VmId;
use super::journal::{JOURNAL_FILE, Journal, JournalError, State};
use super::orphan::PID_FILE;
use super::spec_file::{SPEC_FILE, read_spec};
use crate::blocking::assert_may_block;
use crate::error::ErrorKind;
use crate::files::private_file::{self, DIRECTORY_MODE, FILE_MODE};
use crate::snapshot::SnapshotId;
use crate::spec::VmSpec;

/// `sun_path` of a Unix socket's address, less its zero byte.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// A recovery can take a new directory before it is locked. So many times in a row, the cause is something else.
const CREATE_ATTEMPTS_MAX: usize = 16;
/// A recovery holds the lock of a stopped VM while it reads the directory, and a killed owner holds it until the kernel
/// has closed its descriptors. A process that holds the lock longer is an owner.
const REOPEN_DEADLINE: Duration = Duration::from_secs(1);
/// Pause between two attempts to lock. `flock` has no deadline, so the attempts are repeated.
const REOPEN_PAUSE: Duration = Duration::from_millis(5);
/// Name of the file that holds the memory of a running VM.
pub(crate) const MEMORY_FILE: &str = "memory";
/// Name of the file into which the VMM writes its device state.
pub(crate) const DEVICE_STATE_FILE: &str = "device";

/// A VM's directory, locked. Dropping it removes or keeps the directory, see [`OnDrop`].
#[derive(Debug)]
pub(crate) struct VmDir {
    id: VmId,
    path: Utf8PathBuf,
    journal: Journal,
    fate: Fate,
    // Held, never read. Closing it shows `recover` that the owner is gone.
    _lock: OwnedFd,
}

/// What a drop of a [`VmDir`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnDrop {
    /// Removes the directory.
    Remove,
    /// Changes nothing.
    Leave,
    /// Records that the VM is stopped, and removes everything that only a running VM needs.
    StopAgain,
}

/// Sets what a drop of a [`VmDir`] does. Other tasks than the owner of the `VmDir` can hold it.
#[derive(Debug, Clone)]
pub(crate) struct Fate(Arc<Mutex<OnDrop>>);

impl Fate {
    /// From now on, a drop removes the directory.
    pub(crate) fn remove_on_drop(&self) {
        self.set(OnDrop::Remove);
    }

    /// From now on, a drop leaves the directory as it is, for recovery.
    pub(crate) fn leave_on_drop(&self) {
        self.set(OnDrop::Leave);
    }

    fn set(&self, on_drop: OnDrop) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = on_drop;
    }
}

impl From<OnDrop> for Fate {
    fn from(on_drop: OnDrop) -> Self {
        Self(Arc::new(Mutex::new(on_drop)))
    }
}

/// Why a VM's directory can't be taken over.
#[derive(Debug, thiserror::Error)]
pub enum ReopenError {
    /// The VM does not exist.
    #[error("there is no VM `{0}`")]
    Unknown(VmId),
    /// Another process owns it.
    #[error("the VM `{0}` belongs to another process")]
    Owned(VmId),
    /// Its journal can't be read.
    #[error("failed to read the VM's journal")]
    Journal(#[from] JournalError),
    /// Its directory can't be opened.
    #[error("failed to open `{path}`")]
    Io {
        /// The directory.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ReopenError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown(_) => ErrorKind::NotFound,
            Self::Owned(_) => ErrorKind::Busy,
            Self::Journal(error) => error.kind(),
            Self::Io { source, .. } => ErrorKind::of_io(source),
        }
    }
}

impl VmDir {
    /// Creates the directory of a new VM below `vms`. Its journal has [`State::Launching`], and its spec is that of
    /// [`VmSpec::in_directory`].
    pub(crate) fn create(vms: &Utf8Path, spec: &VmSpec) -> io::Result<Self> {
        Self::create_as(vms, spec, State::Launching)
    }

    /// Creates the directory of a fork. Its journal has [`State::Restoring`].
    pub(crate) fn create_fork(vms: &Utf8Path, spec: &VmSpec, snapshot: SnapshotId) -> io::Result<Self> {
        Self::create_as(vms, spec, State::Restoring { snapshot })
    }

    fn create_as(vms: &Utf8Path, spec: &VmSpec, state: State) -> io::Result<Self> {
        assert_may_block();
        private_file::create_dir_all(vms)?;
        let made = (0..CREATE_ATTEMPTS_MAX).find_map(|_| Self::make_and_lock(vms).transpose());
        let this = made.ok_or_else(|| io::Error::other(format!("new directories in `{vms}` disappear at once")))??;
        let spec = spec.in_directory(&this.path);
        // The first state is written last. If this process is killed before that, the journal is empty, and recovery
        // removes the directory whatever else is in it. So a journal with a state always has a whole spec beside it.
        private_file::write_new(&this.path.join(SPEC_FILE), &serde_json::to_vec_pretty(&spec)?)?;
        this.journal.append(state)?;
        Ok(this)
    }

    /// Takes over the directory of a VM without an owner: a stopped VM, or one to be adopted. A drop leaves the
    /// directory as it is until [`Fate::remove_on_drop`] is called.
    ///
    /// Waits up to a second for the lock.
    pub(crate) fn reopen(vms: &Utf8Path, id: &VmId) -> Result<Self, ReopenError> {
        let path = vms.join(id.as_str());
        let io = |source| ReopenError::Io { path: path.clone(), source };
        let deadline = Instant::now() + REOPEN_DEADLINE;
        let lock = loop {
            if let Some(lock) = try_lock(&path).map_err(io)? {
                break lock;
            }
            if !path.exists() {
                return Err(ReopenError::Unknown(id.clone()));
            }
            if Instant::now() > deadline {
                return Err(ReopenError::Owned(id.clone()));
            }
            std::thread::sleep(REOPEN_PAUSE);
        };
        let journal = Journal::open(&path)?;
        Ok(Self { id: id.clone(), path, journal, fate: OnDrop::Leave.into(), _lock: lock })
    }

    /// Sets what a drop does. A reopened directory is removed with its VM once the VM runs again.
    pub(crate) fn fate(&self) -> &Fate {
        &self.fate
    }

    /// From now on, a drop leaves a stopped VM: it undoes a resume that failed half-way. The VMM must have ended by
    /// then.
    pub(crate) fn stay_stopped_on_drop(&self) {
        self.fate.set(OnDrop::StopAgain);
    }

    /// Releases the directory of a stopped VM, with only the files that a resume needs. The VMM must have ended.
    pub(crate) fn keep(self) -> io::Result<()> {
        self.fate.leave_on_drop();
        tidy_stopped(&self.path)
    }

    fn stop_again(&self) -> io::Result<()> {
        if let Some(snapshot) = self.journal.history().restored_from() {
            if self.journal.last().is_some_and(|last| last.state == State::Running) {
                // From `Running` no state leads to `Stopped`, because a VM that has run is not at its snapshot any
                // more.
                self.journal.append(State::Lost { reason: "its resume failed after the guest had run".into() })?;
            }
            self.journal.append(State::Stopped { snapshot })?;
        }
        tidy_stopped(&self.path)
    }

    /// `None` if a recovery took the new directory before it was locked.
    fn make_and_lock(vms: &Utf8Path) -> io::Result<Option<Self>> {
        let id = VmId::random();
        let path = vms.join(id.as_str());
        match private_file::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        }
        let Some(lock) = try_lock(&path)? else { return Ok(None) };
        rustix::fs::fchmod(&lock, DIRECTORY_MODE)?;
        let journal = Journal::create(&path)?;
        Ok(Some(Self { id, path, journal, fate: OnDrop::Remove.into(), _lock: lock }))
    }

    pub(crate) fn id(&self) -> &VmId {
        &self.id
    }

    pub(crate) fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Addresses of this directory's sockets, also if its path is too long for an address.
    pub(crate) fn sockets(&self) -> io::Result<SocketDir> {
        // Opened again, because a duplicate of the locked descriptor would hold the lock too.
        let handle = open_directory(&self.path, OFlags::PATH)?;
        Ok(SocketDir { path: self.path.clone(), handle })
    }

    /// The VM's journal. Clones write to the same file.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The VM's spec.
    pub(crate) fn spec(&self) -> io::Result<VmSpec> {
        read_spec(&self.path)
    }

    /// The empty pid file for the next VMM, see [`Program::pid_file`](crate::process::Program::pid_file).
    pub(crate) fn pid_file(&self) -> io::Result<OwnedFd> {
        Ok(private_file::restart(&self.path.join(PID_FILE))?.into_file().into())
    }
}

impl Drop for VmDir {
    fn drop(&mut self) {
        // The lock is a field, so it is released after this. Otherwise a recovery could take the half-removed directory
        // for a VM without an owner.
        let fate = *self.fate.0.lock().unwrap_or_else(PoisonError::into_inner);
        let done = match fate {
            OnDrop::Leave => Ok(()),
            OnDrop::Remove => fs::remove_dir_all(&self.path),
            OnDrop::StopAgain => self.stop_again(),
        };
        if let Err(error) = done {
            tracing::warn!(path = %self.path, %error, "failed to clear a VM's directory");
        }
    }
}

/// Removes everything except what a resume needs and the logs.
pub(crate) fn tidy_stopped(path: &Utf8Path) -> io::Result<()> {
    tidy(path, |name| [SPEC_FILE, JOURNAL_FILE].contains(&name) || CONSOLE_LOGS.contains(&name))
}

/// Removes only what a running VM needs. The disks of a lost VM stay, because they may hold data that its user needs.
pub(crate) fn tidy_lost(path: &Utf8Path) -> io::Result<()> {
    let gone = [PID_FILE, MEMORY_FILE, DEVICE_STATE_FILE];
    tidy(path, |name| !gone.contains(&name) && !name.ends_with(".sock") && !name.ends_with(".fifo"))
}

fn tidy(path: &Utf8Path, keep: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&keep) {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// The sockets of a VM.
#[derive(Debug)]
pub(crate) struct SocketDir {
    path: Utf8PathBuf,
    handle: OwnedFd,
}

impl SocketDir {
    pub(crate) fn listen(&self, name: &str) -> io::Result<UnixListener> {
        let address = self.address(name);
        let listener = UnixListener::bind(&address)?;
        rustix::fs::chmod(address.as_std_path(), FILE_MODE)?;
        Ok(listener)
    }

    pub(crate) fn connect(&self, name: &str) -> io::Result<UnixStream> {
        UnixStream::connect(self.address(name))
    }

    /// The path at which `name` can be bound or connected. If the real path is too long for an address, it leads
    /// through the open descriptor of the directory.
    pub(crate) fn address(&self, name: &str) -> Utf8PathBuf {
        let file = format!("{name}.sock");
        let path = self.path.join(&file);
        if path.as_str().len() <= SOCKET_PATH_BYTES_MAX {
            return path;
        }
        Utf8PathBuf::from(format!("/proc/self/fd/{}/{file}", self.handle.as_raw_fd()))
    }
}

/// Locks a VM's directory. `None` if another process holds the lock, or if the directory does not exist any more.
pub(crate) fn try_lock(path: &Utf8Path) -> io::Result<Option<OwnedFd>> {
    let lock = match open_directory(path, OFlags::empty()) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        // The last holder may have removed the directory before it released the lock, see above.
        Ok(()) => Ok((rustix::fs::fstat(&lock)?.st_nlink > 0).then_some(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn open_directory(path: &Utf8Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path.as_std_path(),
        flags | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vms() -> (tempfile::TempDir, Utf8PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8PathBuf::try_from(directory.path().join("vms")).expect("UTF-8");
        (directory, path)
    }

    fn spec() -> VmSpec {
        VmSpec::new("/k", "/i")
    }

    fn names(path: &Utf8Path) -> Vec<String> {
        let entries = fs::read_dir(path).expect("lists");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("lists").file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }

    #[test]
    fn a_directory_is_removed_when_its_owner_drops_it() {
        let (_directory, vms) = vms();
        let dir = VmDir::create(&vms, &spec()).expect("made");
        let path = dir.path().to_owned();
        assert_eq!(dir.spec().expect("reads"), spec());
        assert_eq!(dir.journal().last().map(|record| record.state), Some(State::Launching));
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn a_stopped_vm_keeps_the_files_of_a_resume_and_has_one_owner() {
        let (_directory, vms) = vms();
        let dir = VmDir::create(&vms, &spec()).expect("made");
        let (id, path) = (dir.id().clone(), dir.path().to_owned());
        for left in ["pid", "memory", "monitor.sock", "console.fifo", "console.log", "disk-0.qcow2"] {
            fs::write(path.join(left), "x").expect("written");
        }
        assert!(matches!(VmDir::reopen(&vms, &id), Err(ReopenError::Owned(owned)) if owned == id));
        dir.keep().expect("kept");
        assert_eq!(names(&path), ["console.log", "journal", "spec.json"]);

        let dir = VmDir::reopen(&vms, &id).expect("has no owner");
        assert_eq!((dir.id(), dir.path()), (&id, path.as_path()));
        drop(dir);
        let dir = VmDir::reopen(&vms, &id).expect("is still there");
        dir.fate().remove_on_drop();
        drop(dir);
        assert!(matches!(VmDir::reopen(&vms, &id), Err(ReopenError::Unknown(unknown)) if unknown == id));
    }

    #[test]
    fn a_lost_vm_keeps_its_disks() {
        let (_directory, vms) = vms();
        let dir = VmDir::create(&vms, &spec()).expect("made");
        for left in ["pid", "memory", "monitor.sock", "console.fifo", "disk-0.qcow2"] {
            fs::write(dir.path().join(left), "x").expect("written");
        }
        tidy_lost(dir.path()).expect("tidied");
        assert_eq!(names(dir.path()), ["disk-0.qcow2", "journal", "spec.json"]);
    }

    #[test]
    fn sockets_work_in_a_directory_with_a_long_path() {
        let (_directory, vms) = vms();
        let deep = vms.join("d".repeat(200));
        let dir = VmDir::create(&deep, &spec()).expect("made");
        let sockets = dir.sockets().expect("opens");
        let listener = sockets.listen("agent").expect("listens");
        let _client = sockets.connect("agent").expect("connects");
        listener.accept().expect("is there");
        assert!(dir.path().join("agent.sock").exists());
    }

    #[test]
    fn ids_are_random_and_other_texts_are_refused() {
        assert_ne!(VmId::random(), VmId::random());
        let id = VmId::random();
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        for wrong in ["", "..", "0123456789a", "0123456789AB", "0123456789a/", "0123456789abc"] {
            assert!(wrong.parse::<VmId>().is_err(), "{wrong}");
            assert!(serde_json::from_value::<VmId>(wrong.into()).is_err(), "{wrong}");
        }
    }
}

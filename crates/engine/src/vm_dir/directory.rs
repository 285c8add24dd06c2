//! Making, locking, taking over and removing the directory of one VM.
//!
//! The owner holds a lock (flock) on the directory itself for as long as it owns the VM. A directory whose lock is free has
//! lost its owner, or holds a stopped VM; [`recover`](crate::recover) finds out which.

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

/// `sun_path` of a Unix socket's address, less its end mark.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Recovery can take a new directory before it is locked; that it happens so often says something else is wrong.
const CREATE_ATTEMPTS_MAX: usize = 16;
/// Recovery holds a stopped VM's lock while it looks, and an owner that was killed until its process is taken down. Who
/// holds it longer is an owner.
const REOPEN_DEADLINE: Duration = Duration::from_secs(1);
/// Between two tries at a lock; the kernel has no wait with a deadline for it.
const REOPEN_PAUSE: Duration = Duration::from_millis(5);
/// Name of the file that is a running VM's memory.
pub(crate) const MEMORY_FILE: &str = "memory";
/// Name of the file that the VMM writes the state of its devices to.
pub(crate) const DEVICE_STATE_FILE: &str = "device";

/// A VM's directory, locked. Dropping it removes the directory, or leaves it, as [`OnDrop`] says.
#[derive(Debug)]
pub(crate) struct VmDir {
    id: VmId,
    path: Utf8PathBuf,
    journal: Journal,
    fate: Fate,
    // Held, never read. Closing it shows `recover` that the owner is gone.
    _lock: OwnedFd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnDrop {
    Remove,
    Leave,
    StopAgain,
}

/// What becomes of a directory when its [`VmDir`] is dropped, for those who have no hold of that.
#[derive(Debug, Clone)]
pub(crate) struct Fate(Arc<Mutex<OnDrop>>);

impl Fate {
    /// From now on the directory goes.
    pub(crate) fn remove_on_drop(&self) {
        self.set(OnDrop::Remove);
    }

    /// From now on the directory stays as it is, for recovery.
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
    /// It has an owner.
    #[error("the VM `{0}` belongs to another process")]
    Owned(VmId),
    /// What it did can't be learnt.
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
    /// Makes the directory of a new VM below `vms`. Its journal says [`State::Launching`].
    pub(crate) fn create(vms: &Utf8Path, spec: &VmSpec) -> io::Result<Self> {
        Self::create_as(vms, spec, State::Launching)
    }

    /// Makes the directory of a fork. Its journal says [`State::Restoring`].
    pub(crate) fn create_fork(vms: &Utf8Path, spec: &VmSpec, snapshot: SnapshotId) -> io::Result<Self> {
        Self::create_as(vms, spec, State::Restoring { snapshot })
    }

    fn create_as(vms: &Utf8Path, spec: &VmSpec, state: State) -> io::Result<Self> {
        assert_may_block();
        private_file::create_dir_all(vms)?;
        let made = (0..CREATE_ATTEMPTS_MAX).find_map(|_| Self::make_and_lock(vms).transpose());
        let this = made.ok_or_else(|| io::Error::other(format!("no directory stays in `{vms}`")))??;
        private_file::write_new(&this.path.join(SPEC_FILE), &serde_json::to_vec_pretty(spec)?)?;
        this.journal.append(state)?;
        Ok(this)
    }

    /// Takes over the directory of a VM that has no owner: a stopped one, or one to be adopted. Until
    /// [`remove_on_drop`](Self::remove_on_drop) says otherwise, it stays when this is dropped.
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

    /// Says what a drop does. A reopened directory goes with this as soon as its VM runs, whose end is its own.
    pub(crate) fn fate(&self) -> &Fate {
        &self.fate
    }

    /// From now on a drop leaves a stopped VM: what a resume that failed has begun is undone. The VMM must have ended then.
    pub(crate) fn stay_stopped_on_drop(&self) {
        self.fate.set(OnDrop::StopAgain);
    }

    /// Gives up the directory of a stopped VM, with no more in it than a resume needs. The VMM must have ended.
    pub(crate) fn keep(self) -> io::Result<()> {
        self.fate.leave_on_drop();
        tidy_stopped(&self.path)
    }

    fn stop_again(&self) -> io::Result<()> {
        if let Some(snapshot) = self.journal.history().restored_from() {
            if self.journal.last().is_some_and(|last| last.state == State::Running) {
                self.journal.append(State::Lost { reason: "it ended before it was handed out".into() })?;
            }
            self.journal.append(State::Stopped { snapshot })?;
        }
        tidy_stopped(&self.path)
    }

    /// `None` where recovery took the new directory for an old one before it was locked.
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

    /// What connects to this directory's sockets, also when its path is too long for an address.
    pub(crate) fn sockets(&self) -> io::Result<SocketDir> {
        // Opened again: a copy of the locked descriptor would hold the lock too.
        let handle = open_directory(&self.path, OFlags::PATH)?;
        Ok(SocketDir { path: self.path.clone(), handle })
    }

    /// What it does and did. Clones write to the same journal.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The spec that it was made with.
    pub(crate) fn spec(&self) -> io::Result<VmSpec> {
        read_spec(&self.path)
    }

    /// Where the next VMM's process writes which it is, see [`Program::pid_file`](crate::process::Program::pid_file).
    pub(crate) fn pid_file(&self) -> io::Result<OwnedFd> {
        Ok(private_file::restart(&self.path.join(PID_FILE))?.into_file().into())
    }
}

impl Drop for VmDir {
    fn drop(&mut self) {
        // Done before the lock is released, so no recovery takes it for a VM without an owner.
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

/// Leaves what a resume needs, and what people want to read.
pub(crate) fn tidy_stopped(path: &Utf8Path) -> io::Result<()> {
    tidy(path, |name| [SPEC_FILE, JOURNAL_FILE].contains(&name) || CONSOLE_LOGS.contains(&name))
}

/// Leaves all but what only a running VM needs: disks of a lost VM may hold data that its user needs.
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

    /// Where `name` can be bound or connected: the path itself, or the way over our descriptor where that is too long.
    pub(crate) fn address(&self, name: &str) -> Utf8PathBuf {
        let file = format!("{name}.sock");
        let path = self.path.join(&file);
        if path.as_str().len() <= SOCKET_PATH_BYTES_MAX {
            return path;
        }
        Utf8PathBuf::from(format!("/proc/self/fd/{}/{file}", self.handle.as_raw_fd()))
    }
}

/// `None` for a directory that another process holds, or has just removed.
pub(crate) fn try_lock(path: &Utf8Path) -> io::Result<Option<OwnedFd>> {
    let lock = match open_directory(path, OFlags::empty()) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        // Its last holder may have removed it before it let go.
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
    fn a_directory_goes_with_its_owner() {
        let (_directory, vms) = vms();
        let dir = VmDir::create(&vms, &spec()).expect("made");
        let path = dir.path().to_owned();
        assert_eq!(dir.spec().expect("reads"), spec());
        assert_eq!(dir.journal().last().map(|record| record.state), Some(State::Launching));
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn a_stopped_vm_keeps_what_a_resume_needs_and_is_taken_over_once() {
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
    fn a_directory_too_deep_for_a_socket_address_works_too() {
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
    fn ids_differ() {
        assert_ne!(VmId::random(), VmId::random());
        let id = VmId::random();
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        for wrong in ["", "..", "0123456789a", "0123456789AB", "0123456789a/", "0123456789abc"] {
            assert!(wrong.parse::<VmId>().is_err(), "{wrong}");
            assert!(serde_json::from_value::<VmId>(wrong.into()).is_err(), "{wrong}");
        }
    }
}

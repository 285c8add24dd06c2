//! A snapshot's directory, held open by its descriptor. All files that are read through it belong to the same snapshot,
//! even if the name leads to another directory meanwhile.
//!
//! ```text
//!   shared lock      users of the snapshot: commands, and VMMs that inherited the descriptor
//!   exclusive lock   the process that removes it
//! ```
//! The lock (flock) belongs to the open file, so it lives until the last copy of the descriptor is closed.
//!
//! A process first opens the directory, then waits for its lock. Meanwhile another process can remove the directory or
//! exchange it. Then the lock is one on a directory that no other process will find. So after each lock the name is
//! checked: only if it still leads to the locked directory, the lock counts. From then on the name can't change under a
//! shared lock, except by a compaction, which leaves the locked directory and its files as they are.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::files::private_file::FILE_MODE;

/// The shortest and longest pause between two attempts to lock. The kernel can't wait for a lock with a deadline.
const LOCK_PAUSE_MIN: Duration = Duration::from_millis(1);
const LOCK_PAUSE_MAX: Duration = Duration::from_millis(50);

/// How a directory or file is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Together with other processes.
    Shared,
    /// By one process only.
    Exclusive,
}

/// An open directory of a snapshot.
#[derive(Debug)]
pub(crate) struct LockedDir {
    fd: OwnedFd,
    opened_at: Utf8PathBuf,
}

impl LockedDir {
    /// Opens and locks the directory at `path`. `None` if it does not exist. [`io::ErrorKind::WouldBlock`] if other
    /// processes still hold it after that time.
    pub(crate) fn open(path: &Utf8Path, hold: Hold, patience: Duration) -> io::Result<Option<Self>> {
        let deadline = Instant::now() + patience;
        loop {
            let Some(this) = Self::open_unlocked(path)? else { return Ok(None) };
            lock_until(&this.fd, hold, deadline)?;
            if this.is_at(path)? {
                return Ok(Some(this));
            }
            // Another directory has the name by now, or the name is gone. The next turn of the loop finds out.
            if Instant::now() > deadline {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
    }

    /// Opens a directory without a lock. It may be removed while it is read.
    pub(crate) fn open_unlocked(path: &Utf8Path) -> io::Result<Option<Self>> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(path.as_std_path(), flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, opened_at: path.to_owned() })),
            // A file that is not a directory is not a snapshot.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// A directory that is already open and locked.
    pub(super) fn from_locked(fd: OwnedFd, path: &Utf8Path) -> Self {
        Self { fd, opened_at: path.to_owned() }
    }

    /// Changes the kind of lock. Between the two, another process may have had the lock, so the caller has to check
    /// [`is_at`](Self::is_at) afterwards.
    pub(crate) fn relock(&self, hold: Hold, patience: Duration) -> io::Result<()> {
        lock_until(&self.fd, hold, Instant::now() + patience)
    }

    /// Whether another process holds a lock for longer than this check itself would.
    pub(super) fn is_held(&self) -> io::Result<bool> {
        match lock_until(&self.fd, Hold::Exclusive, Instant::now() + LOCK_PAUSE_MIN) {
            Ok(()) => rustix::fs::flock(&self.fd, FlockOperation::Unlock).map(|()| false).map_err(Into::into),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Its path now: [`SnapshotStore::compact`](super::SnapshotStore::compact) moves directories that are in use.
    pub(super) fn path(&self) -> Utf8PathBuf {
        let link = Utf8PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()));
        link.read_link_utf8().unwrap_or_else(|_| self.opened_at.clone())
    }

    /// Whether that path leads to this directory.
    pub(crate) fn is_at(&self, path: &Utf8Path) -> io::Result<bool> {
        is_at(&self.fd, path)
    }

    /// Opens one of its files for reading. If it is not an ordinary file, returns [`io::ErrorKind::InvalidInput`].
    pub(crate) fn file(&self, name: &str) -> io::Result<File> {
        // Without NONBLOCK, opening a pipe would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let no_file = || io::Error::new(io::ErrorKind::InvalidInput, "not an ordinary file");
        let file = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::LOOP | Errno::NXIO) => return Err(no_file()),
            Err(error) => return Err(error.into()),
        };
        if file.metadata()?.is_file() { Ok(file) } else { Err(no_file()) }
    }

    /// Reads a file of at most `bytes_max`. For a larger one, returns [`io::ErrorKind::FileTooLarge`].
    pub(crate) fn read(&self, name: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file(name)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
    }

    /// Writes a whole file to disk and puts it in place of the file of that name.
    pub(crate) fn replace(&self, name: &str, contents: &[u8]) -> io::Result<()> {
        let unfinished = format!("{name}.tmp");
        match rustix::fs::unlinkat(&self.fd, &unfinished, AtFlags::empty()) {
            // A crash may have left a temporary file.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.fd, &unfinished, flags, FILE_MODE)?);
        // The umask may have removed the owner's right to read.
        rustix::fs::fchmod(&file, FILE_MODE)?;
        file.write_all(contents)?;
        file.sync_all()?;
        rustix::fs::renameat(&self.fd, &unfinished, &self.fd, name)?;
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// Disk space of its files.
    pub(super) fn bytes_on_disk(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for entry in self.path().read_dir_utf8()? {
            // Blocks have 512 bytes here, on every filesystem.
            bytes += entry?.metadata()?.blocks() * 512;
        }
        Ok(bytes)
    }
}

impl AsFd for LockedDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether a path leads to an open file.
pub(super) fn is_at(file: impl AsFd, path: &Utf8Path) -> io::Result<bool> {
    let held = rustix::fs::fstat(file)?;
    match rustix::fs::lstat(path.as_std_path()) {
        Ok(here) => Ok((here.st_dev, here.st_ino) == (held.st_dev, held.st_ino)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Locks an open file. [`io::ErrorKind::WouldBlock`] if other processes still hold it at the deadline.
pub(super) fn lock_until(file: impl AsFd, hold: Hold, deadline: Instant) -> io::Result<()> {
    let operation = match hold {
        Hold::Shared => FlockOperation::NonBlockingLockShared,
        Hold::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    let mut pause = LOCK_PAUSE_MIN;
    loop {
        match rustix::fs::flock(&file, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                std::thread::sleep(pause.min(left));
                pause = (pause * 2).min(LOCK_PAUSE_MAX);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

//! A volume in use by this process: its lock, the mark for a crash, and the repair after one.
//!
//! ```text
//!   Access::Write   lock alone ─▶ no VMM has it open ─▶ repair if marked ─▶ mark, synced ─▶ VM … ─▶ release: mark removed
//!   Access::Read    lock together ─▶ marked? ─▶ lock alone, repair, lock together ───────▶ VM … ─▶ release
//! ```
//! The mark is synced before the VM starts, so there is no moment at which a VM could have written without a mark, also
//! if the host loses power. It is removed only if the filesystem itself shows that it was unmounted.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::error::VolumeError;
use super::locks;
use super::name::VolumeName;
use super::record::{Content, DATA_FILE, MARK_FILE, Mark, RECORD_BYTES_MAX, RECORD_FILE, Record, SOCKET_FILE};
use super::store::rounded;
use super::superblock::Filesystem;
use super::tools::{self, Checked};
use crate::blocking::blocking;
use crate::failpoint;
use crate::snapshot::locked_dir::{Hold, LockedDir};
use crate::spec::{Disk, DiskFormat, DiskRole};

/// For another Kiln that uses the volume for a moment, such as `kiln volume ls`.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// For the VMM of a Kiln that was killed: the kernel frees its memory before it closes its files.
const VMM_PATIENCE: Duration = Duration::from_secs(10);

/// How a VM uses a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// As the only one.
    Write,
    /// Together with others.
    Read,
}

/// How the use of a volume ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The guest has shut down: it unmounted its disks and powered off.
    Cleanly,
    /// In any other way.
    Cut,
}

/// What was done after a crash, before this use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// The journal was replayed if there was something to replay, and the rest was right.
    Replayed,
    /// e2fsck changed more. What it printed: a guest may have caused any text in it.
    Corrected(String),
    /// It is a raw disk. Its contents are those of the moment of the crash.
    Unchecked,
}

/// A locked volume. Dropping it without [`VolumeHold::release`] leaves the mark, as a crash does.
#[derive(Debug)]
pub struct VolumeHold {
    name: VolumeName,
    directory: LockedDir,
    path: Utf8PathBuf,
    record: Record,
    access: Access,
    repair: Option<Repair>,
}

impl VolumeHold {
    /// Locks a volume for a VM, and repairs it if its last user crashed.
    pub(super) fn take(volumes: &Utf8Path, name: &VolumeName, access: Access) -> Result<Self, VolumeError> {
        let path = volumes.join(name.as_str());
        let mut held = match access {
            Access::Write => Self::alone(&path, name)?,
            Access::Read => Self::together(&path, name)?,
        };
        if held.is_marked()? {
            if access == Access::Read {
                // The process that repairs it must be alone. Readers that came first have found it unmarked.
                drop(held);
                held = Self::alone(&path, name)?;
            }
            // Between the two locks another process may have repaired it.
            held.repair = if held.is_marked()? { Some(held.repair_now()?) } else { None };
        }
        match access {
            Access::Write => held.mark()?,
            Access::Read => held.share()?,
        }
        Ok(Self { access, ..held })
    }

    /// Locks a volume for its only user, without a mark.
    pub(super) fn alone(path: &Utf8Path, name: &VolumeName) -> Result<Self, VolumeError> {
        let held = Self::lock(path, name, Hold::Exclusive)?;
        let data = held.data()?;
        // The lock of the directory is free, so the owner of a VMM that still has the file open was killed.
        match locks::no_vmm_within(&data, VMM_PATIENCE) {
            Ok(true) => Ok(held),
            Ok(false) => Err(VolumeError::InUse { name: name.clone(), by: vec![] }),
            Err(error) => Err(VolumeError::io("lock", held.data_path(), error)),
        }
    }

    /// Locks a volume together with other readers.
    pub(super) fn together(path: &Utf8Path, name: &VolumeName) -> Result<Self, VolumeError> {
        Self::lock(path, name, Hold::Shared)
    }

    fn lock(path: &Utf8Path, name: &VolumeName, hold: Hold) -> Result<Self, VolumeError> {
        let directory = match LockedDir::open(path, hold, LOCK_PATIENCE) {
            Ok(Some(directory)) => directory,
            Ok(None) => return Err(VolumeError::Unknown(name.clone())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let by = File::open(path.as_std_path()).map(|directory| locks::users(&directory)).unwrap_or_default();
                return Err(VolumeError::InUse { name: name.clone(), by });
            }
            Err(error) => return Err(VolumeError::io("lock", path, error)),
        };
        let record = read_record(&directory, name)?;
        let access = if hold == Hold::Exclusive { Access::Write } else { Access::Read };
        Ok(Self { name: name.clone(), directory, path: path.to_owned(), record, access, repair: None })
    }

    /// Its name.
    pub fn name(&self) -> &VolumeName {
        &self.name
    }

    /// What is on it.
    pub fn content(&self) -> Content {
        self.record.content
    }

    /// What was done after a crash, before this use.
    pub fn repair(&self) -> Option<&Repair> {
        self.repair.as_ref()
    }

    /// Its disk, for the spec of a VM.
    pub fn disk(&self) -> Disk {
        let role = match self.access {
            Access::Write => DiskRole::Volume,
            Access::Read => DiskRole::VolumeReadOnly,
        };
        Disk { path: self.data_path(), format: DiskFormat::Raw, role }
    }

    /// Makes the disk larger while a VM has it, see [`Vm::grow_disk`](crate::Vm::grow_disk). The filesystem on it stays as
    /// it is. A crash leaves a file that is larger than its filesystem, which is valid. Returns the size before and now.
    ///
    /// # Errors
    /// [`VolumeError::Size`], [`VolumeError::Shrink`]; or it can't be written.
    pub async fn extend(&self, bytes: u64) -> Result<(u64, u64), VolumeError> {
        let bytes = rounded(bytes)?;
        let file = self.data()?;
        let before = file.metadata().map_err(|error| VolumeError::io("inspect", self.data_path(), error))?.len();
        if bytes < before {
            return Err(VolumeError::Shrink { name: self.name.clone(), now: before, wanted: bytes });
        }
        // This also writes what the guest has written, which takes seconds on a slow disk.
        let grown = blocking(move || file.set_len(bytes).and_then(|()| file.sync_all())).await;
        grown.map_err(|error| VolumeError::io("grow", self.data_path(), error))?;
        Ok((before, bytes))
    }

    /// Where its user answers requests of other processes, see `kiln volume grow`.
    pub fn socket(&self) -> Utf8PathBuf {
        self.path.join(SOCKET_FILE)
    }

    /// Ends the use. After a clean end the volume is used again without a check. Returns whether that is so: a guest may
    /// have shut down and left a filesystem mounted.
    ///
    /// # Errors
    /// The volume can't be read, or the mark can't be removed. The mark stays then.
    pub fn release(self, ended: Ended) -> Result<bool, VolumeError> {
        if self.access == Access::Read {
            return Ok(true);
        }
        if ended == Ended::Cut || !self.is_unmounted()? {
            return Ok(false);
        }
        failpoint::hit("volume.ended")?;
        self.unmark().map(|()| true)
    }

    pub(super) fn directory(&self) -> &LockedDir {
        &self.directory
    }

    pub(super) fn data_path(&self) -> Utf8PathBuf {
        self.path.join(DATA_FILE)
    }

    /// The disk's file, for reading and writing.
    pub(super) fn data(&self) -> Result<File, VolumeError> {
        // Checked first: it may be a FIFO, whose open would wait.
        self.directory.file(DATA_FILE).map_err(|error| self.broken_data(error))?;
        let path = self.data_path();
        let file = fs_err::OpenOptions::new().read(true).write(true).open(&path);
        file.map(fs_err::File::into_file).map_err(|error| VolumeError::io("open", path, error))
    }

    fn broken_data(&self, error: io::Error) -> VolumeError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::InvalidInput => {
                let problem = format!("`{DATA_FILE}` is not a file of it");
                VolumeError::Broken { name: self.name.clone(), problem }
            }
            _ => VolumeError::io("open", self.data_path(), error),
        }
    }

    /// The filesystem as its superblock describes it. `None` for a raw disk, or if a guest has overwritten it.
    pub(super) fn filesystem(&self) -> Result<Option<Filesystem>, VolumeError> {
        if self.record.content == Content::Raw {
            return Ok(None);
        }
        let data = self.directory.file(DATA_FILE).map_err(|error| self.broken_data(error))?;
        Filesystem::read(&data).map_err(|error| VolumeError::io("read", self.data_path(), error))
    }

    /// Whether the last user with write access did not end cleanly, or still writes.
    pub(super) fn is_marked(&self) -> Result<bool, VolumeError> {
        match rustix::fs::statat(&self.directory, MARK_FILE, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(VolumeError::io("inspect", self.path.join(MARK_FILE), error.into())),
        }
    }

    /// Marks the volume until a clean end.
    pub(super) fn mark(&self) -> Result<(), VolumeError> {
        let path = || self.path.join(MARK_FILE);
        let mark = Mark::of_this_process().to_json();
        self.directory.replace(MARK_FILE, &mark).map_err(|error| VolumeError::io("write", path(), error))?;
        Ok(failpoint::hit("volume.marked")?)
    }

    pub(super) fn unmark(&self) -> Result<(), VolumeError> {
        let failed = |error: Errno| VolumeError::io("remove", self.path.join(MARK_FILE), error.into());
        match rustix::fs::unlinkat(&self.directory, MARK_FILE, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
        rustix::fs::fsync(&self.directory).map_err(failed)?;
        Ok(failpoint::hit("volume.unmarked")?)
    }

    /// Repairs a marked volume, and removes the mark. The caller is its only user.
    pub(super) fn repair_now(&self) -> Result<Repair, VolumeError> {
        let repair = match self.record.content {
            Content::Raw => Repair::Unchecked,
            Content::Ext4 => match tools::repair(&self.data_path(), false, self.directory.as_fd())? {
                Checked::Clean => Repair::Replayed,
                Checked::Corrected(found) => Repair::Corrected(found),
                Checked::Wrong(found) => return Err(VolumeError::Damaged { name: self.name.clone(), found }),
            },
        };
        // The repair must be on the disk before the mark is gone from it.
        self.data()?.sync_all().map_err(|error| VolumeError::io("sync", self.data_path(), error))?;
        failpoint::hit("volume.checked")?;
        self.unmark()?;
        Ok(repair)
    }

    /// Lets other readers in.
    fn share(&self) -> Result<(), VolumeError> {
        let failed = |error| VolumeError::io("lock", &self.path, error);
        self.directory.relock(Hold::Shared, LOCK_PATIENCE).map_err(failed)?;
        // The kernel may give the lock to another process in between, which may even remove the volume.
        if !self.directory.is_at(&self.path).map_err(failed)? {
            return Err(VolumeError::Unknown(self.name.clone()));
        }
        if self.is_marked()? {
            return Err(VolumeError::InUse { name: self.name.clone(), by: vec![] });
        }
        Ok(())
    }

    /// Whether no kernel has the filesystem mounted for writing, as far as the filesystem shows it.
    fn is_unmounted(&self) -> Result<bool, VolumeError> {
        match self.record.content {
            Content::Raw => Ok(true),
            // If its guest has overwritten the filesystem, there is nothing left to check, and the next mount fails.
            Content::Ext4 => Ok(self.filesystem()?.is_none_or(|filesystem| !filesystem.needs_recovery)),
        }
    }
}

/// Reads the record of a volume.
pub(super) fn read_record(directory: &LockedDir, name: &VolumeName) -> Result<Record, VolumeError> {
    let broken = |problem: String| VolumeError::Broken { name: name.clone(), problem };
    match directory.read(RECORD_FILE, RECORD_BYTES_MAX) {
        Ok(bytes) => Record::parse(&bytes).map_err(|problem| broken(format!("`{RECORD_FILE}`: {problem}"))),
        Err(error) => Err(broken(format!("`{RECORD_FILE}` can't be read: {error}"))),
    }
}

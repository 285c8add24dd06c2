//! The volumes of a home: create, remove, grow and clone them.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::error::VolumeError;
use super::hold::{Access, Repair, VolumeHold};
use super::name::VolumeName;
use super::record::{Content, DATA_FILE, RECORD_FILE, Record, SOCKET_FILE};
use super::tools::{self, Checked, Journal};
use crate::failpoint;
use crate::files::{PARTIAL_SUFFIX, Partial, partials, private_file, sweep};
use crate::hex_id::random_hex;
use crate::home::Home;
use crate::snapshot::memory::copy_sparse;

/// The smallest volume. A smaller ext4 has no journal.
pub const VOLUME_BYTES_MIN: u64 = 8 << 20;
/// The largest volume. Some filesystems of hosts have no larger files.
pub const VOLUME_BYTES_MAX: u64 = 8 << 40;
/// Sizes are rounded up to this: a number of blocks and of pages.
const SIZE_STEP_BYTES: u64 = 1 << 20;

/// The directory of empty disks, in the cache.
const SCRATCH: &str = "scratch";

/// The volumes of a home.
#[derive(Debug, Clone)]
pub struct VolumeStore {
    directory: Utf8PathBuf,
    scratch: Utf8PathBuf,
}

/// The result of [`VolumeStore::grow`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grown {
    /// The size before.
    pub bytes_before: u64,
    /// The size now.
    pub bytes: u64,
    /// What was done after a crash, before it grew.
    pub repair: Option<Repair>,
}

impl VolumeStore {
    /// The volumes of that home.
    pub fn new(home: &Home) -> Self {
        Self { directory: home.volumes(), scratch: home.cache().join(SCRATCH) }
    }

    /// The directory of all volumes.
    pub(super) fn directory(&self) -> &Utf8Path {
        &self.directory
    }

    /// The directory of empty disks.
    pub(super) fn scratch(&self) -> &Utf8Path {
        &self.scratch
    }

    /// The directory of a volume, existing or not.
    pub(super) fn path(&self, name: &VolumeName) -> Utf8PathBuf {
        self.directory.join(name.as_str())
    }

    /// Makes a volume. It takes some MiB on the host until its guests write to it.
    ///
    /// # Errors
    /// [`VolumeError::Exists`], [`VolumeError::Size`], [`VolumeError::NoTools`]; or it can't be written.
    pub fn create(&self, name: &VolumeName, bytes: u64, content: Content) -> Result<(), VolumeError> {
        let bytes = rounded(bytes)?;
        self.make(name, content, |_, data, file| {
            file.set_len(bytes).map_err(|error| VolumeError::io("write", data, error))?;
            failpoint::hit("volume.data")?;
            match content {
                Content::Ext4 => tools::make(data, Journal::Own),
                Content::Raw => Ok(()),
            }
        })
    }

    /// Copies a volume. Where the filesystem of the host can share blocks, the copy takes no space and no time.
    ///
    /// # Errors
    /// [`VolumeError::Unknown`], [`VolumeError::Exists`], [`VolumeError::InUse`] if a VM can write to it; or it can't be
    /// copied.
    pub fn clone_volume(&self, from: &VolumeName, to: &VolumeName) -> Result<(), VolumeError> {
        let source = self.hold(from, Access::Read)?;
        let content = source.content();
        let disk = source.disk();
        self.make(to, content, |_, data, file| {
            let source = fs::File::open(&disk.path).map_err(|error| VolumeError::io("open", &disk.path, error))?;
            copy_sparse(source.file(), file).map_err(|error| VolumeError::io("copy to", data, error))?;
            Ok(failpoint::hit("volume.data")?)
        })
    }

    /// Locks a volume for a VM. If its last user crashed, it is repaired first. Keep the hold until the VM has ended.
    ///
    /// ```no_run
    /// # fn example(home: &kiln_engine::home::Home) -> Result<(), Box<dyn std::error::Error>> {
    /// use kiln_engine::volume::{Access, Ended, VolumeStore};
    ///
    /// let hold = VolumeStore::new(home).hold(&"data".parse()?, Access::Write)?;
    /// let disk = hold.disk();
    /// // … a VM with that disk runs, and its guest shuts down …
    /// hold.release(Ended::Cleanly)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`VolumeError::Unknown`]; [`VolumeError::InUse`]; [`VolumeError::Damaged`], or [`VolumeError::NoTools`] if it has
    /// to be repaired.
    pub fn hold(&self, name: &VolumeName, access: Access) -> Result<VolumeHold, VolumeError> {
        VolumeHold::take(&self.directory, name, access)
    }

    /// Where the user of a volume answers, see [`VolumeHold::socket`].
    pub fn socket(&self, name: &VolumeName) -> Utf8PathBuf {
        self.path(name).join(SOCKET_FILE)
    }

    /// Removes a volume.
    ///
    /// # Errors
    /// [`VolumeError::Unknown`], [`VolumeError::InUse`]; or it can't be removed.
    pub fn remove(&self, name: &VolumeName) -> Result<(), VolumeError> {
        let path = self.path(name);
        let held = match VolumeHold::alone(&path, name) {
            // What is no volume has no data that a lock would protect.
            Err(VolumeError::Broken { .. }) => None,
            held => Some(held?),
        };
        // Without its name it is gone. What a crash leaves after that is removed by the next sweep, because nothing holds
        // its lock.
        let gone = self.directory.join(format!("{name}-{}{PARTIAL_SUFFIX}", random_hex::<8>()));
        fs::rename(&path, &gone).map_err(|error| VolumeError::io("rename", &path, error))?;
        failpoint::hit("volume.unnamed")?;
        fs::remove_dir_all(&gone).map_err(|error| VolumeError::io("remove", &gone, error))?;
        drop(held);
        Ok(())
    }

    /// Grows a volume that no VM uses, and the filesystem on it. If it has that size already, only the filesystem grows.
    ///
    /// # Errors
    /// [`VolumeError::Unknown`], [`VolumeError::InUse`], [`VolumeError::Size`], [`VolumeError::Shrink`],
    /// [`VolumeError::Damaged`]; or it can't be written. The next use then repairs it.
    pub fn grow(&self, name: &VolumeName, bytes: u64) -> Result<Grown, VolumeError> {
        let bytes = rounded(bytes)?;
        let held = VolumeHold::alone(&self.path(name), name)?;
        let file = held.data()?;
        let bytes_before = file.metadata().map_err(|error| VolumeError::io("inspect", held.data_path(), error))?.len();
        if bytes < bytes_before {
            return Err(VolumeError::Shrink { name: name.clone(), now: bytes_before, wanted: bytes });
        }
        let repair = if held.is_marked()? { Some(held.repair_now()?) } else { None };
        // The mark makes the next use check the filesystem if this one is killed, or if the host loses power. The order
        // is harmless in each place: a file that is larger than its filesystem is valid, and resize2fs marks the
        // filesystem as one with errors while it works, so that e2fsck checks all of it.
        held.mark()?;
        file.set_len(bytes).map_err(|error| VolumeError::io("grow", held.data_path(), error))?;
        failpoint::hit("volume.larger")?;
        if held.content() == Content::Ext4 {
            // resize2fs requires a whole check since the last mount.
            let path = held.data_path();
            if let Checked::Wrong(found) = tools::repair(&path, true, held.directory().as_fd())? {
                return Err(VolumeError::Damaged { name: name.clone(), found });
            }
            tools::grow(&path, held.directory().as_fd())?;
        }
        file.sync_all().map_err(|error| VolumeError::io("sync", held.data_path(), error))?;
        failpoint::hit("volume.grown")?;
        held.unmark()?;
        Ok(Grown { bytes_before, bytes, repair })
    }

    /// Makes a volume whose data `fill` writes. Its name exists once everything is on the disk.
    pub(super) fn make(
        &self,
        name: &VolumeName,
        content: Content,
        fill: impl FnOnce(&Partial, &Utf8Path, &File) -> Result<(), VolumeError>,
    ) -> Result<(), VolumeError> {
        self.sweep();
        let path = self.path(name);
        if path.symlink_metadata().is_ok() {
            return Err(VolumeError::Exists(name.clone()));
        }
        let failed = |error| VolumeError::io("make", &path, error);
        let partial = Partial::create(&self.directory, name.as_str()).map_err(failed)?;
        let data = partial.path().join(DATA_FILE);
        let file = private_file::create_new(&data).map_err(failed)?;
        fill(&partial, &data, file.file())?;
        failpoint::hit("volume.filled")?;
        let record = Record::new(content).to_json();
        private_file::write_new(&partial.path().join(RECORD_FILE), &record).map_err(failed)?;
        failpoint::hit("volume.recorded")?;
        partial.publish(&path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => VolumeError::Exists(name.clone()),
            _ => failed(error),
        })?;
        Ok(failpoint::hit("volume.published")?)
    }

    /// Removes what crashes have left.
    pub(super) fn sweep(&self) {
        for path in partials(&self.directory).unwrap_or_default() {
            if let Err(error) = sweep(&path) {
                tracing::warn!(%path, %error, "failed to remove an unfinished volume");
            }
        }
    }
}

pub(super) fn rounded(bytes: u64) -> Result<u64, VolumeError> {
    if !(VOLUME_BYTES_MIN..=VOLUME_BYTES_MAX).contains(&bytes) {
        return Err(VolumeError::Size { bytes, min: VOLUME_BYTES_MIN, max: VOLUME_BYTES_MAX });
    }
    Ok(bytes.next_multiple_of(SIZE_STEP_BYTES))
}

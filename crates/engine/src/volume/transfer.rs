//! Volumes out to a file, and files in.
//!
//! An exported file is the disk itself, with its holes. It gets its name once it is whole. An imported file is hostile:
//! it is copied first, and only the copy is looked at, so no other process can change it between a check and its use.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::error::VolumeError;
use super::hold::VolumeHold;
use super::name::VolumeName;
use super::record::{Content, MARK_FILE, Mark};
use super::store::{VOLUME_BYTES_MAX, VolumeStore};
use super::superblock::Filesystem;
use super::tools::{self, Checked};
use crate::failpoint;
use crate::files::{PARTIAL_SUFFIX, private_file};
use crate::hex_id::random_hex;
use crate::snapshot::memory::copy_sparse;

/// The smallest disk that is imported. The superblock of an ext4 ends here.
const IMPORT_BYTES_MIN: u64 = 4 << 10;
/// Disks are a number of these.
const BLOCK_BYTES: u64 = 4096;

/// Where an export goes.
pub enum Target<'a> {
    /// A new file, with holes.
    File(&'a Utf8Path),
    /// A stream. Holes become zeros.
    Stream(&'a mut dyn Write),
}

impl std::fmt::Debug for Target<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// The result of [`VolumeStore::import`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The size that its guest sees.
    pub bytes: u64,
    /// What e2fsck found in it, if it is not clean. Its first use repairs it.
    pub found: Option<String>,
}

impl VolumeStore {
    /// Writes a volume's disk to a file or a stream. Returns the size of the disk. If its last user crashed, the disk is
    /// copied as it is: the copy of a damaged volume can be repaired by hand.
    ///
    /// # Errors
    /// [`VolumeError::Unknown`], [`VolumeError::InUse`] if a VM can write to it, [`VolumeError::TargetExists`]; or it
    /// can't be written. Then no file is left.
    pub fn export(&self, name: &VolumeName, target: Target<'_>) -> Result<u64, VolumeError> {
        let directory = self.path(name);
        let mut held = VolumeHold::together(&directory, name)?;
        if held.is_marked()? {
            // A VMM of a Kiln that was killed may still write to it.
            drop(held);
            held = VolumeHold::alone(&directory, name)?;
        }
        let path = held.data_path();
        let mut disk = fs::File::open(&path).map_err(|error| VolumeError::io("open", &path, error))?;
        let bytes = disk.metadata().map_err(|error| VolumeError::io("inspect", &path, error))?.len();
        match target {
            Target::File(target) => export_file(disk.file(), target)?,
            Target::Stream(stream) => {
                disk.seek(SeekFrom::Start(0)).map_err(|error| VolumeError::io("read", &path, error))?;
                let copied = io::copy(&mut disk.take(bytes), stream).and_then(|_| stream.flush());
                copied.map_err(|error| VolumeError::io("copy", &path, error))?;
            }
        }
        Ok(bytes)
    }

    /// Makes a volume from a raw disk image. If it is to have an ext4 filesystem, e2fsck looks at it without changing it.
    ///
    /// # Errors
    /// [`VolumeError::Exists`]; [`VolumeError::NotImportable`]; or it can't be copied.
    pub fn import(&self, path: &Utf8Path, name: &VolumeName, content: Content) -> Result<Imported, VolumeError> {
        let refused = |problem: String| VolumeError::NotImportable { path: path.to_owned(), problem };
        let failed = |error| VolumeError::io("read", path, error);
        // Without `O_NONBLOCK`, the open of a FIFO waits for a writer.
        let source = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path.as_std_path());
        let source = source.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => refused("it does not exist".into()),
            _ => failed(error),
        })?;
        let meta = source.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(refused("it is not an ordinary file".into()));
        }
        if !(IMPORT_BYTES_MIN..=VOLUME_BYTES_MAX).contains(&meta.len()) {
            let problem = format!("it has {} bytes, not {IMPORT_BYTES_MIN} to {VOLUME_BYTES_MAX}", meta.len());
            return Err(refused(problem));
        }
        let mut imported = Imported { bytes: meta.len().next_multiple_of(BLOCK_BYTES), found: None };
        self.make(name, content, |partial, data, file| {
            copy_sparse(&source, file).map_err(|error| VolumeError::io("copy to", data, error))?;
            // The file may have grown meanwhile. Its disk has the size that was checked.
            file.set_len(imported.bytes).map_err(|error| VolumeError::io("write", data, error))?;
            failpoint::hit("volume.data")?;
            if content == Content::Raw {
                return Ok(());
            }
            let filesystem = Filesystem::read(file).map_err(|error| VolumeError::io("read", data, error))?;
            let filesystem = filesystem.ok_or_else(|| refused("it has no ext4 filesystem".into()))?;
            if filesystem.bytes > imported.bytes {
                let problem = format!("its filesystem has {} bytes, more than the file", filesystem.bytes);
                return Err(refused(problem));
            }
            let lock =
                fs::File::open(partial.path()).map_err(|error| VolumeError::io("open", partial.path(), error))?;
            let found = match tools::examine(data, lock.as_fd())? {
                Checked::Wrong(found) | Checked::Corrected(found) => Some(found),
                // e2fsck ignores the journal and these marks if it must not change anything.
                Checked::Clean if filesystem.needs_recovery => Some("its journal has to be replayed".into()),
                Checked::Clean if !filesystem.clean => Some("it is marked as one with errors".into()),
                Checked::Clean => None,
            };
            if let Some(found) = found {
                // The first use repairs it.
                let mark = partial.path().join(MARK_FILE);
                private_file::write_new(&mark, &Mark::of_this_process().to_json())
                    .map_err(|error| VolumeError::io("write", mark, error))?;
                imported.found = Some(found);
            }
            Ok(())
        })?;
        Ok(imported)
    }
}

/// Writes a file beside the target, and then gives it its name. A crash leaves no file with that name, or a whole one.
fn export_file(disk: &File, target: &Utf8Path) -> Result<(), VolumeError> {
    if target.symlink_metadata().is_ok() {
        return Err(VolumeError::TargetExists(target.to_owned()));
    }
    let unfinished = Unfinished(Utf8PathBuf::from(format!("{target}-{}{PARTIAL_SUFFIX}", random_hex::<4>())));
    let failed = |error| VolumeError::io("write", &unfinished.0, error);
    let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&unfinished.0).map_err(failed)?;
    copy_sparse(disk, file.file()).and_then(|()| file.sync_all()).map_err(failed)?;
    failpoint::hit("volume.exported")?;
    // A link fails if the name exists by now, which a rename would replace.
    match fs::hard_link(&unfinished.0, target) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(VolumeError::TargetExists(target.to_owned())),
        // A filesystem without links.
        Err(_) => fs::rename(&unfinished.0, target).map_err(|error| VolumeError::io("rename", target, error)),
        Ok(()) => Ok(()),
    }
}

/// Removes a file that did not get its final name.
pub(super) struct Unfinished(pub(super) Utf8PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After a rename the temporary file does not exist.
        let _ = fs::remove_file(&self.0);
    }
}

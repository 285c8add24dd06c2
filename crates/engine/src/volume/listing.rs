//! The volumes of a home, as users see them. Takes no lock, so it never keeps another process waiting.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use serde::Serialize;

use super::error::VolumeError;
use super::hold::read_record;
use super::locks;
use super::name::VolumeName;
use super::record::{Content, DATA_FILE, MARK_FILE};
use super::store::VolumeStore;
use super::superblock::Filesystem;
use crate::snapshot::locked_dir::LockedDir;

/// The state of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// It was unmounted, and no VM writes to it.
    Clean,
    /// A VM may be writing to it.
    Writing,
    /// Its last user did not end cleanly. It is repaired before its next use.
    Dirty,
    /// Its kernel has found errors in the filesystem.
    Errors,
}

/// What is known of a volume at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// Its name.
    pub name: VolumeName,
    /// What is on it.
    pub content: Content,
    /// The size that its guest sees.
    pub bytes: u64,
    /// What it takes on the host.
    pub bytes_on_disk: u64,
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Its state.
    pub state: VolumeState,
    /// Processes that use it.
    pub users: Vec<u32>,
    /// Its filesystem. Absent for a raw disk, and for a disk whose filesystem a guest has overwritten.
    pub filesystem: Option<Filesystem>,
    /// The file of its disk.
    pub path: camino::Utf8PathBuf,
}

/// An entry of the list.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: VolumeName,
    /// What is known of it, or why it can't be used.
    pub inspection: Result<Inspection, VolumeError>,
}

impl VolumeStore {
    /// All volumes by name, broken ones too. Unfinished ones have no name yet.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn list(&self) -> Result<Vec<Listed>, VolumeError> {
        let failed = |error| VolumeError::io("list", self.directory(), error);
        let entries = match self.directory().read_dir_utf8() {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut listed = Vec::new();
        for entry in entries {
            // A name that no volume can have is not one of Kiln's.
            let Ok(name) = entry.map_err(failed)?.file_name().parse::<VolumeName>() else { continue };
            match self.inspect(&name) {
                // It was removed meanwhile.
                Err(VolumeError::Unknown(_)) => {}
                inspection => listed.push(Listed { name, inspection }),
            }
        }
        listed.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(listed)
    }

    /// What is known of a volume. A VM may be writing to it meanwhile.
    ///
    /// # Errors
    /// [`VolumeError::Unknown`], [`VolumeError::Broken`]; or it can't be read.
    pub fn inspect(&self, name: &VolumeName) -> Result<Inspection, VolumeError> {
        let path = self.path(name);
        let directory = LockedDir::open_unlocked(&path).map_err(|error| VolumeError::io("open", &path, error))?;
        let directory = directory.ok_or_else(|| VolumeError::Unknown(name.clone()))?;
        let record = read_record(&directory, name)?;
        let broken = |error: io::Error| {
            let problem = format!("`{DATA_FILE}` can't be read: {error}");
            VolumeError::Broken { name: name.clone(), problem }
        };
        let data = directory.file(DATA_FILE).map_err(broken)?;
        let meta = data.metadata().map_err(broken)?;
        let filesystem = match record.content {
            Content::Ext4 => Filesystem::read(&data).map_err(broken)?,
            Content::Raw => None,
        };
        let users = File::open(path.as_std_path()).map(|directory| locks::users(&directory)).unwrap_or_default();
        let marked = path.join(MARK_FILE).symlink_metadata().is_ok();
        let state = match (marked, users.is_empty()) {
            (true, false) => VolumeState::Writing,
            (true, true) => VolumeState::Dirty,
            (false, _) if filesystem.as_ref().is_some_and(|filesystem| filesystem.errors) => VolumeState::Errors,
            (false, _) => VolumeState::Clean,
        };
        Ok(Inspection {
            name: name.clone(),
            content: record.content,
            bytes: meta.len(),
            // Blocks have 512 bytes here, on every filesystem.
            bytes_on_disk: meta.blocks() * 512,
            created_unix_ms: record.created_unix_ms,
            state,
            users,
            filesystem,
            path: path.join(DATA_FILE),
        })
    }
}

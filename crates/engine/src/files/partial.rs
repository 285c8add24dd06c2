//! Creates a directory so that its final name appears with all contents or not at all.
//!
//! ```text
//!   Partial::create ──► x.partial (flock held) ──fill──► Partial::publish ──fsync, rename──► final name
//!                          │ dropped: removed
//!                          │ crashed: the lock is free, so the next sweep removes it
//! ```
//! A crash leaves a partial directory that no process needs. A sweep has to tell it from the directory of a builder
//! that still runs, in another process and perhaps another pid namespace. A pid in the name could not show that. A lock
//! can: the kernel releases it at the end of the process, whatever ends it. So a sweep removes exactly the partial
//! directories whose lock it gets.
//!
//! The builder creates the directory before it can lock it, and a sweep can run in between. If the sweep gets the lock
//! first, the builder's attempt fails. If the sweep is already done, the builder's lock succeeds on a directory without
//! a name. Both are found: the first by `try_lock`, the second by `is_still`. In both cases the builder starts again
//! with another name. Once it has the lock and the name, no sweep takes the directory.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use rustix::fs::{CWD, FlockOperation, RenameFlags};

use super::{plain_file, private_file};
use crate::hex_id::random_hex;

/// The end of the name of an unfinished directory or file.
pub(crate) const PARTIAL_SUFFIX: &str = ".partial";
/// A sweep can take a new partial directory before it is locked. So many times in a row, the cause is something else.
const PARTIAL_ATTEMPTS_MAX: usize = 16;
/// The deepest tree that is synced. Images and snapshots are flat.
const SYNC_DEPTH_MAX: usize = 32;

/// An unfinished directory. If it is dropped before [`Partial::publish`], it is removed.
#[derive(Debug)]
pub(crate) struct Partial {
    path: Utf8PathBuf,
    published: bool,
    // Shows `sweep_partials` that the builder still runs.
    lock: fs::File,
}

impl Partial {
    /// Creates and locks `<parent>/<name>-<random>.partial`, and creates `parent` if it is missing.
    ///
    /// # Errors
    /// The directory can't be created or locked.
    pub(crate) fn create(parent: &Utf8Path, name: &str) -> io::Result<Self> {
        private_file::create_dir_all(parent)?;
        for _ in 0..PARTIAL_ATTEMPTS_MAX {
            let path = parent.join(format!("{name}-{}{PARTIAL_SUFFIX}", random_hex::<8>()));
            // A sweep may run between any two of these steps, see above.
            match private_file::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            }
            let Ok(lock) = fs::File::open(&path) else { continue };
            if try_lock(&lock)? && is_still(&lock, &path) {
                return Ok(Self { path, published: false, lock });
            }
        }
        Err(io::Error::other(format!("new partial directories in `{parent}` disappear at once")))
    }

    /// Its path, for the contents.
    pub(crate) fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Syncs the contents to disk, then gives the directory its final name.
    ///
    /// # Errors
    /// See [`publish`]. The partial directory is removed then.
    pub(crate) fn publish(mut self, final_dir: &Utf8Path) -> io::Result<()> {
        publish(&self.path, final_dir)?;
        self.published = true;
        Ok(())
    }

    /// Gives the directory its final name without a sync: a crash of the host may leave a part of it. Returns its lock,
    /// which this process has held without a break.
    ///
    /// # Errors
    /// See [`Partial::publish`].
    pub(crate) fn publish_unsynced(mut self, final_dir: &Utf8Path) -> io::Result<OwnedFd> {
        let lock = self.lock.as_fd().try_clone_to_owned()?;
        fs::rename(&self.path, final_dir)?;
        self.published = true;
        Ok(lock)
    }

    /// Swaps this directory with the directory that has the final name. Returns the new path of the latter:
    /// [`Home::sweep_partials`](crate::home::Home::sweep_partials) removes it once it is not locked any more. Syncs
    /// nothing.
    ///
    /// # Errors
    /// The final name does not exist, or the filesystem can't swap. The partial directory is removed then.
    pub(crate) fn exchange(mut self, final_dir: &Utf8Path) -> io::Result<Utf8PathBuf> {
        let (new, old) = (self.path.as_std_path(), final_dir.as_std_path());
        rustix::fs::renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE)?;
        self.published = true;
        Ok(std::mem::take(&mut self.path))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published {
            // If this fails, the next start sweeps it.
            _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Creates a partial file with a random name, and locks it together with others, which keeps it from a sweep.
///
/// # Errors
/// The file can't be created or locked.
pub(crate) fn create_partial_file(parent: &Utf8Path) -> io::Result<(Utf8PathBuf, fs::File)> {
    private_file::create_dir_all(parent)?;
    for _ in 0..PARTIAL_ATTEMPTS_MAX {
        let path = parent.join(format!("{}{PARTIAL_SUFFIX}", random_hex::<8>()));
        let file = private_file::create_new(&path)?;
        // A sweep may take it before it is locked, and has it alone then.
        if try_lock_together(&file)? && is_still(&file, &path) {
            return Ok((path, file));
        }
    }
    Err(io::Error::other(format!("new files in `{parent}` disappear at once")))
}

/// The partial directories and files in a directory.
pub(crate) fn partials(parent: &Utf8Path) -> io::Result<Vec<Utf8PathBuf>> {
    let entries = match parent.read_dir_utf8() {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.into_path();
        if path.as_str().ends_with(PARTIAL_SUFFIX) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Removes a partial directory or file if its lock is free. Returns whether it was removed.
pub(crate) fn sweep(path: &Utf8Path) -> io::Result<bool> {
    let gone = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return gone(error).map(|()| false),
    };
    if !metadata.is_dir() && !metadata.is_file() {
        // A link must not be followed, and the open of a FIFO would wait.
        return fs::remove_file(path).or_else(gone).map(|()| true);
    }
    let handle = match plain_file::open_any(path) {
        Ok(handle) => handle,
        Err(error) => return gone(error).map(|()| false),
    };
    if !try_lock(&handle)? {
        return Ok(false);
    }
    let removal = if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removal.or_else(gone).map(|()| true)
}

fn try_lock(file: impl AsFd) -> io::Result<bool> {
    lock(file, FlockOperation::NonBlockingLockExclusive)
}

/// Locks a file together with others. Returns whether that succeeded: not while a process has it alone.
pub(crate) fn try_lock_together(file: impl AsFd) -> io::Result<bool> {
    lock(file, FlockOperation::NonBlockingLockShared)
}

fn lock(file: impl AsFd, how: FlockOperation) -> io::Result<bool> {
    match rustix::fs::flock(&file, how) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether a path leads to that open file.
pub(crate) fn is_still(handle: &fs::File, path: &Utf8Path) -> bool {
    let here = fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    let held = handle.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
    matches!((here, held), (Ok(here), Ok(held)) if here == held)
}

/// Syncs a directory with everything in it, then renames it.
///
/// The order matters for a crash of the host. A file system may write a rename to disk before the contents of the
/// renamed files. So the contents are synced first, then the directory is renamed, and then its parent is synced,
/// because only that makes the rename durable. After a crash the final name leads to everything or does not exist.
///
/// # Errors
/// A file can't be synced, or the rename fails: [`io::ErrorKind::DirectoryNotEmpty`] or
/// [`io::ErrorKind::AlreadyExists`] if `final_dir` already exists.
fn publish(partial_dir: &Utf8Path, final_dir: &Utf8Path) -> io::Result<()> {
    sync_tree(partial_dir, SYNC_DEPTH_MAX)?;
    fs::rename(partial_dir, final_dir)?;
    match final_dir.parent() {
        Some(parent) => fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn sync_tree(directory: &Utf8Path, depth: usize) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::other(format!("`{directory}` is more than {SYNC_DEPTH_MAX} levels deep")));
    }
    for entry in directory.read_dir_utf8()? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(entry.path(), depth - 1)?;
        } else if kind.is_file() {
            fs::File::open(entry.path())?.sync_all()?;
        }
    }
    fs::File::open(directory)?.sync_all()
}

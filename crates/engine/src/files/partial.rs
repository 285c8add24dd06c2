//! How a directory comes to be there whole or not at all.
//!
//! ```text
//!   Partial::create ──► x.partial (flock held) ──fill──► Partial::publish ──fsync, rename──► final name
//!                          │ dropped: removed
//!                          │ crashed: the lock is free, so the next sweep removes it
//! ```

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use rustix::fs::{CWD, FlockOperation, RenameFlags};

use super::{plain_file, private_file};
use crate::hex_id::random_hex;

/// What a directory or file that is not whole yet ends with.
pub(crate) const PARTIAL_SUFFIX: &str = ".partial";
/// A sweeper can take a new partial directory before it is locked; that it happens so often says that something else is wrong.
const PARTIAL_ATTEMPTS_MAX: usize = 16;
/// Trees below a published directory; images and snapshots are flat.
const SYNC_DEPTH_MAX: usize = 32;

/// A directory in the making. Dropped before [`Partial::publish`], it is removed.
#[derive(Debug)]
pub(crate) struct Partial {
    path: Utf8PathBuf,
    published: bool,
    // It shows `sweep_partials` that the builder lives.
    lock: fs::File,
}

impl Partial {
    /// Makes and locks `<parent>/<name>-<random>.partial`, and `parent` too where it is missing.
    ///
    /// # Errors
    /// The directory can't be made or locked.
    pub(crate) fn create(parent: &Utf8Path, name: &str) -> io::Result<Self> {
        private_file::create_dir_all(parent)?;
        for _ in 0..PARTIAL_ATTEMPTS_MAX {
            let path = parent.join(format!("{name}-{}{PARTIAL_SUFFIX}", random_hex::<8>()));
            // A sweeper may come between any two of these steps: then it has the lock, or the directory is gone.
            match private_file::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            }
            let Ok(lock) = fs::File::open(&path) else { continue };
            if try_lock(&lock)? && is_still(&lock, &path) {
                return Ok(Self { path, published: false, lock });
            }
        }
        Err(io::Error::other(format!("no partial directory stays in `{parent}`")))
    }

    /// Where to put the contents.
    pub(crate) fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Makes the contents durable, then gives the directory its final name.
    ///
    /// # Errors
    /// [`publish`]; the partial directory is removed then.
    pub(crate) fn publish(mut self, final_dir: &Utf8Path) -> io::Result<()> {
        publish(&self.path, final_dir)?;
        self.published = true;
        Ok(())
    }

    /// Gives the directory its final name without waiting for the disk: after a crash of the host there may be a part of
    /// it. Returns its lock, which no other process has had meanwhile.
    ///
    /// # Errors
    /// See [`Partial::publish`].
    pub(crate) fn publish_unsynced(mut self, final_dir: &Utf8Path) -> io::Result<OwnedFd> {
        let lock = self.lock.as_fd().try_clone_to_owned()?;
        fs::rename(&self.path, final_dir)?;
        self.published = true;
        Ok(lock)
    }

    /// Swaps the directory with the one that has the final name. Returns the path that the latter has now, where
    /// [`Home::sweep_partials`](crate::home::Home::sweep_partials) finds it once it is not locked. Syncs nothing.
    ///
    /// # Errors
    /// Nothing has that name, or the filesystem can't swap; the partial directory is removed then.
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
            // What stays behind is swept at the next start.
            _ = fs::remove_dir_all(&self.path);
        }
    }
}

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

/// Removes a partial whose lock is free.
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
        // A link is not followed, and a pipe is not waited for.
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
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_still(handle: &fs::File, path: &Utf8Path) -> bool {
    let here = fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    let held = handle.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
    matches!((here, held), (Ok(here), Ok(held)) if here == held)
}

/// Syncs a directory and all in it, then renames it, so that after a crash it is there whole or not at all.
///
/// # Errors
/// A file can't be synced, or the rename fails: [`io::ErrorKind::DirectoryNotEmpty`] or
/// [`io::ErrorKind::AlreadyExists`] when `final_dir` is there already.
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

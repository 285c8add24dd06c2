//! Blobs on disk, by digest. Several pulls, also of several processes, share a directory.
//!
//! ```text
//!   partial/sha256-HEX   being downloaded by the holder of its lock; its bytes are not compared yet
//!   blobs/sha256/HEX     whole: renamed there after its digest was compared
//! ```
//! A crash leaves a partial file that the next pull continues. The rename is not synced: after a loss of power a blob may
//! have wrong bytes, and is found when it is compared before its next use.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::stop::Stop;
use crate::digest::{Digest, Hasher};
use crate::folder::{FileError, Folder};
use crate::image::blob_path;

/// How often the lock of a partial file is tried.
const LOCK_CHECK: Duration = Duration::from_millis(100);
const BUFFER_BYTES: usize = 256 << 10;

/// A directory of blobs.
#[derive(Debug, Clone)]
pub struct BlobCache {
    path: PathBuf,
    folder: Arc<Folder>,
}

/// A blob that is being downloaded. Its lock is held as long as this exists.
#[derive(Debug)]
pub(crate) struct Partial {
    pub file: File,
    path: PathBuf,
}

/// Why the cache can't be used.
#[derive(Debug, thiserror::Error)]
#[error("failed to {operation} `{}`", .path.display())]
pub struct CacheError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl CacheError {
    /// The error of the system.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    pub(crate) fn writing(path: &Path, source: io::Error) -> Self {
        Self { operation: "write", path: path.to_owned(), source }
    }
}

impl BlobCache {
    /// Opens a cache, and makes its directories.
    ///
    /// # Errors
    /// If a directory can't be made or opened.
    pub fn open(path: &Path) -> Result<Self, CacheError> {
        for name in ["blobs/sha256", "blobs/sha512", "partial"] {
            let folder = path.join(name);
            std::fs::create_dir_all(&folder).map_err(|source| error("make", &folder, source))?;
        }
        let folder = Folder::open(path).map_err(|source| error("open", path, io::Error::other(source)))?;
        Ok(Self { path: path.to_owned(), folder: Arc::new(folder) })
    }

    /// Removes all blobs except these, and all partial downloads that nothing uses. Returns how many bytes that freed.
    ///
    /// # Errors
    /// If a directory can't be read, or a file can't be removed.
    pub fn prune(&self, keep: &dyn Fn(&Digest) -> bool) -> Result<u64, CacheError> {
        let mut freed = 0;
        for algorithm in ["sha256", "sha512"] {
            freed += self.prune_folder(&format!("blobs/{algorithm}"), |name, _| {
                format!("{algorithm}:{name}").parse::<Digest>().is_ok_and(|digest| keep(&digest))
            })?;
        }
        // A partial file that a pull writes is locked. If its pull starts just after the check, it notices that the file
        // has lost its name.
        freed += self.prune_folder("partial", |_, path| {
            File::open(path).is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_err())
        })?;
        Ok(freed)
    }

    fn prune_folder(&self, name: &str, is_kept: impl Fn(&str, &Path) -> bool) -> Result<u64, CacheError> {
        let folder = self.path.join(name);
        let mut freed = 0;
        let failed = |source| error("list", &folder, source);
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if is_kept(&name, &path) {
                continue;
            }
            let bytes = std::fs::symlink_metadata(&path).map_or(0, |found| found.len());
            match std::fs::remove_file(&path) {
                Ok(()) => freed += bytes,
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(error("remove", &path, source)),
            }
        }
        Ok(freed)
    }

    pub(crate) fn folder(&self) -> &Arc<Folder> {
        &self.folder
    }

    /// Whether the blob is here and whole. One with other bytes is removed, and so is one that is no file.
    pub(crate) fn has(&self, digest: &Digest, size: u64) -> Result<bool, CacheError> {
        let name = blob_path(digest);
        let file = match self.folder.file(&name) {
            Ok(file) => file,
            Err(error) if error.is_not_found() => return Ok(false),
            Err(FileError::NotRegular { path }) => {
                return std::fs::remove_file(&path).map(|()| false).map_err(|source| error("remove", &path, source));
            }
            Err(source) => return Err(error("open", &self.path.join(name), io::Error::other(source))),
        };
        let path = self.path.join(&name);
        let length = file.metadata().map_err(|source| error("read", &path, source))?.len();
        if length == size {
            let mut hasher = Hasher::new(digest.algorithm());
            hash(&file, &mut hasher).map_err(|source| error("read", &path, source))?;
            if hasher.finish() == *digest {
                return Ok(true);
            }
        }
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error("remove", &path, source)),
            _ => Ok(false),
        }
    }

    /// A small blob whole, if it is here with the right bytes.
    pub(crate) fn document(&self, digest: &Digest, limit: usize) -> Option<Vec<u8>> {
        self.folder.read(&blob_path(digest), limit as u64).ok().filter(|bytes| digest.matches(bytes))
    }

    /// Keeps a small blob that was compared with its digest.
    pub(crate) fn keep_document(&self, digest: &Digest, bytes: &[u8]) -> Result<(), CacheError> {
        let folder = self.path.join("partial");
        let mut file = tempfile::NamedTempFile::new_in(&folder).map_err(|source| error("write to", &folder, source))?;
        io::Write::write_all(&mut file, bytes).map_err(|source| CacheError::writing(file.path(), source))?;
        let path = self.path.join(blob_path(digest));
        file.persist(&path).map(drop).map_err(|failed| error("rename a file to", &path, failed.error))
    }

    /// The partial file of a blob, once no other pull downloads it. `None` if this pull was stopped meanwhile.
    pub(crate) fn partial(&self, digest: &Digest, stop: &Stop) -> Result<Option<Partial>, CacheError> {
        let path = self.path.join("partial").join(format!("{}-{}", digest.algorithm(), digest.hex()));
        loop {
            let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let file = open.map_err(|source| error("open", &path, source))?;
            loop {
                match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                    Ok(()) => break,
                    Err(rustix::io::Errno::WOULDBLOCK) if stop.wait(LOCK_CHECK).is_none() => {}
                    Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                    Err(errno) => return Err(error("lock", &path, errno.into())),
                }
            }
            // The pull that had the lock may have renamed the file. Then the lock is one of a whole blob, and the name
            // is free or belongs to a third pull's file.
            let is_same = |found: std::fs::Metadata| Some(found.ino()) == file.metadata().ok().map(|own| own.ino());
            if std::fs::symlink_metadata(&path).is_ok_and(is_same) {
                return Ok(Some(Partial { file, path }));
            }
        }
    }

    /// Makes a partial file, whose digest was compared, the blob. Its lock is released when the partial file is dropped,
    /// so other pulls see the blob first.
    pub(crate) fn finish(&self, partial: &Partial, digest: &Digest) -> Result<(), CacheError> {
        let path = self.path.join(blob_path(digest));
        std::fs::rename(&partial.path, &path).map_err(|source| error("rename a file to", &path, source))
    }
}

impl Partial {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn remove(self) -> Result<(), CacheError> {
        std::fs::remove_file(&self.path).map_err(|source| error("remove", &self.path, source))
    }
}

/// Adds all of a file to a hash. Returns its length.
pub(crate) fn hash(mut file: &File, hasher: &mut Hasher) -> io::Result<u64> {
    let (mut buffer, mut bytes) = (vec![0; BUFFER_BYTES], 0);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn error(operation: &'static str, path: &Path, source: io::Error) -> CacheError {
    CacheError { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::stop::Reason;
    use super::*;

    #[test]
    fn a_damaged_blob_is_removed() {
        let home = tempfile::tempdir().expect("a directory");
        let cache = BlobCache::open(home.path()).expect("a cache");
        let digest = Digest::sha256(b"right");
        let path = home.path().join(blob_path(&digest));
        assert!(!cache.has(&digest, 5).expect("is read"));
        cache.keep_document(&digest, b"right").expect("is kept");
        assert!(cache.has(&digest, 5).expect("is read"));
        assert_eq!(cache.document(&digest, 5).as_deref(), Some(&b"right"[..]));
        for wrong in [&b"wrong"[..], b"righ", b"right!"] {
            std::fs::write(&path, wrong).expect("is damaged");
            assert_eq!(cache.document(&digest, 10), None);
            assert!(!cache.has(&digest, 5).expect("is read"));
            assert!(!path.exists());
        }
        symlink("/etc/passwd", &path).expect("a link");
        assert!(!cache.has(&digest, 5).expect("is read"));
        assert!(path.symlink_metadata().is_err(), "the link is removed");
    }

    #[test]
    fn only_one_pull_has_a_partial_file() {
        let home = tempfile::tempdir().expect("a directory");
        let cache = BlobCache::open(home.path()).expect("a cache");
        let (digest, stop) = (Digest::sha256(b"x"), Stop::default());
        let first = cache.partial(&digest, &stop).expect("opens").expect("is not stopped");
        let ended = Stop::default();
        ended.stop(Reason::Cancelled);
        assert!(cache.partial(&digest, &ended).expect("opens").is_none(), "it waits until it is stopped");
        std::thread::scope(|scope| {
            let second = scope.spawn(|| cache.partial(&digest, &stop).expect("opens").expect("is not stopped"));
            cache.finish(&first, &digest).expect("is renamed");
            drop(first);
            let second = second.join().expect("does not panic");
            assert!(second.path().exists(), "the second has a file of its own");
        });
    }

    #[test]
    fn pruning_keeps_what_is_used() {
        let home = tempfile::tempdir().expect("a directory");
        let cache = BlobCache::open(home.path()).expect("a cache");
        let [a, b] = [b"a", b"b"].map(|bytes| {
            let digest = Digest::sha256(bytes);
            cache.keep_document(&digest, bytes).expect("is kept");
            digest
        });
        let used = cache.partial(&Digest::sha256(b"used"), &Stop::default()).expect("opens").expect("is not stopped");
        let left = home.path().join("partial/sha256-left");
        std::fs::write(&left, "left").expect("a file");
        assert_eq!(cache.prune(&|digest| *digest == a).expect("works"), 5);
        assert!(cache.document(&a, 1).is_some() && cache.document(&b, 1).is_none());
        assert!(used.path().exists() && !left.exists());
    }
}

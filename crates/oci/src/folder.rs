//! Files below a directory that a stranger filled: regular files only, reached without following a symlink.
//!
//! A layout may come from an archive or a share. A symlink in it could make the host read any file, a FIFO would block
//! its reader forever, and a device may act when it is opened. So each step of a path is opened on its own without
//! following links, and what is not a regular file is refused.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

/// An open directory.
#[derive(Debug)]
pub(crate) struct Folder {
    descriptor: OwnedFd,
    path: PathBuf,
}

/// Why a file can't be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system returned an error.
    #[error("failed to open `{}`", .path.display())]
    Open {
        /// The file or directory.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// It is a symlink, directory, FIFO or device.
    #[error("`{}` is not a regular file", .path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// It is longer than it may be.
    #[error("`{}` has more than {limit} bytes", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound.
        limit: u64,
    },
}

impl FileError {
    /// Whether there is no such file.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl Folder {
    /// Opens a directory that the user named; the path may lead through symlinks.
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(path, flags, Mode::empty());
        let descriptor = descriptor.map_err(|errno| FileError::Open { path: path.to_owned(), source: errno.into() })?;
        Ok(Self { descriptor, path: path.to_owned() })
    }

    /// Opens a regular file. The path has names only: no `..`, and nothing but `/` between them.
    pub(crate) fn file(&self, path: &str) -> Result<File, FileError> {
        let whole = || self.path.join(path);
        let failed = |errno: Errno| match errno {
            Errno::LOOP | Errno::NOTDIR | Errno::NXIO => FileError::NotRegular { path: whole() },
            errno => FileError::Open { path: whole(), source: errno.into() },
        };
        let (folders, name) = path.rsplit_once('/').map_or(("", path), |(folders, name)| (folders, name));
        let mut inner: Option<OwnedFd> = None;
        for part in folders.split('/').filter(|part| !part.is_empty()) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let at = inner.as_ref().unwrap_or(&self.descriptor);
            inner = Some(rustix::fs::openat(at, part, flags, Mode::empty()).map_err(failed)?);
        }
        let at = inner.as_ref().unwrap_or(&self.descriptor);
        // Even to open a device can have an effect, so its type is checked before. The name may get another file
        // meanwhile: that one is opened without blocking, and its type decides.
        let is_regular = |mode| FileType::from_raw_mode(mode) == FileType::RegularFile;
        let before = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if !is_regular(before.st_mode) {
            return Err(FileError::NotRegular { path: whole() });
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(at, name, flags, Mode::empty()).map_err(failed)?;
        let found = rustix::fs::fstat(&file).map_err(failed)?;
        if !is_regular(found.st_mode) {
            return Err(FileError::NotRegular { path: whole() });
        }
        Ok(file.into())
    }

    /// Reads a small file whole.
    pub(crate) fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, FileError> {
        read_whole(self.file(path)?, &self.path.join(path), limit)
    }
}

/// Opens a regular file that the user named; the path may lead through symlinks.
pub(crate) fn open_file(path: &Path) -> Result<File, FileError> {
    let failed = |source| FileError::Open { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(FileError::NotRegular { path: path.to_owned() });
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file: File = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?.into();
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(FileError::NotRegular { path: path.to_owned() });
    }
    Ok(file)
}

/// Reads a file whole. `path` is only for the error.
pub(crate) fn read_whole(file: impl io::Read, path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    let failed = |source| FileError::Open { path: path.to_owned(), source };
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(FileError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, mknodat};

    use super::*;

    #[test]
    fn regular_files_below_plain_directories_are_opened() {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(home.path().join("a/b")).expect("directories");
        std::fs::write(home.path().join("a/b/c"), "text").expect("a file");
        let folder = Folder::open(home.path()).expect("is a directory");
        let mut text = String::new();
        folder.file("a/b/c").expect("is a file").read_to_string(&mut text).expect("is text");
        assert_eq!(text, "text");
        assert!(matches!(folder.read("a/b/c", 3), Err(FileError::TooLarge { limit: 3, .. })));
        assert!(folder.file("a/x").expect_err("does not exist").is_not_found());
    }

    #[test]
    fn links_fifos_sockets_and_directories_are_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let at = |name: &str| home.path().join(name);
        std::fs::create_dir(at("folder")).expect("a directory");
        std::fs::write(at("folder/file"), "text").expect("a file");
        symlink("/etc/passwd", at("link")).expect("a link");
        symlink("folder", at("folder_link")).expect("a link");
        mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("a socket");
        let folder = Folder::open(home.path()).expect("is a directory");
        for name in ["link", "folder", "folder_link/file", "fifo", "socket", "folder/file/x"] {
            assert!(matches!(folder.file(name), Err(FileError::NotRegular { .. })), "{name}");
        }
        for name in ["fifo", "folder", "socket"] {
            assert!(matches!(open_file(&at(name)), Err(FileError::NotRegular { .. })), "{name}");
        }
        assert!(matches!(open_file(Path::new("/dev/zero")), Err(FileError::NotRegular { .. })));
    }
}

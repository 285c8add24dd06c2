//! The target of `--out` on the host. Its type decides how it is written.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;

/// What exists at the target's path.
#[derive(Debug)]
pub enum Target {
    /// Nothing. Its folder exists.
    New(PathBuf),
    /// A plain file, by its path after all symlinks.
    File(PathBuf),
    /// A folder.
    Folder(PathBuf),
    /// Something that bytes are written to as they arrive.
    Stream(Stream),
}

/// A target without a size or a place for a new file.
#[derive(Debug)]
pub enum Stream {
    /// `-` or `/dev/stdout`: kiln's own stdout.
    Stdout,
    /// `/dev/stderr`.
    Stderr,
    /// A device or FIFO: its path, and a handle that stays the same if the path is replaced.
    Node(PathBuf, OwnedFd),
}

impl Target {
    /// Finds out what exists at a path. Symlinks are followed, because the user named them.
    ///
    /// # Errors
    /// A message, if the path can't be written to as a file, folder or stream.
    pub fn find(host: &Path) -> Result<Self, String> {
        // Opening these paths would make a new file description, whose writes start at the file's first byte.
        match host.to_str() {
            Some("-" | "/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1") => return Ok(Self::Stream(Stream::Stdout)),
            Some("/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2") => return Ok(Self::Stream(Stream::Stderr)),
            _ => {}
        }
        let handle = match open(host, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(handle) => handle,
            Err(Errno::NOENT) if host.symlink_metadata().is_ok() => {
                return Err(format!("`{}` is a symlink to a path that does not exist", host.display()));
            }
            Err(Errno::NOENT) => return Ok(Self::New(host.to_path_buf())),
            Err(errno) => return Err(format!("can't open `{}`: {}", host.display(), io::Error::from(errno))),
        };
        let stat = fstat(&handle).map_err(|errno| io::Error::from(errno).to_string())?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(Self::Folder(host.to_path_buf())),
            FileType::RegularFile if stat.st_nlink == 0 => Err(format!("`{}` is a deleted file", host.display())),
            FileType::RegularFile => {
                // The kernel has followed the links, with its checks who may follow them (fs.protected_symlinks).
                let real = std::fs::read_link(descriptor_path(&handle)).map_err(|error| error.to_string())?;
                Ok(Self::File(real))
            }
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
                Ok(Self::Stream(Stream::Node(host.to_path_buf(), handle)))
            }
            _ => Err(format!("`{}` is not a file, a folder, a device or a FIFO", host.display())),
        }
    }

    /// The folder for files that are moved to this target later; `None` for a stream.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::New(path) | Self::File(path) => {
                Some(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
            }
            Self::Folder(path) => Some(path),
            Self::Stream(_) => None,
        }
    }

    /// Whether the target is kiln's own stdout.
    pub fn is_stdout(&self) -> bool {
        matches!(self, Self::Stream(Stream::Stdout))
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => formatter.write_str("stdout"),
            Self::Stderr => formatter.write_str("stderr"),
            Self::Node(path, _) => write!(formatter, "`{}`", path.display()),
        }
    }
}

/// The path of an open descriptor in `/proc`.
pub(super) fn descriptor_path(handle: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", handle.as_raw_fd()).into()
}

//! The disk of a mock that was given none.

use std::fs::OpenOptions;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kiln_vdev::memory::SharedFile;

/// The disk of a mock without --file: a file beside the socket, as long as the mock lives. Like the socket it outlives
/// a mock that is killed, and the next one on that socket goes on with it, as a disk does. Without a path it is in
/// memory.
pub struct OwnDisk {
    file: OwnedFd,
    path: Option<PathBuf>,
    is_removed: bool,
}

impl OwnDisk {
    /// Beside this socket.
    pub fn beside(socket: &Path, bytes: u64) -> anyhow::Result<Self> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".disk");
        let path = PathBuf::from(path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC);
        let file = options.open(&path).with_context(|| format!("failed to open the disk `{}`", path.display()))?;
        let metadata = file.metadata()?;
        let is_ours = metadata.is_file() && metadata.uid() == rustix::process::geteuid().as_raw();
        anyhow::ensure!(is_ours, "`{}` is not a file of this user", path.display());
        file.set_len(bytes)?;
        Ok(Self { file: file.into(), path: Some(path), is_removed: false })
    }

    /// In memory.
    pub fn in_memory(bytes: u64) -> anyhow::Result<Self> {
        let file = SharedFile::new(bytes).context("failed to create a disk in memory")?;
        Ok(Self { file: file.as_fd().try_clone_to_owned()?, path: None, is_removed: false })
    }

    /// Leads to just this file, whatever is at its path.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// From now on it is used only by this mock.
    pub fn remove_at_end(mut self) -> Self {
        self.is_removed = true;
        self
    }
}

impl Drop for OwnDisk {
    fn drop(&mut self) {
        if let (true, Some(path)) = (self.is_removed, &self.path) {
            // Another process may have removed it.
            let _ = fs_err::remove_file(path);
        }
    }
}

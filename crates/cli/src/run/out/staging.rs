//! The folder that an archive is unpacked into before it is moved to its place. It lies beside that place, and only
//! this user can enter it.
//!
//! Dropping it removes it. A kiln that was killed leaves its folder behind, and the next kiln that copies to the same
//! place removes it. Each folder is locked while its kiln runs, so a folder that can be locked has no owner.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, open};
use rustix::process::geteuid;

const PREFIX: &str = ".kiln-out-";
const MODE: u32 = 0o700;
/// Attempts to make a folder. Another kiln may remove a new folder before it is locked.
const TRIES: usize = 16;
/// Size of a hole for a test. A file system that uses half of it or more does not support holes.
const PROBE_BYTES: u64 = 1 << 20;

/// A folder. Dropping this removes it with its content.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
    /// Marks the folder as in use. The kernel releases the lock however this process ends.
    _lock: OwnedFd,
}

impl Staging {
    /// Removes the leftovers of killed kilns from `folder`, and makes a new folder in it.
    pub fn new(folder: &Path) -> io::Result<Self> {
        sweep(folder);
        for _ in 0..TRIES {
            let made =
                tempfile::Builder::new().prefix(PREFIX).permissions(Permissions::from_mode(MODE)).tempdir_in(folder)?;
            // Set again, because the umask may have removed bits.
            fs_err::set_permissions(made.path(), Permissions::from_mode(MODE))?;
            if let Some(lock) = locked(made.path()) {
                return Ok(Self { path: made.keep(), _lock: lock });
            }
        }
        Err(io::Error::other(format!("failed to lock a temporary folder in `{}`", folder.display())))
    }

    /// Where the archive's first entry goes.
    pub fn whole(&self) -> PathBuf {
        self.path.join("whole")
    }

    /// Whether holes take no room on this file system.
    pub fn holes_are_free(&self) -> bool {
        let path = self.path.join("probe");
        let probe = || {
            let file = File::create(&path)?;
            file.set_len(PROBE_BYTES)?;
            let blocks = file.metadata()?.blocks();
            std::fs::remove_file(&path)?;
            io::Result::Ok(blocks * 512 < PROBE_BYTES / 2)
        };
        probe().unwrap_or(false)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // If it can't be removed now, the next sweep removes it.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Removes the folders of killed kilns: those of this user, with the right mode and not locked.
fn sweep(folder: &Path) {
    // If the folder can't be listed, there is nothing to remove.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            let path = entry.path();
            // The lock is held during the removal. A kiln that has just made this folder then fails to lock it, or
            // locks it after the removal and sees that the path no longer leads to it. It makes another folder in both
            // cases.
            if let Some(_lock) = locked(&path) {
                let _ = std::fs::remove_dir_all(&path);
            }
        }
    }
}

/// Locks a folder of this user. `None` if it belongs to another user, is not a folder, is in use, or was removed before
/// it was locked. Also `None` on a file system without locks, so nothing is removed there.
fn locked(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = open(path, flags, Mode::empty()).ok()?;
    let stat = fstat(&handle).ok()?;
    if stat.st_uid != geteuid().as_raw() || stat.st_mode & 0o777 != MODE {
        return None;
    }
    flock(&handle, FlockOperation::NonBlockingLockExclusive).ok()?;
    let there = path.symlink_metadata().ok()?;
    (there.dev() == stat.st_dev && there.ino() == stat.st_ino).then_some(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_killed_kiln_is_removed_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let alive = Staging::new(folder.path()).expect("a folder");
        let killed = Staging::new(folder.path()).expect("a folder");
        std::fs::create_dir_all(killed.whole().join("a/b")).expect("ours");
        let left = killed.path.clone();
        // The lock goes with the process, and the folder stays.
        let Staging { _lock, .. } = &killed;
        flock(_lock, FlockOperation::Unlock).expect("it was locked");
        std::mem::forget(killed);
        let own = Staging::new(folder.path()).expect("a folder");
        assert!(!left.exists());
        assert!(alive.path.is_dir() && own.path.is_dir());
        let (alive_path, own_path) = (alive.path.clone(), own.path.clone());
        drop((alive, own));
        assert!(!alive_path.exists() && !own_path.exists());
    }

    #[test]
    fn files_that_are_not_kilns_are_not_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(format!("{PREFIX}{name}"));
        let elsewhere = tempfile::tempdir().expect("a folder");
        std::fs::write(elsewhere.path().join("precious"), "x").expect("ours");
        std::fs::write(path("file"), "x").expect("ours");
        std::os::unix::fs::symlink(elsewhere.path(), path("link")).expect("ours");
        std::fs::create_dir(path("open")).expect("ours");
        std::fs::set_permissions(path("open"), Permissions::from_mode(0o755)).expect("ours");
        drop(Staging::new(folder.path()).expect("a folder"));
        assert!(path("file").exists() && path("open").exists() && path("link").is_symlink());
        assert!(elsewhere.path().join("precious").exists());
    }

    #[test]
    fn only_its_user_can_enter_it_and_ordinary_file_systems_have_holes() {
        let folder = tempfile::tempdir().expect("a folder");
        let staging = Staging::new(folder.path()).expect("a folder");
        assert_eq!(staging.path.metadata().expect("it is there").permissions().mode() & 0o777, 0o700);
        assert!(staging.holes_are_free());
        assert_eq!(std::fs::read_dir(&staging.path).expect("ours").count(), 0);
    }
}

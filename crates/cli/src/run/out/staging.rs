//! Where an archive is unpacked before it takes its place: a folder of kiln's own beside it, which nobody else can enter.
//!
//! It is removed when it is dropped. A kiln that was killed leaves its folder behind, and the next one that copies to the
//! same place removes it: each folder is locked for as long as its kiln lives, so one that can be locked is nobody's.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, open};
use rustix::process::geteuid;

const PREFIX: &str = ".kiln-out-";
const MODE: u32 = 0o700;
/// Folders that vanish between being made and being locked; each time somebody swept this one.
const TRIES: usize = 16;
/// A file system that takes half of this for a hole of it has no holes.
const PROBE_BYTES: u64 = 1 << 20;

/// A folder that is removed with all that is in it when this is dropped.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
    /// Says to others that the folder is in use. Unlocked by the kernel, however this process ends.
    _lock: OwnedFd,
}

impl Staging {
    /// Removes what kilns that are gone have left in a folder, and makes a new one there.
    pub fn new(folder: &Path) -> io::Result<Self> {
        sweep(folder);
        for _ in 0..TRIES {
            let made =
                tempfile::Builder::new().prefix(PREFIX).permissions(Permissions::from_mode(MODE)).tempdir_in(folder)?;
            // Whatever the umask is.
            fs_err::set_permissions(made.path(), Permissions::from_mode(MODE))?;
            if let Some(lock) = locked(made.path()) {
                return Ok(Self { path: made.keep(), _lock: lock });
            }
        }
        Err(io::Error::other(format!("failed to keep a folder in `{}`", folder.display())))
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
        // What can't be removed now is found by the next sweep.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Removes folders of kilns that are gone: this user's, with the mode that they have, and locked by nobody.
fn sweep(folder: &Path) {
    // A folder that can't be listed has nothing that could be found in it.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            let path = entry.path();
            // Held while it is removed: a kiln that has just made it finds that it lost it, and makes another.
            if let Some(_lock) = locked(&path) {
                let _ = std::fs::remove_dir_all(&path);
            }
        }
    }
}

/// Locks a folder of this user's; `None` if it is another's, another thing, in use, or gone by the time it is locked. A
/// file system without locks leaves everything as it is.
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
    fn what_a_killed_kiln_has_left_is_removed_and_what_lives_is_not() {
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
    fn what_is_not_kilns_is_left_alone() {
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
    fn nobody_else_can_enter_it_and_ordinary_file_systems_have_holes() {
        let folder = tempfile::tempdir().expect("a folder");
        let staging = Staging::new(folder.path()).expect("a folder");
        assert_eq!(staging.path.metadata().expect("it is there").permissions().mode() & 0o777, 0o700);
        assert!(staging.holes_are_free());
        assert_eq!(std::fs::read_dir(&staging.path).expect("ours").count(), 0);
    }
}

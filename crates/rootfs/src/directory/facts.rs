//! Which state a directory of the host is in, found out without reading any contents.
//!
//! Each node adds its name, inode, kind, owner, size and times to a digest. A program can set the modification time to any
//! value, but not the change time, which the kernel sets at each change of contents or attributes. So two states of a
//! directory with the same digest are the same state, if both were looked at later than some milliseconds after their last
//! change: the kernel's time moves in steps. See [`DirectoryFacts::changed_ns`].

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};

use super::error::DirectoryError;
use super::node::{Found, names, start};
use super::walk::DEPTH_MAX;
use crate::layers::Limits;

/// The version of what the digest covers, and of what is left out.
const DIGEST_FORMAT: u8 = 1;
/// Between the names of a directory and what follows it. No name is empty.
const END_OF_DIRECTORY: &[u8] = b"\0";
const NS_PER_SECOND: i128 = 1_000_000_000;

/// The state of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectoryFacts {
    /// Of all names and attributes, and of the times of the last change. Contents play a part only by their times.
    pub digest: [u8; 32],
    /// When something in it was changed last, by the clock of its filesystem: nanoseconds since 1970.
    pub changed_ns: i128,
    /// Names in all directories, without sockets.
    pub entries: u64,
    /// Sockets, which lead nowhere in a guest: no image has them.
    pub sockets: u64,
    /// Directories and files of kernel file systems, such as `/proc`: empty in an image.
    pub of_the_kernel: u64,
}

/// Looks at all of a directory, within the limits on entries and text.
///
/// # Errors
/// If a directory can't be read, or it is over a limit. Files are not opened.
pub fn facts(path: &Path, limits: &Limits) -> Result<DirectoryFacts, DirectoryError> {
    let root = start(path).map_err(|source| DirectoryError::of_start(path, source))?;
    let facts = DirectoryFacts { digest: [0; 32], changed_ns: 0, entries: 0, sockets: 0, of_the_kernel: 0 };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[DIGEST_FORMAT]);
    let mut look = Look { path: path.to_owned(), hasher, facts, limits: *limits, text_bytes: 0 };
    look.add(&root, b"");
    let mut levels = vec![look.level(&root, None)?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.next() else {
            levels.pop();
            look.path.pop();
            look.hasher.update(END_OF_DIRECTORY);
            continue;
        };
        look.path.push(OsStr::from_bytes(name.to_bytes()));
        match look.entry(level, &name)? {
            Some(_) if levels.len() > DEPTH_MAX => {
                return Err(DirectoryError::TooDeep { path: look.path, depth_max: DEPTH_MAX });
            }
            Some(level) => levels.push(level),
            None => drop(look.path.pop()),
        }
    }
    Ok(DirectoryFacts { digest: look.hasher.finalize().into(), ..look.facts })
}

/// A directory that is being looked at.
struct Level {
    descriptor: OwnedFd,
    /// Names that are left.
    names: std::vec::IntoIter<CString>,
    device: u64,
}

struct Look {
    /// The path of what is being looked at, for messages.
    path: PathBuf,
    hasher: blake3::Hasher,
    facts: DirectoryFacts,
    limits: Limits,
    text_bytes: u64,
}

impl Look {
    fn entry(&mut self, level: &Level, name: &CString) -> Result<Option<Level>, DirectoryError> {
        let found = Found::at(&level.descriptor, name).map_err(|error| self.unreadable(error))?;
        let Some(found) = found else { return Ok(None) };
        if found.file_type() == FileType::Socket {
            self.facts.sockets += 1;
            return Ok(None);
        }
        self.facts.entries += 1;
        self.text_bytes += name.to_bytes().len() as u64;
        let Limits { entries_max, text_bytes_max, .. } = self.limits;
        if self.facts.entries > entries_max {
            return Err(self.too_much(format!("more than {entries_max} entries")));
        }
        if self.text_bytes > text_bytes_max {
            return Err(self.too_much(format!("more than {text_bytes_max} bytes of names and links")));
        }
        self.add(&found, name.to_bytes());
        if found.file_type() == FileType::Directory {
            return self.level(&found, Some(level.device)).map(Some);
        }
        // A file may be a mount point, too.
        if found.file_type() == FileType::RegularFile && found.stat.st_dev != level.device {
            self.is_of_the_kernel(&found)?;
        }
        Ok(None)
    }

    fn add(&mut self, found: &Found, name: &[u8]) {
        let stat = &found.stat;
        let changed_ns = ns(stat.st_ctime, stat.st_ctime_nsec);
        self.facts.changed_ns = self.facts.changed_ns.max(changed_ns);
        self.hasher.update(&(name.len() as u64).to_le_bytes()).update(name);
        let numbers = [
            i128::from(stat.st_dev),
            i128::from(stat.st_ino),
            i128::from(stat.st_mode),
            i128::from(stat.st_nlink),
            i128::from(stat.st_uid),
            i128::from(stat.st_gid),
            i128::from(stat.st_rdev),
            i128::from(stat.st_size),
            ns(stat.st_mtime, stat.st_mtime_nsec),
            changed_ns,
        ];
        for number in numbers {
            self.hasher.update(&number.to_le_bytes());
        }
    }

    /// A directory to be looked at. One of a kernel file system has no names.
    fn level(&mut self, found: &Found, device: Option<u64>) -> Result<Level, DirectoryError> {
        let is_of_the_kernel = device != Some(found.stat.st_dev) && self.is_of_the_kernel(found)?;
        let descriptor = found.open(OFlags::DIRECTORY).map_err(|error| self.unreadable(error))?;
        let names = if is_of_the_kernel { Ok(Vec::new()) } else { names(&descriptor) };
        let names = names.map_err(|error| self.unreadable(error))?.into_iter();
        Ok(Level { descriptor, names, device: found.stat.st_dev })
    }

    fn is_of_the_kernel(&mut self, found: &Found) -> Result<bool, DirectoryError> {
        let is_of_the_kernel = found.is_of_the_kernel().map_err(|error| self.unreadable(error))?;
        self.facts.of_the_kernel += u64::from(is_of_the_kernel);
        Ok(is_of_the_kernel)
    }

    fn unreadable(&self, source: io::Error) -> DirectoryError {
        DirectoryError::Unreadable { path: self.path.clone(), source }
    }

    fn too_much(&self, what: String) -> DirectoryError {
        DirectoryError::TooMuch { path: self.path.clone(), what }
    }
}

fn ns<N: Into<i128>>(seconds: i64, nanoseconds: N) -> i128 {
    i128::from(seconds) * NS_PER_SECOND + nanoseconds.into()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use super::*;

    fn digest(path: &Path) -> [u8; 32] {
        // Longer than the step of the kernel's time.
        std::thread::sleep(Duration::from_millis(20));
        facts(path, &Limits::default()).expect("is read").digest
    }

    #[test]
    fn each_change_gives_another_digest_and_no_change_the_same() {
        let guard = tempfile::tempdir().expect("a directory");
        let root = guard.path();
        let mut seen = vec![digest(root)];
        let mut changed = |what: &str| {
            let now = digest(root);
            assert!(!seen.contains(&now), "{what}");
            assert_eq!(digest(root), now, "{what}");
            seen.push(now);
        };
        fs::create_dir_all(root.join("a/b")).expect("made");
        changed("a directory");
        fs::write(root.join("a/b/f"), "one").expect("written");
        changed("a file");
        let modified = fs::metadata(root.join("a/b/f")).and_then(|meta| meta.modified()).expect("has times");
        let file = File::options().write(true).open(root.join("a/b/f")).expect("opens");
        io::Write::write_all(&mut &file, b"two").expect("written");
        file.set_modified(modified).expect("set");
        changed("contents of the same size, with the time of before");
        fs::set_permissions(root.join("a/b/f"), fs::Permissions::from_mode(0o600)).expect("set");
        changed("a mode");
        fs::hard_link(root.join("a/b/f"), root.join("g")).expect("linked");
        changed("a link");
        fs::rename(root.join("g"), root.join("a/g")).expect("renamed");
        changed("a name");
        std::os::unix::fs::symlink("nowhere", root.join("s")).expect("linked");
        changed("a symlink");
        fs::remove_file(root.join("a/b/f")).expect("removed");
        changed("a file less");
    }

    #[test]
    fn sockets_are_only_counted_and_limits_hold() {
        let guard = tempfile::tempdir().expect("a directory");
        let _socket = std::os::unix::net::UnixListener::bind(guard.path().join("socket")).expect("a socket");
        fs::write(guard.path().join("a"), "").expect("written");
        fs::write(guard.path().join("b"), "").expect("written");
        let found = facts(guard.path(), &Limits::default()).expect("is read");
        assert_eq!((found.entries, found.sockets, found.of_the_kernel), (2, 1, 0));
        let limits = Limits { entries_max: 1, ..Limits::default() };
        let error = facts(guard.path(), &limits).expect_err("two entries");
        assert!(matches!(error, DirectoryError::TooMuch { .. }), "{error}");
        let limits = Limits { text_bytes_max: 1, ..Limits::default() };
        let error = facts(guard.path(), &limits).expect_err("two bytes");
        assert!(matches!(error, DirectoryError::TooMuch { .. }), "{error}");
        let error = facts(&guard.path().join("a"), &limits).expect_err("a file");
        assert!(matches!(error, DirectoryError::NotADirectory { .. }), "{error}");
    }

    #[test]
    fn a_directory_that_is_too_deep_is_refused_and_one_of_the_kernel_is_empty() {
        let guard = tempfile::tempdir().expect("a directory");
        let mut path = guard.path().to_owned();
        for _ in 0..=DEPTH_MAX {
            path.push("d");
        }
        fs::create_dir_all(&path).expect("made");
        let error = facts(guard.path(), &Limits::default()).expect_err("is too deep");
        assert!(matches!(error, DirectoryError::TooDeep { .. }), "{error}");
        let found = facts(Path::new("/proc"), &Limits::default()).expect("is looked at");
        assert_eq!((found.entries, found.of_the_kernel), (0, 1));
    }
}

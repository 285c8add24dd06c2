//! Merges a copied folder into an existing one.
//!
//! The folder is walked twice: first to find conflicts, then, without a conflict, to move files. Folders are opened
//! relative to an open parent and never through a symlink. If another process replaces a folder by a symlink meanwhile,
//! the merge fails and does not write outside the target.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, accessat, fstat, openat, renameat, statat};
use rustix::io::Errno;

use super::place::replace;

/// Most conflicts that are named.
const NAMED_MAX: usize = 16;

/// Merges folders into folders, and replaces files by files and symlinks by symlinks. If anything else conflicts,
/// nothing is changed.
pub fn merge(whole: &Path, folder: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = openat(CWD, whole, flags, Mode::empty())?;
    // The user named this folder, so symlinks are followed.
    let into = openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut conflicts = Conflicts::default();
    walk(from.as_fd(), into.as_fd(), Path::new(""), &mut |step| conflicts.look(step))?;
    conflicts.none()?;
    walk(from.as_fd(), into.as_fd(), Path::new(""), &mut act)
}

/// A copied file and the file with its name in the target.
struct Step<'a> {
    from: BorrowedFd<'a>,
    into: BorrowedFd<'a>,
    name: &'a CStr,
    path: &'a Path,
    new: Stat,
    old: Option<Stat>,
}

impl Step<'_> {
    fn new_kind(&self) -> FileType {
        FileType::from_raw_mode(self.new.st_mode)
    }

    fn old_kind(&self) -> Option<FileType> {
        self.old.map(|old| FileType::from_raw_mode(old.st_mode))
    }
}

/// Walks the copied folder, and enters folders that exist on both sides.
fn walk(
    from: BorrowedFd<'_>,
    into: BorrowedFd<'_>,
    path: &Path,
    each: &mut dyn FnMut(&Step<'_>) -> io::Result<()>,
) -> io::Result<()> {
    // All names are read first, because moving files changes the folder.
    let mut names = Vec::new();
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    for name in &names {
        let path = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let new = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let old = match statat(into, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(old) => Some(old),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno.into()),
        };
        let step = Step { from, into, name, path: &path, new, old };
        let both_folders = step.new_kind() == FileType::Directory && step.old_kind() == Some(FileType::Directory);
        each(&step)?;
        if both_folders {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let from: OwnedFd = openat(from, name, flags | OFlags::RDONLY, Mode::empty())?;
            let into: OwnedFd = openat(into, name, flags | OFlags::PATH, Mode::empty())?;
            walk(from.as_fd(), into.as_fd(), &path, each)?;
        }
    }
    Ok(())
}

/// Files of the target that prevent the merge.
#[derive(Default)]
struct Conflicts {
    named: Vec<String>,
    more: usize,
}

impl Conflicts {
    fn look(&mut self, step: &Step<'_>) -> io::Result<()> {
        let (new, old) = (step.new_kind(), step.old_kind());
        let why = match old {
            Some(old) if old != new => format!("is {} in the target and {} in the copy", noun(old), noun(new)),
            Some(FileType::Directory) => {
                if step.old.is_some_and(|old| Ok(old.st_dev) != fstat(step.into).map(|folder| folder.st_dev)) {
                    "is another file system in the target".to_owned()
                } else {
                    return Ok(());
                }
            }
            _ => match accessat(step.into, c".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(errno) => format!("can't be written in the target: {}", io::Error::from(errno)),
            },
        };
        if self.named.len() < NAMED_MAX {
            self.named.push(format!("`{}` {why}", step.path.display()));
        } else {
            self.more += 1;
        }
        Ok(())
    }

    fn none(self) -> io::Result<()> {
        if self.named.is_empty() {
            return Ok(());
        }
        let more = if self.more > 0 { format!(", and {} more", self.more) } else { String::new() };
        Err(io::Error::other(format!("nothing was changed, because {}{more}", self.named.join(", "))))
    }
}

fn act(step: &Step<'_>) -> io::Result<()> {
    let fail = |error: io::Error| io::Error::new(error.kind(), format!("`{}`: {error}", step.path.display()));
    match (step.new_kind(), step.old_kind()) {
        (FileType::Directory, Some(FileType::Directory)) => Ok(()),
        (FileType::RegularFile, Some(FileType::RegularFile)) => {
            let name = PathBuf::from(std::ffi::OsStr::from_bytes(step.name.to_bytes()));
            replace(step.from, &name, step.into, &name).map_err(fail)
        }
        _ => renameat(step.from, step.name, step.into, step.name).map_err(|errno| fail(errno.into())),
    }
}

fn noun(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a folder",
        FileType::RegularFile => "a file",
        FileType::Symlink => "a symlink",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        _ => "a device",
    }
}

//! Moves an unpacked file or folder to its place, after all of it has arrived.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use kiln_archive::data_parts;
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, Stat, Uid, fchmod, fchown, fstat, openat, renameat, renameat_with,
    statat,
};
use rustix::io::Errno;

use super::merge::merge;
use super::target::Target;
use super::unpack::BUFFER_BYTES;

/// Permissions that a file keeps when its content is replaced. Set-user-ID is not among them: the kernel also clears it
/// when a file is written.
const KEPT_MODE: u32 = 0o777;

/// Moves an unpacked file or folder to its place. An existing folder is merged into, an existing file is replaced.
pub fn place(whole: &Path, target: &Target) -> io::Result<()> {
    let Ok(metadata) = whole.symlink_metadata() else {
        return Err(io::Error::other("the archive from the guest is empty"));
    };
    match (metadata.is_dir(), target) {
        (true, Target::Folder(path)) => merge(whole, path),
        (false, Target::Folder(_)) => Err(io::Error::other("the target is a folder, but a file was copied")),
        (true, Target::File(_)) => Err(io::Error::other("the target is a file, but a folder was copied")),
        (false, Target::File(path)) => {
            let (from, to) = (parts_of(whole)?, parts_of(path)?);
            replace(from.0.as_fd(), from.1, to.0.as_fd(), to.1)
        }
        (_, Target::New(path)) => match renameat_with(CWD, whole, CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(io::Error::other("the target was created by another process meanwhile")),
            // Some file systems do not support RENAME_NOREPLACE.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs_err::rename(whole, path),
            Err(errno) => Err(errno.into()),
        },
        (_, Target::Stream(_)) => Err(io::Error::other("a stream is not a place for a file")),
    }
}

/// A path as an open folder and a name in it.
fn parts_of(path: &Path) -> io::Result<(OwnedFd, &Path)> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::other("the path has no file name"))?;
    let folder = openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((folder, Path::new(name)))
}

/// Replaces a plain file, which keeps its mode and owner.
///
/// A rename replaces the old file, so that no reader sees half of the new content. But a rename makes a new file. It
/// would lose other hard links, an access list, and an owner that this process can't set. A file with one of these is
/// written in place.
pub fn replace(from: BorrowedFd<'_>, name: &Path, into: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let old = statat(into, target, AtFlags::SYMLINK_NOFOLLOW)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // The unpacked file may have a mode without read permission, even for this user, who may change it.
    rustix::fs::chmodat(from, name, Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
    let new = openat(from, name, flags, Mode::empty())?;
    if !can_stand_for(&new, into, target, &old)? {
        return write_in_place(&File::from(new), into, target, &old);
    }
    fchmod(&new, Mode::from_raw_mode(old.st_mode & KEPT_MODE))?;
    renameat(from, name, into, target)?;
    Ok(())
}

/// Whether a new file can be all that the old one was. Its owner is set on the way.
fn can_stand_for(new: &OwnedFd, into: BorrowedFd<'_>, target: &Path, old: &Stat) -> io::Result<bool> {
    if old.st_nlink > 1 || has_access_list(into, target) {
        return Ok(false);
    }
    let now = fstat(new)?;
    if (now.st_uid, now.st_gid) == (old.st_uid, old.st_gid) {
        return Ok(true);
    }
    let owner = (Uid::from_raw(old.st_uid), Gid::from_raw(old.st_gid));
    Ok(fchown(new, Some(owner.0), Some(owner.1)).is_ok())
}

/// Whether a file has an access control list. With such a list, the group bits of the mode have another meaning.
fn has_access_list(into: BorrowedFd<'_>, target: &Path) -> bool {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(handle) = openat(into, target, flags, Mode::empty()) else { return false };
    let path = super::target::descriptor_path(&handle);
    rustix::fs::getxattr(path, c"system.posix_acl_access", &mut [0_u8; 0]).is_ok()
}

fn write_in_place(new: &File, into: BorrowedFd<'_>, target: &Path, old: &Stat) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(into, target, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() || (metadata.dev(), metadata.ino()) != (old.st_dev, old.st_ino) {
        return Err(io::Error::other("the target was replaced by another process meanwhile"));
    }
    let length = new.metadata()?.len();
    file.set_len(0)?;
    file.set_len(length)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    for part in data_parts(new, length) {
        let mut position = part.start;
        while position < part.end {
            let want = buffer.len().min(usize::try_from(part.end - position).unwrap_or(usize::MAX));
            let count = new.read_at(&mut buffer[..want], position)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.write_all_at(&buffer[..count], position)?;
            position += count as u64;
        }
    }
    Ok(())
}

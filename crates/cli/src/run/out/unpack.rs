//! Unpacks an archive from a guest into a temporary folder beside its place.
//!
//! # Why paths as text are safe here
//! In the guest the agent resolves each path by the kernel, because other processes change the directory meanwhile.
//! Here no other user can: the temporary folder has mode 0700 and belongs to the user, and all that is in it was put
//! there by this function. So each path can be checked as text. A leading `/` is removed and `..` is refused, the first
//! entry of the archive becomes the target, and all others must be below it. An entry that would pass through a symlink
//! is refused. Links that lead outside of the copied tree are left out, so a program of the host that later follows
//! links in the result stays inside too.
//!
//! Nothing is at its place before the archive has ended and the agent has confirmed the end. A guest that dies in the
//! middle, or a bound that is exceeded, leaves the target as it was: dropping the staging folder removes all that was
//! unpacked.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink,
};
use std::path::{Component, Path, PathBuf};

use kiln_archive::{ArchiveError, EntryType, Member, Members};
use rustix::fs::{OFlags, Timespec, Timestamps, UTIME_OMIT, futimens};
use tokio::sync::mpsc;

use super::LeftOut;
use super::arriving::{Arriving, Piece};
use super::budget::Budget;
use super::place::place;
use super::staging::Staging;
use super::target::Target;

/// Most bytes of a file in memory.
pub(super) const BUFFER_BYTES: usize = 64 << 10;
/// Most nested folders. Removing a tree takes an open descriptor for each level.
const DEPTH_MAX: usize = 128;
/// Most bytes of a name, and of a path below the copied folder. Most programs can't open longer ones.
const NAME_BYTES_MAX: usize = 255;
const PATH_BYTES_MAX: usize = 2048;
/// The bits of a mode that are kept: no set-user-ID, set-group-ID or sticky bit. The umask removes more.
const MODE_MASK: u32 = 0o777;
/// A folder always has these bits, so that the user can fill and remove it.
const FOLDER_MODE_MIN: u32 = 0o700;

/// Unpacks an archive, and moves it to its place after all of it has arrived.
pub fn unpack(pieces: mpsc::Receiver<Piece>, target: &Target, budget: &mut Budget) -> io::Result<LeftOut> {
    let folder = target.folder().ok_or_else(|| io::Error::other("a stream has no folder"))?;
    let staging = Staging::new(folder)?;
    let mut unpacking = Unpacking {
        members: Members::new(Arriving::new(pieces, budget)),
        whole: staging.whole(),
        holes_are_free: None,
        way: None,
        left_out: LeftOut::default(),
        buffer: vec![0; BUFFER_BYTES],
    };
    let mut base: Option<PathBuf> = None;
    while let Some(member) = unpacking.members.next().map_err(invalid)? {
        let path = plain_parts(&PathBuf::from(OsString::from_vec(member.path.clone())));
        if path.as_os_str().len() > PATH_BYTES_MAX {
            return Err(refused(&path, &format!("has a path of more than {PATH_BYTES_MAX} bytes, which is too long")));
        }
        let base = base.get_or_insert_with(|| path.clone());
        let Ok(inner) = path.strip_prefix(&*base) else {
            return Err(refused(&path, &format!("is not in `{}`", base.display())));
        };
        unpacking.put(&member, &path, inner, &staging)?;
    }
    let left_out = unpacking.left_out;
    place(&staging.whole(), target)?;
    Ok(left_out)
}

pub(super) fn invalid(error: ArchiveError) -> io::Error {
    match error {
        // The error of the budget or the link is clear on its own.
        ArchiveError::Input(error) => error,
        error => io::Error::other(error),
    }
}

/// The path without `.` and `/` parts.
fn plain_parts(path: &Path) -> PathBuf {
    path.components().filter(|part| !matches!(part, Component::CurDir | Component::RootDir)).collect()
}

fn refused(path: &Path, why: &str) -> io::Error {
    // A guest can send a name of any length.
    let shown: String = path.display().to_string().chars().take(NAME_BYTES_MAX).collect();
    io::Error::other(format!("`{shown}` {why}"))
}

fn failed(path: &Path, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("failed to {what} `{}`: {error}", path.display()))
}

struct Unpacking<'a> {
    members: Members<Arriving<'a>>,
    whole: PathBuf,
    /// Whether holes take no space. Tested at the first hole.
    holes_are_free: Option<bool>,
    /// The folder of the last entry. It and its parents exist, and stay: an entry never replaces a folder.
    way: Option<PathBuf>,
    left_out: LeftOut,
    buffer: Vec<u8>,
}

impl Unpacking<'_> {
    fn put(&mut self, member: &Member, path: &Path, inner: &Path, staging: &Staging) -> io::Result<()> {
        expect_plain_names(inner)?;
        match member.kind {
            EntryType::Directory | EntryType::Regular => {}
            EntryType::Symlink => {
                let link = PathBuf::from(OsString::from_vec(member.link.clone()));
                let depth = inner.components().count();
                if depth == 0 {
                    return Err(refused(path, "is a symlink: add a `/` to its name to copy its target"));
                }
                if !stays_inside(&link, depth - 1) {
                    let to = format!(
                        "symlink `{}` points outside the copied folder, to `{}`",
                        path.display(),
                        link.display()
                    );
                    self.left_out.add(to);
                    return Ok(());
                }
            }
            EntryType::Link => return Err(refused(path, "is a hard link, which is not supported")),
            kind => return Err(refused(path, &format!("is of type {kind:?}, which is not supported"))),
        }
        let target = self.make_way(inner)?;
        match member.kind {
            EntryType::Directory => self.folder(&target, path, member.permissions),
            EntryType::Symlink => {
                self.budget().entry()?;
                let link = PathBuf::from(OsString::from_vec(member.link.clone()));
                symlink(link, &target).map_err(|error| match error.kind() {
                    io::ErrorKind::AlreadyExists => refused(path, "is in the archive twice"),
                    _ => failed(path, "write", &error),
                })
            }
            _ => self.file(&target, path, member, staging),
        }
    }

    fn budget(&mut self) -> &mut Budget {
        self.members.input().budget
    }

    /// Makes the parent folders of an entry. Refuses to go through a symlink that an earlier entry made. Each folder
    /// that is made counts, even if the archive has no entry for it.
    fn make_way(&mut self, inner: &Path) -> io::Result<PathBuf> {
        let mut below = PathBuf::new();
        let mut parts = inner.components().peekable();
        while let Some(part) = parts.next() {
            if !self.way.as_ref().is_some_and(|way| way.starts_with(&below)) {
                let here = if below.as_os_str().is_empty() { self.whole.clone() } else { self.whole.join(&below) };
                match here.symlink_metadata() {
                    Ok(metadata) if metadata.is_dir() => {}
                    Ok(metadata) if metadata.is_symlink() => return Err(refused(inner, "goes through a symlink")),
                    Ok(_) => return Err(refused(inner, "goes through a file")),
                    Err(_) => {
                        self.budget().entry()?;
                        make_folder(&here, MODE_MASK).map_err(|error| failed(inner, "write", &error))?;
                    }
                }
            }
            if parts.peek().is_none() {
                self.way = Some(below.clone());
            }
            below.push(part);
        }
        let target = if below.as_os_str().is_empty() { self.whole.clone() } else { self.whole.join(&below) };
        if target.is_symlink() {
            return Err(refused(inner, "is in the archive twice"));
        }
        Ok(target)
    }

    fn folder(&mut self, target: &Path, path: &Path, permissions: u32) -> io::Result<()> {
        match target.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => return Ok(()),
            Ok(_) => return Err(refused(path, "is in the archive twice")),
            Err(_) => {}
        }
        self.budget().entry()?;
        make_folder(target, permissions & MODE_MASK).map_err(|error| failed(path, "write", &error))
    }

    fn file(&mut self, target: &Path, path: &Path, member: &Member, staging: &Staging) -> io::Result<()> {
        let fail = |error: io::Error| failed(path, "write", &error);
        if target.is_dir() {
            return Err(refused(path, "is in the archive twice"));
        }
        self.budget().entry()?;
        // A folder that changes while the agent reads it may have a file twice. The last content is the newest.
        let _ = std::fs::remove_file(target);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(member.permissions & MODE_MASK)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(target)
            .map_err(fail)?;
        let mut end = 0;
        while let Some(data) = self.members.read(&mut self.buffer).map_err(invalid)? {
            if data.offset > end {
                self.hole(data.offset - end, staging)?;
            }
            file.write_all_at(&self.buffer[..data.bytes], data.offset).map_err(fail)?;
            end = data.offset + data.bytes as u64;
        }
        let length = self.members.length().map_err(invalid)?;
        if length > end {
            self.hole(length - end, staging)?;
        }
        if length != end {
            file.set_len(length).map_err(fail)?;
        }
        set_modified(&file, member.modified);
        Ok(())
    }

    /// Counts a hole: nothing on a file system with holes, else as many bytes as it has.
    fn hole(&mut self, bytes: u64, staging: &Staging) -> io::Result<()> {
        let free = *self.holes_are_free.get_or_insert_with(|| staging.holes_are_free());
        if free { Ok(()) } else { self.budget().bytes(bytes) }
    }
}

/// Makes a folder with the mode that the umask leaves, but always with the user's own permissions.
fn make_folder(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(mode | FOLDER_MODE_MIN).create(path)?;
    let now = path.symlink_metadata()?.mode() & MODE_MASK;
    if now & FOLDER_MODE_MIN == FOLDER_MODE_MIN {
        return Ok(());
    }
    std::fs::set_permissions(path, Permissions::from_mode(now | FOLDER_MODE_MIN))
}

/// Sets a file's time of modification. An invalid time, or one that this file system can't store, is ignored.
fn set_modified(file: &File, (tv_sec, tv_nsec): (i64, i64)) {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    if (0..1_000_000_000).contains(&tv_nsec) {
        let _ = futimens(file, &Timestamps { last_access: omit, last_modification: Timespec { tv_sec, tv_nsec } });
    }
}

/// Fails if a path has a name that is too long, too many folders, or `..`.
fn expect_plain_names(inner: &Path) -> io::Result<()> {
    if inner.components().count() > DEPTH_MAX {
        return Err(refused(inner, &format!("is more than {DEPTH_MAX} folders deep")));
    }
    for part in inner.components() {
        match part {
            Component::Normal(name) if name.len() > NAME_BYTES_MAX => {
                return Err(refused(
                    inner,
                    &format!("has a name of more than {NAME_BYTES_MAX} bytes, which is too long"),
                ));
            }
            Component::Normal(_) => {}
            _ => return Err(refused(inner, "leaves the copied folder")),
        }
    }
    Ok(())
}

/// Whether a symlink that is `depth` folders below the top stays below it.
///
/// The link may pass through other symlinks of the archive, so its text alone does not show where it leads. But each of
/// those was checked by this function, so each resolves to a path below the top. A link is allowed if it first goes up
/// at most `depth` times, which ends at the top or below it, and then only down: every name leads to an entry below the
/// top or through a symlink that stays below it. A `..` after a name is refused, because that name may be a symlink to
/// a folder with fewer parents than its path has.
fn stays_inside(link: &Path, depth: usize) -> bool {
    let (mut ups, mut named) = (0, false);
    for part in link.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if !named => ups += 1,
            Component::Normal(_) => named = true,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    ups <= depth
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside_even_through_other_links() {
        for (link, depth, inside) in [
            ("x", 0, true),
            ("../x", 1, true),
            (".././../x", 2, true),
            ("..", 0, false),
            ("../../x", 1, false),
            ("/x", 5, false),
            // `a` may be a symlink to a folder that is less deep.
            ("a/../x", 5, false),
        ] {
            assert_eq!(stays_inside(Path::new(link), depth), inside, "{link} at {depth}");
        }
    }
}

//! Writing whole files, which appear by a rename, and appending.
//!
//! # What a crash leaves
//! A whole file is written under a random name in the target's directory, synced, and renamed to its place; then the
//! directory is synced. The order matters. If the rename came before the sync of the file, a crash could leave the new
//! name with no or partial content, because file systems may write a name before the data. Without the sync of the
//! directory, the rename could be lost after the commit was reported. With both, a crash leaves the old file or the new
//! one, and at worst a temporary file named `.kiln-…`.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use kiln_wire::{ErrorCode, Fault, Owner, Text, WriteMode};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;
use rustix::rand::GetRandomFlags;

use super::fault::{fault_from_errno, invalid};
use super::memory::in_memory;
use super::place::{Place, Root, reopen};
use super::stat::{PERMISSIONS_MAX, expect_owner, expect_permissions, expect_plain, owner_of};

/// Permission bits of a new file by default.
const PERMISSIONS_DEFAULT: u32 = 0o644;
/// Random names that are tried for a temporary file.
const NAME_TRIES: usize = 16;
/// Tries to open a file that appears and disappears between two calls.
const APPEND_TRIES: usize = 16;

/// A file that appears as a whole at [`commit`](Self::commit). If it is dropped before, nothing is left of it.
///
/// Readers see the old file or the new one. The new file has another inode, so hard links keep the old content.
#[derive(Debug)]
pub struct AtomicWrite {
    path: Text,
    place: Place,
    mode: WriteMode,
    permissions: u32,
    file: File,
    temporary: Option<CString>,
    bytes: u64,
    failed: bool,
}

impl AtomicWrite {
    /// Whether each [`write`](Self::write) takes little time: the file is in memory.
    pub fn is_quick(&self) -> bool {
        in_memory(&self.file)
    }

    /// Creates the new file in the directory of its place. In `Replace` mode a symlink stays, and its target is
    /// replaced.
    ///
    /// # Errors
    /// `already_exists` in `Exclusive` mode; `is_a_directory` or `not_a_file` if the existing file can't be replaced;
    /// `permission_denied` if the owner can't be kept or set.
    pub fn begin(
        root: &Root,
        path: &Text,
        mode: WriteMode,
        permissions: Option<u32>,
        owner: Option<Owner>,
    ) -> Result<Self, Fault> {
        permissions.map_or(Ok(()), expect_permissions)?;
        owner.map_or(Ok(()), expect_owner)?;
        let fail = |errno: Errno| fault_from_errno(path, "write", errno);
        let place = match mode {
            WriteMode::Replace => root.final_place(path, "write")?,
            WriteMode::Exclusive => root.place(path, "write")?,
        };
        let old = place.stat().map_err(fail)?;
        match &old {
            Some(_) if mode == WriteMode::Exclusive => return Err(fail(Errno::EXIST)),
            Some(stat) => expect_plain(stat, path)?,
            None if place.directory_only => return Err(fail(Errno::ISDIR)),
            None => {}
        }
        let (file, temporary) = create_temporary(&place).map_err(fail)?;
        let write = Self {
            path: path.clone(),
            place,
            mode,
            permissions: permissions.or(old.map(|stat| stat.st_mode & PERMISSIONS_MAX)).unwrap_or(PERMISSIONS_DEFAULT),
            file,
            temporary: Some(temporary),
            bytes: 0,
            failed: false,
        };
        if let Some(owner) = owner.or(old.as_ref().map(owner_of)) {
            let now = rustix::fs::fstat(&write.file).map_err(fail)?;
            if owner_of(&now) != owner {
                let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
                rustix::fs::fchown(&write.file, Some(uid), Some(gid))
                    .map_err(|errno| fault_from_errno(path, "set the owner of", errno))?;
            }
        }
        Ok(write)
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// The error of writing, for example `no_space`. The new file is then removed at once.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if self.failed {
            return Err(self.failed_before());
        }
        if let Err(error) = self.file.write_all(bytes) {
            self.failed = true;
            self.discard();
            return Err(fault_from_errno(&self.path, "write", error));
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Moves the file to its place, durably. Returns its length in bytes.
    ///
    /// # Errors
    /// `already_exists` if the name was taken since an exclusive write began; the error of the file system. Nothing is
    /// left behind.
    pub fn commit(mut self) -> Result<u64, Fault> {
        let Some(temporary) = self.temporary.clone() else { return Err(self.failed_before()) };
        let fail = |errno: Errno| fault_from_errno(&self.path, "write", errno);
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(self.permissions)).map_err(fail)?;
        sync_file(&self.file).map_err(fail)?;
        let Place { parent, name, .. } = &self.place;
        match self.mode {
            WriteMode::Replace => rustix::fs::renameat(parent, &temporary, parent, name).map_err(fail)?,
            WriteMode::Exclusive => {
                match rustix::fs::renameat_with(parent, &temporary, parent, name, RenameFlags::NOREPLACE) {
                    Ok(()) => {}
                    // Some file systems don't support this flag. A hard link fails if the name exists too.
                    Err(Errno::INVAL | Errno::NOSYS) => {
                        rustix::fs::linkat(parent, &temporary, parent, name, AtFlags::empty()).map_err(fail)?;
                        rustix::fs::unlinkat(parent, &temporary, AtFlags::empty()).map_err(fail)?;
                    }
                    Err(errno) => return Err(fail(errno)),
                }
            }
        }
        self.temporary = None;
        sync_directory(&self.place.parent, &self.file).map_err(fail)?;
        Ok(self.bytes)
    }

    fn failed_before(&self) -> Fault {
        Fault::new(ErrorCode::Io, format!("an earlier write to `{}` failed", self.path))
    }

    fn discard(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            // A failure can't be reported here. The name is unique, so a file that is left does no harm.
            let _ = rustix::fs::unlinkat(&self.place.parent, &temporary, AtFlags::empty());
            let _ = rustix::fs::ftruncate(&self.file, 0);
        }
    }
}

impl Drop for AtomicWrite {
    fn drop(&mut self) {
        self.discard();
    }
}

/// Appends to a plain file, which is created if it is missing.
#[derive(Debug)]
pub struct Append {
    path: Text,
    file: File,
    created_in: Option<OwnedFd>,
    bytes: u64,
}

impl Append {
    /// Whether each [`write`](Self::write) takes little time: the file is in memory.
    pub fn is_quick(&self) -> bool {
        in_memory(&self.file)
    }

    /// Opens the file. Symlinks are followed.
    ///
    /// # Errors
    /// `is_a_directory`, `not_a_file`; the error of opening.
    pub fn begin(root: &Root, path: &Text) -> Result<Self, Fault> {
        let fail = |errno: Errno| fault_from_errno(path, "append to", errno);
        let flags = OFlags::WRONLY | OFlags::APPEND;
        for _ in 0..APPEND_TRIES {
            let place = root.final_place(path, "append to")?;
            let handle_flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&place.parent, &place.name, handle_flags, Mode::empty()) {
                Ok(handle) => {
                    expect_plain(&rustix::fs::fstat(&handle).map_err(fail)?, path)?;
                    let file = reopen(&handle, flags).map_err(fail)?.into();
                    return Ok(Self { path: path.clone(), file, created_in: None, bytes: 0 });
                }
                Err(Errno::NOENT) if place.directory_only => return Err(fail(Errno::ISDIR)),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(fail(errno)),
            }
            let create = flags | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(PERMISSIONS_DEFAULT);
            match rustix::fs::openat(&place.parent, &place.name, create, mode) {
                Ok(file) => {
                    // Sets the bits independent of the umask.
                    rustix::fs::fchmod(&file, mode).map_err(fail)?;
                    let created_in = Some(place.parent);
                    return Ok(Self { path: path.clone(), file: file.into(), created_in, bytes: 0 });
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(fail(errno)),
            }
        }
        Err(fail(Errno::BUSY))
    }

    /// Adds bytes. If a call fails, the bytes of earlier calls stay in the file.
    ///
    /// # Errors
    /// The error of writing, for example `no_space`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.file.write_all(bytes).map_err(|error| fault_from_errno(&self.path, "append to", error))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Makes the bytes durable and returns their number.
    ///
    /// # Errors
    /// The error of the file system.
    pub fn commit(self) -> Result<u64, Fault> {
        let fail = |errno: Errno| fault_from_errno(&self.path, "append to", errno);
        sync_file(&self.file).map_err(fail)?;
        if let Some(parent) = &self.created_in {
            sync_directory(parent, &self.file).map_err(fail)?;
        }
        Ok(self.bytes)
    }
}

/// Refuses a path that has no last name, like `/` and `..`.
pub(super) fn expect_name(place: &Place, path: &Text, operation: &str) -> Result<(), Fault> {
    if place.is_nameless() {
        return Err(invalid(format!("failed to {operation} `{path}`: the path has no last name")));
    }
    Ok(())
}

fn create_temporary(place: &Place) -> Result<(File, CString), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for _ in 0..NAME_TRIES {
        let mut random = [0; 8];
        // The name needn't be secret. Secret random bytes could block early in a boot.
        rustix::rand::getrandom(&mut random, GetRandomFlags::INSECURE)?;
        let name =
            CString::new(format!(".kiln-{:016x}", u64::from_ne_bytes(random))).expect("digits have no zero byte");
        match rustix::fs::openat(&place.parent, &name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => return Ok((file.into(), name)),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EXIST)
}

fn sync_file(file: &File) -> Result<(), Errno> {
    match rustix::io::retry_on_intr(|| rustix::fs::fsync(file)) {
        // File systems of the kernel have nothing to sync.
        Err(Errno::INVAL | Errno::ROFS) => Ok(()),
        result => result,
    }
}

fn sync_directory(parent: impl AsFd, file: &File) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(&parent, c".", flags, Mode::empty()) {
        Ok(directory) => match rustix::io::retry_on_intr(|| rustix::fs::fsync(&directory)) {
            Err(Errno::INVAL | Errno::ROFS) => Ok(()),
            result => result,
        },
        // The directory may be written but not read, so its whole file system is synced.
        Err(Errno::ACCESS) => rustix::fs::syncfs(file),
        Err(errno) => Err(errno),
    }
}

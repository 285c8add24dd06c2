//! Creates files and directories below a home: for this user only, whatever the umask is. Never follows a link, and
//! never truncates an existing file.
//!
//! ```text
//!   create_new ── O_EXCL ─────────▶ a new file              replace ── new file, rename ──▶ another content, whole
//!   lock_file ─── O_NOFOLLOW ─────▶ the same file, kept     restart ── unlink, O_EXCL ────▶ an empty file
//! ```
//! A umask removes bits of the mode, and no umask can be relied on: 0777 creates files that their owner can't open
//! again. So the mode is set again on the new file, through its descriptor. [`plain_file`](super::plain_file) reads
//! files.

use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::partial::PARTIAL_SUFFIX;
use crate::hex_id::random_hex;

/// Directories of a home.
pub(crate) const DIRECTORY_MODE: Mode = Mode::RWXU;
/// Files of a home.
pub(crate) const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// A sweep can take a new file before it is locked. So many times in a row, the cause is something else.
const REPLACE_ATTEMPTS_MAX: usize = 16;

/// Creates a directory.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if the path exists; or the directory can't be created.
pub(crate) fn create_dir(path: &Utf8Path) -> io::Result<()> {
    fs::create_dir(path)?;
    // The path is not a link, because `mkdir` fails if it is one.
    fs::set_permissions(path, std::fs::Permissions::from_mode(DIRECTORY_MODE.as_raw_mode()))
}

/// Creates a directory, and the directories above it that are missing.
///
/// # Errors
/// A part of the path is not a directory; or one of them can't be created.
pub(crate) fn create_dir_all(path: &Utf8Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_dir_all(parent)?;
    }
    match create_dir(path) {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

/// Creates a file and opens it for reading and writing.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if the path exists; or the file can't be created.
pub(crate) fn create_new(path: &Utf8Path) -> io::Result<fs::File> {
    open(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
}

/// Creates a file with this content.
///
/// # Errors
/// See [`create_new`]; or the file can't be written.
pub(crate) fn write_new(path: &Utf8Path, content: &[u8]) -> io::Result<()> {
    create_new(path)?.write_all(content)
}

/// Replaces a file with an empty one. Programs that have the old file open keep its contents.
///
/// # Errors
/// See [`create_new`]; or the old file can't be removed.
pub(crate) fn restart(path: &Utf8Path) -> io::Result<fs::File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    create_new(path)
}

/// Opens an ordinary file to append to it. Creates it if it does not exist.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if it is not an ordinary file; or it can't be opened.
pub(crate) fn append(path: &Utf8Path) -> io::Result<fs::File> {
    open(path, OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND)
}

/// Opens an existing ordinary file to append to it.
///
/// # Errors
/// See [`append`]; or the file does not exist.
pub(crate) fn append_existing(path: &Utf8Path) -> io::Result<fs::File> {
    open(path, OFlags::WRONLY | OFlags::APPEND)
}

/// Opens an ordinary file that processes lock. Creates it if it does not exist. Its contents stay.
///
/// # Errors
/// See [`append`].
pub(crate) fn lock_file(path: &Utf8Path) -> io::Result<fs::File> {
    open(path, OFlags::RDWR | OFlags::CREATE)
}

/// Replaces the file at `path`. A crash of this process leaves the old file or the new one. Nothing is synced. The new
/// file is written in `scratch`, on the same filesystem, and then renamed. If a crash leaves it there,
/// [`Home::sweep_partials`](crate::home::Home::sweep_partials) removes it.
///
/// # Errors
/// The file can't be created, written or renamed.
pub(crate) fn replace(path: &Utf8Path, scratch: &Utf8Path, content: &[u8]) -> io::Result<()> {
    for _ in 0..REPLACE_ATTEMPTS_MAX {
        let new = Unfinished(scratch.join(format!("{}{PARTIAL_SUFFIX}", random_hex::<8>())));
        let mut file = create_new(&new.0)?;
        // A sweep removes unlocked partial files. If it has removed this one before the lock, the rename fails with
        // `NotFound`, and the next attempt uses another name.
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => continue,
            Err(error) => return Err(error.into()),
        }
        file.write_all(content)?;
        match fs::rename(&new.0, path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
    Err(io::Error::other(format!("new files in `{scratch}` disappear at once")))
}

/// Removes a file that did not get its final name.
struct Unfinished(Utf8PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After a success the file has another name, and this fails. If it fails otherwise, the next start sweeps the
        // file.
        let _ = fs::remove_file(&self.0);
    }
}

fn open(path: &Utf8Path, how: OFlags) -> io::Result<fs::File> {
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, format!("`{path}` is not an ordinary file"));
    // Without `O_NONBLOCK`, the open of a FIFO would wait for a reader.
    let flags = how | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path.as_std_path(), flags, FILE_MODE) {
        Ok(fd) => fs::File::from_parts(fd.into(), PathBuf::from(path)),
        Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Err(refused()),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(refused());
    }
    // Only the owner of a file can change its mode. A home with files of other users was refused, so an error for an
    // existing file does not matter.
    if how.contains(OFlags::EXCL) {
        rustix::fs::fchmod(&file, FILE_MODE)?;
    } else if file.metadata()?.permissions().mode() & 0o777 != FILE_MODE.as_raw_mode() {
        let _ = rustix::fs::fchmod(&file, FILE_MODE);
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType};

    use super::*;

    fn scratch() -> (tempfile::TempDir, Utf8PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8Path::from_path(directory.path()).expect("UTF-8").to_owned();
        (directory, path)
    }

    fn mode(path: &Utf8Path) -> u32 {
        fs::symlink_metadata(path).expect("is there").permissions().mode() & 0o7777
    }

    /// The umask belongs to the process. nextest runs each test in a process of its own, so no other test is affected.
    #[test]
    fn files_are_private_whatever_the_umask_is() {
        let (_scratch, path) = scratch();
        for umask in [0, 0o022, 0o777] {
            let top = path.join(format!("{umask:o}"));
            let before = rustix::process::umask(Mode::from_raw_mode(umask));
            let made = || -> io::Result<()> {
                create_dir_all(&top.join("a/b"))?;
                write_new(&top.join("new"), b"x")?;
                restart(&top.join("restarted"))?;
                append(&top.join("appended"))?;
                lock_file(&top.join("lock"))?;
                replace(&top.join("replaced"), &top.join("a"), b"x")
            };
            let made = made();
            rustix::process::umask(before);
            made.expect("all of it can be made");
            for directory in ["", "a", "a/b"] {
                assert_eq!(mode(&top.join(directory)), 0o700, "{umask:o} {directory}");
            }
            for file in ["new", "restarted", "appended", "lock", "replaced"] {
                assert_eq!(mode(&top.join(file)), 0o600, "{umask:o} {file}");
            }
            assert_eq!(fs::read_dir(top.join("a")).expect("lists").count(), 1, "nothing unfinished stays");
        }
    }

    #[test]
    fn links_and_fifos_are_refused_and_no_file_is_truncated() {
        let (_scratch, path) = scratch();
        let victim = path.join("victim");
        fs::write(&victim, "precious").expect("written");
        let link = |name: &str| {
            std::os::unix::fs::symlink(&victim, path.join(name)).expect("made");
            path.join(name)
        };
        for (name, open) in [("append", append as fn(&Utf8Path) -> _), ("lock", lock_file)] {
            let error = open(&link(name)).expect_err("is a link");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
            let pipe = path.join(format!("{name}.pipe"));
            rustix::fs::mknodat(CWD, pipe.as_std_path(), FileType::Fifo, FILE_MODE, 0).expect("made");
            let error = open(&pipe).expect_err("is a pipe");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        assert_eq!(create_new(&link("new")).expect_err("is a link").kind(), io::ErrorKind::AlreadyExists);
        restart(&link("restarted")).expect("takes its place").write_all(b"x").expect("written");
        replace(&link("replaced"), &path, b"x").expect("takes its place");
        assert_eq!(fs::read_to_string(&victim).expect("reads"), "precious");
        assert!(!fs::symlink_metadata(path.join("restarted")).expect("is there").is_symlink());

        lock_file(&victim).expect("is a file");
        assert_eq!(fs::read_to_string(&victim).expect("reads"), "precious");
        append(&victim).expect("is a file").write_all(b"!").expect("written");
        assert_eq!(fs::read_to_string(&victim).expect("reads"), "precious!");
    }

    #[test]
    fn an_existing_directory_keeps_its_mode_and_a_file_is_refused() {
        let (_scratch, path) = scratch();
        fs::set_permissions(&path, std::fs::Permissions::from_mode(0o711)).expect("set");
        create_dir_all(&path).expect("is there");
        assert_eq!(mode(&path), 0o711);
        fs::write(path.join("file"), "").expect("written");
        create_dir_all(&path.join("file")).expect_err("is a file");
        create_dir_all(&path.join("file/below")).expect_err("is a file");
    }
}

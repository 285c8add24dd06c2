//! Makes files and directories below a home: for this user alone whatever the umask is, never through a link that lies
//! in the way, and never by cutting off what was there.
//!
//! ```text
//!   create_new ── O_EXCL ─────────▶ a new file              replace ── new file, rename ──▶ another content, whole
//!   lock_file ─── O_NOFOLLOW ─────▶ the same file, kept     restart ── unlink, O_EXCL ────▶ an empty file
//! ```
//! A umask only takes bits away, and what it leaves of a mode is not what a home needs: 0 makes files that all can write,
//! 0777 some that their owner can't open again. So the mode is set once more on what was just made, by its descriptor.
//! Reading is [`plain_file`](super::plain_file)'s.

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
/// Another process may take a new file for what a crash left, before it is locked; that it happens so often says
/// something else is wrong.
const REPLACE_ATTEMPTS_MAX: usize = 16;

/// Makes a directory.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] for anything that is there; or it can't be made.
pub(crate) fn create_dir(path: &Utf8Path) -> io::Result<()> {
    fs::create_dir(path)?;
    // A link can't be there: it would have kept the directory from being made.
    fs::set_permissions(path, std::fs::Permissions::from_mode(DIRECTORY_MODE.as_raw_mode()))
}

/// Makes a directory and those above it, as far as they are missing.
///
/// # Errors
/// Something else is there; or one of them can't be made.
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

/// Makes a file and opens it for reading and writing.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] for anything that is there; or it can't be made.
pub(crate) fn create_new(path: &Utf8Path) -> io::Result<fs::File> {
    open(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
}

/// Makes a file with this content.
///
/// # Errors
/// As [`create_new`]; or it can't be written.
pub(crate) fn write_new(path: &Utf8Path, content: &[u8]) -> io::Result<()> {
    create_new(path)?.write_all(content)
}

/// Makes an empty file in the place of the one that is there.
///
/// # Errors
/// As [`create_new`]; or the one that is there can't be removed.
pub(crate) fn restart(path: &Utf8Path) -> io::Result<fs::File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    create_new(path)
}

/// Opens an ordinary file to write at its end, and makes it if it is not there.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if it is not an ordinary file; or it can't be opened.
pub(crate) fn append(path: &Utf8Path) -> io::Result<fs::File> {
    open(path, OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND)
}

/// Opens an ordinary file that is there to write at its end.
///
/// # Errors
/// As [`append`]; or there is none.
pub(crate) fn append_existing(path: &Utf8Path) -> io::Result<fs::File> {
    open(path, OFlags::WRONLY | OFlags::APPEND)
}

/// Opens an ordinary file that processes lock, and makes it if it is not there. What it holds stays.
///
/// # Errors
/// As [`append`].
pub(crate) fn lock_file(path: &Utf8Path) -> io::Result<fs::File> {
    open(path, OFlags::RDWR | OFlags::CREATE)
}

/// Puts a file with this content at `path`, in place of what is there: after a crash there is the old one or the new one.
/// It is made in `scratch`, on the same filesystem, where [`Home::sweep_partials`](crate::home::Home::sweep_partials)
/// finds what a crash leaves of it.
///
/// # Errors
/// It can't be made, written or renamed.
pub(crate) fn replace(path: &Utf8Path, scratch: &Utf8Path, content: &[u8]) -> io::Result<()> {
    for _ in 0..REPLACE_ATTEMPTS_MAX {
        let new = Unfinished(scratch.join(format!("{}{PARTIAL_SUFFIX}", random_hex::<8>())));
        let mut file = create_new(&new.0)?;
        // A sweep removes what is not locked. If it came before this, the rename finds nothing.
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
    Err(io::Error::other(format!("no new file stays in `{scratch}`")))
}

/// Removes a file that did not get its final name.
struct Unfinished(Utf8PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It has another name if all went well. What stays behind is swept at the next start.
        let _ = fs::remove_file(&self.0);
    }
}

fn open(path: &Utf8Path, how: OFlags) -> io::Result<fs::File> {
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, format!("`{path}` is not an ordinary file"));
    // A pipe would wait for its reader.
    let flags = how | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path.as_std_path(), flags, FILE_MODE) {
        Ok(fd) => fs::File::from_parts(fd.into(), PathBuf::from(path)),
        Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Err(refused()),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(refused());
    }
    // Only the owner can; a file of another user was refused with the home, and keeps its mode here.
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

    /// The umask is the process's: nextest gives each test one of its own, and what others make meanwhile is not judged.
    #[test]
    fn modes_are_those_of_a_home_whatever_the_umask_is() {
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
    fn links_and_pipes_in_the_way_are_not_followed_and_nothing_is_cut_off() {
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
    fn a_directory_that_is_there_is_kept_as_it_is_and_a_file_is_none() {
        let (_scratch, path) = scratch();
        fs::set_permissions(&path, std::fs::Permissions::from_mode(0o711)).expect("set");
        create_dir_all(&path).expect("is there");
        assert_eq!(mode(&path), 0o711);
        fs::write(path.join("file"), "").expect("written");
        create_dir_all(&path.join("file")).expect_err("is a file");
        create_dir_all(&path.join("file/below")).expect_err("is a file");
    }
}

//! Opens small files whose path is known but not their kind: a process that can write to the directory may have put a
//! FIFO or a link there.

use std::fs::File;
use std::io::{self, Read as _};

use camino::Utf8Path;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Opens an ordinary file for reading. Does not wait for the writer of a FIFO, and does not follow a link.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if it is not an ordinary file; or it can't be opened.
pub(crate) fn open(path: &Utf8Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, format!("`{path}` is not an ordinary file"));
    let file = match rustix::fs::open(path.as_std_path(), flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::LOOP | Errno::NXIO) => return Err(refused()),
        Err(error) => return Err(error.into()),
    };
    if file.metadata()?.is_file() { Ok(file) } else { Err(refused()) }
}

/// Opens a file or directory for reading, to lock it. Does not wait for the writer of a FIFO, and does not follow a
/// link.
///
/// # Errors
/// It can't be opened, or is a link.
pub(crate) fn open_any(path: &Utf8Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path.as_std_path(), flags, Mode::empty())?))
}

/// Reads an ordinary file's first `bytes_max` bytes.
///
/// # Errors
/// See [`open`]; or it can't be read.
pub(crate) fn read(path: &Utf8Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;
    use fs_err as fs;
    use rustix::fs::{CWD, FileType};

    use super::*;

    #[test]
    fn only_ordinary_files_are_read_and_no_open_waits() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| Utf8PathBuf::try_from(directory.path().join(name)).expect("UTF-8");
        fs::write(path("file"), "0123456789").expect("written");
        assert_eq!(read(&path("file"), 4).expect("reads"), b"0123");

        rustix::fs::mknodat(CWD, path("pipe").as_std_path(), FileType::Fifo, Mode::RUSR, 0).expect("made");
        std::os::unix::fs::symlink(path("file"), path("link")).expect("made");
        let _listener = std::os::unix::net::UnixListener::bind(path("socket")).expect("bound");
        for name in ["pipe", "link", "socket", "."] {
            assert_eq!(read(&path(name), 4).expect_err(name).kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        assert_eq!(read(&path("none"), 4).expect_err("is not there").kind(), io::ErrorKind::NotFound);
    }
}

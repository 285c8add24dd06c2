//! Locks a disk's file the way QEMU does ("Image locking" in its documentation), so that neither of us writes what the
//! other uses.
//!
//! Bytes 100 to 103 stand for what one does with the file (read, write, …), bytes 200 to 203 for what one does not let
//! others do. All locks are shared ones; what others do is seen by asking whether an exclusive one could be had. They belong
//! to the open file, so a second server in this process is refused too, and end with it.
//!
//! First all locks are taken, then others are looked for. The other order would have a gap: two programs that start at
//! the same time could both look, find the file free, and both lock it. This way each has its own locks when it looks,
//! so the one that looks last finds the other. Both may find each other, and both are refused. That is the harmless
//! side: a retry helps, while two writers would destroy the disk. The locks are shared ones, so taking them never
//! fails because of a program that keeps to this protocol; it fails only if another kind of lock is there.
#![expect(unsafe_code, reason = "open file description locks have no safe wrapper here")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

const DOES: i64 = 100;
const FORBIDS: i64 = 200;

const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Locks the file against other writers, and also against readers that forbid writers if it is written here. `false`:
/// it is in use.
pub(super) fn lock(file: &File, writes: bool) -> io::Result<bool> {
    let does: &[i64] = if writes { &[READ, WRITE] } else { &[READ] };
    let forbids: &[i64] = if writes { &[WRITE, RESIZE] } else { &[RESIZE] };
    for byte in does.iter().map(|what| DOES + what).chain(forbids.iter().map(|what| FORBIDS + what)) {
        if !ask(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte)? {
            return Ok(false);
        }
    }
    for byte in does.iter().map(|what| FORBIDS + what).chain(forbids.iter().map(|what| DOES + what)) {
        if !ask(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes or tries a lock on one byte. Returns whether it could be had.
fn ask(file: &File, command: libc::c_int, kind: libc::c_int, byte: i64) -> io::Result<bool> {
    // SAFETY: all zeros is a valid `flock`.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = byte;
    lock.l_len = 1;
    // SAFETY: the descriptor is the file's, and the kernel reads and writes one `flock`, which lives here.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    if result == 0 {
        return Ok(command != libc::F_OFD_GETLK || lock.l_type == libc::F_UNLCK as libc::c_short);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_alone_among_writers_and_readers_are_not() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let open = || File::options().read(true).write(true).open(file.path()).expect("opens");
        let reader = open();
        assert!(lock(&reader, false).expect("locks"));
        assert!(lock(&open(), false).expect("locks"), "readers share it");
        let writer = open();
        assert!(lock(&writer, true).expect("locks"), "a reader lets others write");
        assert!(!lock(&open(), true).expect("locks"), "a writer does not");
        drop(writer);
        assert!(lock(&open(), true).expect("locks"));
    }
}

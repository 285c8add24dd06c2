//! Who uses a volume: locks of Kiln processes on its directory, and locks of VMMs on its file.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// Time between two checks whether a VMM still has a file open.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Most processes that are listed as users of a volume.
const USERS_MAX: usize = 64;

/// Whether no VMM has a file open, or closes it within that time.
///
/// QEMU holds a shared lock on single bytes of each disk that it has open, on a read-only one too. A lock of the whole
/// file for writing conflicts with each of these, so it succeeds only if no VMM has the file open. It is released at once: the lock
/// of the directory keeps other Kilns from starting a VMM meanwhile.
pub(super) fn no_vmm_within(data: &File, patience: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        match rustix::fs::fcntl_lock(data, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                rustix::fs::fcntl_lock(data, FlockOperation::Unlock)?;
                return Ok(true);
            }
            Err(Errno::ACCESS | Errno::AGAIN) if Instant::now() >= deadline => return Ok(false),
            Err(Errno::ACCESS | Errno::AGAIN) => std::thread::sleep(LOOK_INTERVAL),
            // A filesystem without such locks. QEMU has none there either, and warns about it.
            Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The processes that hold a lock on a directory, ascending. Those of other pid namespaces are not among them.
pub(super) fn users(directory: &File) -> Vec<u32> {
    // If it can't be read, the volume is in use by processes without a number.
    let Ok(meta) = directory.metadata() else { return Vec::new() };
    users_in(&fs_err::read_to_string("/proc/locks").unwrap_or_default(), meta.dev(), meta.ino())
}

/// Lines such as `1: FLOCK  ADVISORY  WRITE 708 00:13:20 0 EOF`, see proc_locks(5).
fn users_in(locks: &str, device: u64, inode: u64) -> Vec<u32> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    let mut users: Vec<u32> = locks
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match words[..] {
                [_, "FLOCK", _, _, pid, of, ..] if of == file => pid.parse().ok(),
                _ => None,
            }
        })
        .take(USERS_MAX)
        .collect();
    users.sort_unstable();
    users.dedup();
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_locks_of_that_directory_name_users() {
        let locks = "1: POSIX  ADVISORY  WRITE 10 08:01:77 0 EOF\n2: FLOCK  ADVISORY  READ 12 08:01:77 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 11 08:01:77 0 EOF\n4: FLOCK  ADVISORY  WRITE 13 08:01:778 0 EOF\n\
                     5: -> FLOCK  ADVISORY  WRITE 14 08:01:77 0 EOF\n6: FLOCK  ADVISORY  READ -1 08:01:77 0 EOF\nx\n";
        assert_eq!(users_in(locks, rustix::fs::makedev(8, 1), 77), [11, 12]);
        assert_eq!(users_in("", 0, 0), [0; 0]);
    }

    #[test]
    fn the_user_of_a_locked_directory_is_found() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = File::open(directory.path()).expect("opens");
        assert_eq!(users(&file), [0; 0]);
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).expect("is free");
        assert_eq!(users(&file), [std::process::id()]);
    }
}

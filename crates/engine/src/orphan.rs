//! A VMM that may have lost its owner: found by its pid file, ended or adopted.
//!
//! ```text
//!   child, before exec ──its own /proc/self/stat──▶ vms/<id>/pid ──▶ Orphan::find ──▶ kill, or Child::adopt
//! ```
//! The child writes the file itself, while it still shares its owner's lock on the directory: whoever finds that lock free
//! finds the file whole. A pid alone could be another process by now; with its start time it can't.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use camino::Utf8Path;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::plain_file;

/// Name of the file in a VM's directory.
pub(crate) const PID_FILE: &str = "pid";
/// A process that was killed ends as soon as it is scheduled and its memory is given back.
pub(crate) const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// More than any line of proc(5) `stat`.
const STAT_BYTES_MAX: u64 = 4096;

/// A living process that is not our child.
#[derive(Debug)]
pub(crate) struct Orphan {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PidRecord {
    pid: Pid,
    /// In clock ticks since boot.
    start_time: u64,
}

impl Orphan {
    /// The process that the pid file of a VM names. `None` where there is no such file, or that process has ended.
    pub(crate) fn find(directory: &Utf8Path) -> io::Result<Option<Self>> {
        let Some(record) = read(&directory.join(PID_FILE))? else { return Ok(None) };
        let pidfd = match rustix::process::pidfd_open(record.pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Compared after the pidfd was opened: it stays with that process whatever becomes of the number.
        let now = read(format!("/proc/{}/stat", record.pid.as_raw_nonzero()).as_str().into())?;
        let this = Self { pid: record.pid.as_raw_nonzero().get().cast_unsigned(), pidfd };
        Ok((now == Some(record) && !this.ends_within(Duration::ZERO)?).then_some(this))
    }

    /// Ends it, and waits until it is gone: its disks and memory may be used by another one next.
    pub(crate) fn kill(self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        match self.ends_within(KILL_DEADLINE)? {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::TimedOut, format!("the process {} does not end", self.pid))),
        }
    }

    fn ends_within(&self, deadline: Duration) -> io::Result<bool> {
        ends_within(&self.pidfd, deadline)
    }
}

/// Whether a process, perhaps a zombie since, ends within that time.
pub(crate) fn ends_within(pidfd: &OwnedFd, deadline: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(deadline).map_err(io::Error::other)?;
    let mut polled = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&timeout)))? > 0)
}

/// `None` for a file that is not there or that holds something else: then nobody is named by it.
fn read(path: &Utf8Path) -> io::Result<Option<PidRecord>> {
    match plain_file::read(path, STAT_BYTES_MAX) {
        Ok(stat) => Ok(parse(&String::from_utf8_lossy(&stat))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // It ended while its line was being read.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads proc(5) `stat`: the pid, and when it started (field 22).
fn parse(stat: &str) -> Option<PidRecord> {
    // The second field is a name in parentheses that may hold anything, parentheses too.
    let (before, after) = (stat.split_once('(')?.0, stat.rsplit_once(')')?.1);
    let pid = Pid::from_raw(before.trim().parse().ok().filter(|pid| *pid > 0)?)?;
    let start_time = after.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some(PidRecord { pid, start_time })
}

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;

    fn scratch() -> (tempfile::TempDir, camino::Utf8PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_owned().try_into().expect("UTF-8");
        (directory, path)
    }

    fn sleeper() -> std::process::Child {
        std::process::Command::new("sleep").arg("1000").spawn().expect("starts")
    }

    fn stat(pid: u32) -> String {
        fs::read_to_string(format!("/proc/{pid}/stat")).expect("runs")
    }

    #[test]
    fn the_process_that_a_pid_file_names_is_found_and_ended() {
        let (_scratch, path) = scratch();
        let mut vmm = sleeper();
        fs::write(path.join(PID_FILE), stat(vmm.id())).expect("written");
        let orphan = Orphan::find(&path).expect("looks").expect("is there");
        assert_eq!(orphan.pid, vmm.id());
        orphan.kill().expect("ends");
        assert!(Orphan::find(&path).expect("looks").is_none(), "a zombie is no VMM");
        assert!(!vmm.wait().expect("ended").success());
        assert!(Orphan::find(&path).expect("looks").is_none());
    }

    #[test]
    fn a_stranger_with_that_pid_is_not_the_one() {
        let (_scratch, path) = scratch();
        let mut stranger = sleeper();
        let real = stat(stranger.id());
        let start = parse(&real).expect("parses").start_time;
        let skewed = real.replace(&format!(" {start} "), &format!(" {} ", start - 1));
        fs::write(path.join(PID_FILE), skewed).expect("written");
        assert!(Orphan::find(&path).expect("looks").is_none());
        stranger.kill().expect("killed");
        stranger.wait().expect("ends");
    }

    #[test]
    fn a_pid_file_of_nonsense_names_nobody() {
        let (_scratch, path) = scratch();
        assert!(Orphan::find(&path).expect("looks").is_none());
        let zeros = "0 (x) S 0".to_owned() + &" 0".repeat(30);
        let own = stat(std::process::id()).replacen(&std::process::id().to_string(), "-1", 1);
        for nonsense in ["", "1", "(", ")(", "1 (init) S", &zeros, &own, "99999999999999 (x) S", &"9".repeat(10_000)] {
            fs::write(path.join(PID_FILE), nonsense).expect("written");
            assert!(Orphan::find(&path).expect("looks").is_none(), "{nonsense:?}");
        }
    }

    #[test]
    fn names_with_parentheses_are_read_past() {
        let line = format!("42 (a) b (c)) S 1{} 77 0", " 0".repeat(17));
        assert_eq!(parse(&line), Some(PidRecord { pid: Pid::from_raw(42).expect("above zero"), start_time: 77 }));
    }
}

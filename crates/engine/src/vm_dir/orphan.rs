//! A VMM that may have lost its owner: found by its pid file, then killed or adopted.
//!
//! ```text
//!   child, before exec ──its own /proc/self/stat──▶ vms/<id>/pid ──▶ Orphan::find ──▶ kill, or Child::adopt
//! ```
//! The child writes the pid file itself, while it still shares its owner's lock on the directory. So a process that
//! finds the lock free finds the file whole. The pid alone is not enough: since the VMM has ended, the kernel may have
//! given its number to another process. Pid and start time together are unique until the host reboots.
//!
//! But the file's content proves nothing: a home that was copied, restored from a backup or made up names unrelated
//! processes. So a process counts as the VMM only if it has the VM's own console or error FIFO open. Every VMM is
//! started with these, and no other process has them by chance. If a named process lives but is not proved to be the
//! VMM, it is neither killed nor taken to be gone. The VM is left as it is, with an error that names both.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::time::Duration;

use camino::Utf8Path;
use fs_err as fs;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::fifo::{CONSOLE_FIFO, STDERR_FIFO};
use crate::files::plain_file;

/// Name of the file in a VM's directory.
pub(crate) const PID_FILE: &str = "pid";
/// A killed process ends as soon as it is scheduled and its memory is freed.
pub(crate) const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// A process that ends closes its files a moment before it is gone.
const CLOSING_DEADLINE: Duration = Duration::from_secs(1);
/// The standard output and error of each VMM.
const FIFOS: [&str; 2] = [CONSOLE_FIFO, STDERR_FIFO];
/// More than any line of proc(5) `stat` has.
const STAT_BYTES_MAX: u64 = 4096;

/// A living process that is not a child of this one.
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
    /// The VMM of the VM in `directory`. `None` if no pid file is there, or the process that it names has ended.
    ///
    /// # Errors
    /// The named process lives, and is not proved to be this VM's.
    pub(crate) fn find(directory: &Utf8Path) -> io::Result<Option<Self>> {
        let Some(this) = Self::named(directory)? else { return Ok(None) };
        if has_a_fifo_of(this.pid, directory)? {
            return Ok(Some(this));
        }
        if this.ends_within(CLOSING_DEADLINE)? {
            return Ok(None);
        }
        let Self { pid, .. } = this;
        let words = format!("`{directory}/{PID_FILE}` names the process {pid}, which has no file of that VM open");
        Err(io::Error::other(words))
    }

    /// The process in the pid file of a VM, whatever program it is.
    pub(crate) fn named(directory: &Utf8Path) -> io::Result<Option<Self>> {
        let Some(record) = read(&directory.join(PID_FILE))? else { return Ok(None) };
        let pidfd = match rustix::process::pidfd_open(record.pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Compared after the pidfd was opened, which stays bound to that process even if the number is reused. If the
        // start times match now, the pidfd is that of the VMM.
        let now = read(format!("/proc/{}/stat", record.pid.as_raw_nonzero()).as_str().into())?;
        let this = Self { pid: record.pid.as_raw_nonzero().get().cast_unsigned(), pidfd };
        Ok((now == Some(record) && !this.ends_within(Duration::ZERO)?).then_some(this))
    }

    /// Kills it, and waits until it is gone: after that another VMM may use its disks and memory.
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

/// Whether a process ends within that time. A zombie counts as ended.
pub(crate) fn ends_within(pidfd: &OwnedFd, deadline: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(deadline).map_err(io::Error::other)?;
    let mut polled = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&timeout)))? > 0)
}

/// Whether a process has a FIFO in this directory open. If this user may not read the process's descriptors, it belongs
/// to another user, so it has none.
fn has_a_fifo_of(pid: u32, directory: &Utf8Path) -> io::Result<bool> {
    let mut own = Vec::new();
    for name in FIFOS {
        match fs::symlink_metadata(directory.join(name)) {
            Ok(found) if found.file_type().is_fifo() => own.push((found.dev(), found.ino())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Ok(false) };
    // A descriptor may be closed while the others are read.
    let mut open = open.flatten().filter_map(|entry| fs::metadata(entry.path()).ok());
    Ok(open.any(|found| own.contains(&(found.dev(), found.ino()))))
}

/// `None` if the file does not exist or holds something else. Then it names no process.
fn read(path: &Utf8Path) -> io::Result<Option<PidRecord>> {
    match plain_file::read(path, STAT_BYTES_MAX) {
        Ok(stat) => Ok(parse(&String::from_utf8_lossy(&stat))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // The process ended while its line was being read.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Parses proc(5) `stat`: the pid, and the start time (field 22).
fn parse(stat: &str) -> Option<PidRecord> {
    // The second field is a name in parentheses, which may hold anything, parentheses too.
    let (before, after) = (stat.split_once('(')?.0, stat.rsplit_once(')')?.1);
    let pid = Pid::from_raw(before.trim().parse().ok().filter(|pid| *pid > 0)?)?;
    let start_time = after.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some(PidRecord { pid, start_time })
}

#[cfg(test)]
pub(crate) mod testing {
    //! Processes that are VMMs by all that can be seen of them.

    use std::process::{Child, Command};

    use rustix::fs::{CWD, FileType, Mode};

    use super::*;

    /// Starts a process that has a new FIFO as its standard output.
    pub(crate) fn sleeper_with(fifo: &Utf8Path) -> Child {
        rustix::fs::mknodat(CWD, fifo.as_std_path(), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("made");
        let stdout = fs::File::options().read(true).write(true).open(fifo).expect("opens");
        Command::new("sleep").arg("1000").stdout(stdout.into_file()).spawn().expect("starts")
    }
}

#[cfg(test)]
mod tests {
    use super::testing::sleeper_with;
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
        let mut vmm = sleeper_with(&path.join(CONSOLE_FIFO));
        fs::write(path.join(PID_FILE), stat(vmm.id())).expect("written");
        let orphan = Orphan::find(&path).expect("looks").expect("is there");
        assert_eq!(orphan.pid, vmm.id());
        orphan.kill().expect("ends");
        assert!(Orphan::find(&path).expect("looks").is_none(), "a zombie is not a VMM");
        assert!(!vmm.wait().expect("ended").success());
        assert!(Orphan::find(&path).expect("looks").is_none());
    }

    #[test]
    fn another_process_with_that_pid_is_not_the_vmm() {
        let (_scratch, path) = scratch();
        let mut stranger = sleeper_with(&path.join(STDERR_FIFO));
        let real = stat(stranger.id());
        let start = parse(&real).expect("parses").start_time;
        let skewed = real.replace(&format!(" {start} "), &format!(" {} ", start - 1));
        fs::write(path.join(PID_FILE), skewed).expect("written");
        assert!(Orphan::find(&path).expect("looks").is_none());
        stranger.kill().expect("killed");
        stranger.wait().expect("ends");
    }

    #[test]
    fn a_named_process_without_a_file_of_the_vm_is_not_killed() {
        let (_scratch, path) = scratch();
        let (_other, elsewhere) = scratch();
        let mut innocents = [sleeper(), sleeper_with(&elsewhere.join(CONSOLE_FIFO))];
        let console = path.join(CONSOLE_FIFO);
        let nothing = || ();
        let file = || fs::write(&console, "").expect("written");
        let link = || std::os::unix::fs::symlink(elsewhere.join(CONSOLE_FIFO), &console).expect("made");
        for make in [&nothing as &dyn Fn(), &file, &link] {
            make();
            for innocent in &mut innocents {
                fs::write(path.join(PID_FILE), stat(innocent.id())).expect("written");
                let error = Orphan::find(&path).expect_err("is not proved").to_string();
                assert!(error.contains(&innocent.id().to_string()) && error.contains(path.as_str()), "{error}");
                assert!(innocent.try_wait().expect("looks").is_none(), "it runs on");
            }
            drop(fs::remove_file(&console));
        }
        for mut innocent in innocents {
            innocent.kill().expect("killed");
            innocent.wait().expect("ends");
        }
    }

    #[test]
    fn a_pid_file_of_garbage_names_no_process() {
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

//! Signals to process groups and sessions, for guests and hosts without control groups.
#![expect(unsafe_code, reason = "real-time signals are only reachable through libc")]

use std::fs;
use std::os::fd::RawFd;
use std::time::Duration;

/// Sends a signal to a process group.
pub(super) fn signal_group(group: i32, signal: i32) -> bool {
    // SAFETY: plain numbers. For a group that is gone the call fails.
    group > 1 && unsafe { libc::kill(-group, signal) } == 0
}

/// Kills the one process that the descriptor refers to.
pub(super) fn kill_pidfd(pidfd: RawFd) {
    // SAFETY: the pointer to additional information is null, and flags are zero.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, libc::SIGKILL, 0, 0) };
}

/// Kills one process, if there is one with this pid.
pub(super) fn kill_process(pid: i32) {
    if pid > 1 {
        // SAFETY: plain numbers.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

/// CPU time of one process.
pub(super) fn cpu_of(pid: i32) -> Duration {
    /// The clock of all threads of a process by the scheduler's count.
    const SCHEDULER_CLOCK: i32 = 2;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the struct lives through the call. If the process is gone, it stays zero.
    unsafe { libc::clock_gettime((!pid << 3) | SCHEDULER_CLOCK, &raw mut time) };
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Kills a process group, and all other processes of the session with the same id.
pub(super) fn kill_session(session: i32) {
    signal_group(session, libc::SIGKILL);
    let Ok(entries) = fs::read_dir("/proc") else { return };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if session_of(pid) == Some(session) {
            // SAFETY: plain numbers.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

fn session_of(pid: i32) -> Option<i32> {
    // SAFETY: a plain number. The result is -1 if the process is gone.
    let session = unsafe { libc::getsid(pid) };
    (session > 0).then_some(session)
}

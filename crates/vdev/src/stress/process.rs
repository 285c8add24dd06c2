//! The backend's process, if the system reports which one it is.

use std::os::fd::AsFd as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::socket::Channel;

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFacts {
    /// Its descriptors.
    pub fds: u64,
    /// Its resident memory.
    pub rss_kib: u64,
}

/// The process that listens on the other end, if the system reports its number and we may inspect it.
pub(super) fn peer(channel: &Channel) -> Option<u32> {
    let credentials = rustix::net::sockopt::socket_peercred(channel.stream().as_fd()).ok()?;
    let pid = u32::try_from(credentials.pid.as_raw_nonzero().get()).ok()?;
    // In a namespace of processes that we are not in, or another user's: nothing to be seen.
    ProcessFacts::of(pid).map(|_| pid)
}

impl ProcessFacts {
    /// What a process holds now; `None` if it has ended or can't be inspected.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let fds = std::fs::read_dir(dir.join("fd")).ok()?.count() as u64;
        let status = std::fs::read_to_string(dir.join("status")).ok()?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let rss_kib = rss.split_whitespace().next()?.parse().ok()?;
        Some(Self { fds, rss_kib })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_process_that_holds_more_shows_it() {
        let before = ProcessFacts::of(std::process::id()).expect("we are there");
        let (one, other) = Channel::pair(Duration::from_secs(1)).expect("two sockets");
        assert_eq!(peer(&one), Some(std::process::id()));
        let pipes: Vec<_> = (0..20).map(|_| std::io::pipe().expect("a pipe")).collect();
        let after = ProcessFacts::of(std::process::id()).expect("we are there");
        // Other tests of this process come and go as well.
        assert!(after.fds > before.fds + 10 && after.rss_kib > 0, "{before:?} {after:?}");
        drop((one, other, pipes));
        assert_eq!(ProcessFacts::of(u32::MAX), None);
    }
}

//! The kernel's unbound workers, while a command writes much to a terminal.
//!
//! What is written to a terminal is carried to its other side by a worker thread of the kernel, which each write wakes.
//! A worker has slept before, so the scheduler lets it preempt the writer: a program that writes line by line pays two
//! context switches for each line, and these were two thirds of the whole time of `seq 20000` on a terminal (48,000
//! switches, and 300 without them). Under `SCHED_BATCH` a thread has the same share of the CPU and does not preempt when
//! it wakes ([sched(7)]). The writer goes on, and the worker carries many lines at once: when the agent reads, or at the
//! next tick.
//!
//! This is a setting of the whole guest, so it ends with the command or the next key, and only PID 1 makes it: the guest is
//! Kiln's own then. All that other users of these workers notice meanwhile is that work which nobody waits for may
//! start a tick later beside a busy CPU.
//!
//! [sched(7)]: https://man7.org/linux/man-pages/man7/sched.7.html
#![expect(unsafe_code, reason = "a thread's scheduling policy is only reachable through libc")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The least time from one search for workers to the next: each reads a file for each process.
const SEARCH_INTERVAL: Duration = Duration::from_millis(200);
/// What the names of unbound workers start with.
const NAME: &[u8] = b"kworker/u";

/// Workers that don't preempt. Dropped, they do again.
#[derive(Debug, Default)]
pub(super) struct Batched {
    pids: BTreeSet<i32>,
    searched: Option<Instant>,
}

impl Batched {
    /// Keeps the workers that there are from preempting, in a guest whose init this is.
    pub(super) fn begin(&mut self) {
        let now = Instant::now();
        let recent = self.searched.is_some_and(|at| now < at + SEARCH_INTERVAL);
        if std::process::id() != 1 || recent {
            return;
        }
        self.searched = Some(now);
        // What another terminal has set is its own to set back; a later search finds it then. And what a user of the
        // guest has set stays.
        let found = search().into_iter().filter(|pid| policy(*pid) == libc::SCHED_OTHER);
        self.pids.extend(found.filter(|pid| set_policy(*pid, libc::SCHED_BATCH)));
    }

    /// Lets them preempt as ever.
    pub(super) fn end(&mut self) {
        for pid in std::mem::take(&mut self.pids) {
            // One that has ended needs nothing, and what has its pid since has another policy or loses a mild one.
            if policy(pid) == libc::SCHED_BATCH {
                set_policy(pid, libc::SCHED_OTHER);
            }
        }
    }
}

impl Drop for Batched {
    fn drop(&mut self) {
        self.end();
    }
}

fn search() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_unbound_worker(*pid)).collect()
}

/// A program may have any name, but none without memory of its own.
fn is_unbound_worker(pid: i32) -> bool {
    let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_else(|_| vec![0]);
    read("comm").starts_with(NAME) && read("cmdline").is_empty()
}

fn policy(pid: i32) -> libc::c_int {
    // SAFETY: the call takes a number and returns one.
    unsafe { libc::sched_getscheduler(pid) }
}

fn set_policy(pid: i32, policy: libc::c_int) -> bool {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads one structure, which lives until it returns.
    unsafe { libc::sched_setscheduler(pid, policy, &raw const parameters) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_no_workers_of_the_kernel() {
        assert!(!is_unbound_worker(std::process::id().cast_signed()));
        assert!(!is_unbound_worker(i32::MAX), "a process that is gone");
    }

    #[test]
    fn the_workers_of_a_host_are_left_alone() {
        let mut batched = Batched::default();
        batched.begin();
        assert!(batched.pids.is_empty());
    }
}

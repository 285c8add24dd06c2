//! The scheduling policy of the kernel's unbound workers while a command writes much to a terminal.
//!
//! A worker thread of the kernel copies the data that is written to a terminal to its other side, and each write wakes
//! it. The worker has slept before, so the scheduler lets it preempt the writer: a program that writes line by line
//! pays two context switches for each line. These were two thirds of the total time of `seq 20000` on a terminal
//! (48,000 switches, and 300 without them). Under `SCHED_BATCH` a thread has the same share of the CPU and doesn't
//! preempt when it wakes ([sched(7)]). The writer continues, and the worker copies many lines at once: when the agent
//! reads, or at the next tick.
//!
//! The policy affects the whole guest. So it is reset when the command ends or input arrives, and only PID 1 sets it,
//! since the guest then belongs to Kiln. The only effect on other users of these workers is that work may start a tick
//! later if no task waits for it and the CPU is busy.
//!
//! [sched(7)]: https://man7.org/linux/man-pages/man7/sched.7.html
#![expect(unsafe_code, reason = "a thread's scheduling policy is only reachable through libc")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The shortest time between two searches for workers, because a search reads a file of each process.
const SEARCH_INTERVAL: Duration = Duration::from_millis(200);
/// The start of the names of unbound workers.
const NAME: &[u8] = b"kworker/u";

/// Workers that don't preempt. Dropping this resets their policy.
#[derive(Debug, Default)]
pub(super) struct Batched {
    pids: BTreeSet<i32>,
    searched: Option<Instant>,
}

impl Batched {
    /// Sets the policy of all current workers, if this process is the guest's PID 1.
    pub(super) fn begin(&mut self) {
        let now = Instant::now();
        let recent = self.searched.is_some_and(|at| now < at + SEARCH_INTERVAL);
        if std::process::id() != 1 || recent {
            return;
        }
        self.searched = Some(now);
        // A worker whose policy another terminal has set is left to that terminal, which resets it; a later search
        // finds the worker again. A policy that a user of the guest has set stays too.
        let found = search().into_iter().filter(|pid| policy(*pid) == libc::SCHED_OTHER);
        self.pids.extend(found.filter(|pid| set_policy(*pid, libc::SCHED_BATCH)));
    }

    /// Resets the policy of these workers.
    pub(super) fn end(&mut self) {
        for pid in std::mem::take(&mut self.pids) {
            // If the worker has exited, its pid may belong to another process. That process has another policy, or its
            // own SCHED_BATCH is reset, which changes little.
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

/// A program may have the name of a worker too, but only kernel threads have an empty command line.
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
    // SAFETY: the call reads one struct, which lives until it returns.
    unsafe { libc::sched_setscheduler(pid, policy, &raw const parameters) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_not_workers_of_the_kernel() {
        assert!(!is_unbound_worker(std::process::id().cast_signed()));
        assert!(!is_unbound_worker(i32::MAX), "a process that is gone");
    }

    #[test]
    fn workers_are_not_changed_unless_the_agent_is_pid_1() {
        let mut batched = Batched::default();
        batched.begin();
        assert!(batched.pids.is_empty());
    }
}

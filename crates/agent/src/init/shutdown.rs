//! The end of a guest: ends all programs, saves written data, and powers the machine off.
//!
//! # The order of the end
//! 1. The host gets a Goodbye, so it does not report a lost link. From then on no request is taken, so no new command
//!    starts.
//! 2. All programs get SIGTERM, and those that are left get SIGKILL. Both waits are bounded: a program that blocks in
//!    the kernel can't be killed, and must not keep the machine on. The agent reaps its children meanwhile: their
//!    SIGCHLD is no longer read, and the tasks of commands wait for their statuses.
//! 3. Written data is synced, and only then. A program may write until it exits, so a sync before would miss its last
//!    data.
//! 4. File systems are unmounted, the last mount first, because it may be below an earlier one. An unmount fails if a
//!    process of step 2 still has a file open. The file system is then made read-only if the kernel allows it, so that
//!    the next boot needs no repair.
//! 5. The machine is powered off. PID 1 must not exit: the kernel panics if it does.

use std::fs;
use std::io;
use std::time::Duration;

use kiln_wire::GoodbyeReason;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::process::{Signal, kill_process};
use rustix::system::{RebootCommand, reboot};
use tokio::time::{Instant, sleep};

use crate::agent::Agent;

/// How long programs may take to exit after SIGTERM.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// How long they may take after SIGKILL.
const KILL_GRACE: Duration = Duration::from_secs(1);
/// Time between two checks.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// File systems without data on a disk.
const NOTHING_TO_LOSE: [&str; 9] =
    ["proc", "sysfs", "devtmpfs", "devpts", "tmpfs", "cgroup2", "rootfs", "ramfs", "overlay"];

/// Sends Goodbye to the host, ends all programs, and syncs and unmounts file systems.
pub(super) async fn stop_everything(agent: &Agent) {
    agent.links.end(GoodbyeReason::Shutdown);
    // Frozen programs can't handle SIGTERM, and must not be thawed for it: in a fork they may not have an identity yet.
    // So they are killed at once.
    let first = usize::from(agent.commands.are_frozen());
    for (signal, grace) in &[(Signal::TERM, TERM_GRACE), (Signal::KILL, KILL_GRACE)][first..] {
        if !signal_all(*signal) {
            break;
        }
        let until = Instant::now() + *grace;
        while Instant::now() < until && any_program() {
            agent.commands.reap();
            sleep(POLL_INTERVAL).await;
        }
    }
    rustix::fs::sync();
    unmount_all();
}

/// Powers the machine off.
///
/// # Errors
/// If the kernel refuses. The caller can then only exit.
pub(super) fn power_off() -> io::Result<()> {
    rustix::fs::sync();
    Err(match reboot(RebootCommand::PowerOff) {
        Ok(()) => io::Error::other("the machine is still on"),
        Err(error) => error.into(),
    })
}

/// Signals all programs but the agent. Returns false if there are none.
fn signal_all(signal: Signal) -> bool {
    all_programs(|pid| {
        let _ = kill_process(pid, signal);
    })
}

fn any_program() -> bool {
    all_programs(|_| ())
}

/// Calls `each` for every process except the agent and kernel threads. Returns whether there is one.
fn all_programs(mut each: impl FnMut(rustix::process::Pid)) -> bool {
    let mut any = false;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Kernel threads and zombies have no command line.
        let is_program = fs::read(entry.path().join("cmdline")).is_ok_and(|line| !line.is_empty());
        if let (true, 2.., Some(pid)) = (is_program, pid, rustix::process::Pid::from_raw(pid)) {
            any = true;
            each(pid);
        }
    }
    any
}

/// Unmounts file systems on disks, the last mount first. If one is in use, it is made read-only.
fn unmount_all() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines().rev() {
        let mut fields = line.split(' ').skip(1);
        let (Some(target), Some(kind)) = (fields.next(), fields.next()) else { continue };
        if NOTHING_TO_LOSE.contains(&kind) {
            continue;
        }
        let target = target.replace("\\040", " ");
        if unmount(target.as_str(), UnmountFlags::NOFOLLOW).is_err() {
            let _ = mount_remount(target.as_str(), MountFlags::RDONLY, "");
        }
    }
}

//! One command that was started: its ids, and how it is signalled, limited and killed.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kiln_wire::{ErrorCode, ExecRequest, Fault, Limits};
use rustix::io::Errno;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking, spawn_local};

use super::cgroup::Group;
use super::command::Command;
use super::commands::{Commands, Running};
use super::reaper::{Exit, Flight};
use super::spawn::{Setup, Spawned, spawn};
pub use super::stdio::Output;
use super::stdio::{self, Ends};
use super::tree;
use crate::link::{End, Inbox};
use crate::tally::Counted;

/// The last signal of Linux on x86-64.
const SIGNAL_MAX: i32 = 64;

/// A child that is being created.
struct Newborn {
    commands: Rc<Commands>,
    flight: Flight,
    group: Option<Rc<Group>>,
    ends: Ends,
    started: Instant,
    limits: Limits,
    /// Delays a freeze until the child has passed its execve.
    birth: Counted,
}

impl Newborn {
    async fn finish(
        self,
        spawning: JoinHandle<std::io::Result<Spawned>>,
        session: Option<String>,
    ) -> Result<Job, Fault> {
        let Self { commands, flight, group, ends, started, limits, birth } = self;
        let failed =
            |error| Fault::new(ErrorCode::Internal, format!("the thread that starts a command failed: {error}"));
        let result = spawning.await.map_err(failed)?;
        drop(birth);
        let Spawned { pid, pidfd, fault } = match result {
            Ok(spawned) => spawned,
            Err(error) => {
                if let Some(group) = group {
                    commands.give_back(group);
                }
                return Err(io_fault("new process", &error));
            }
        };
        let pidfd = Rc::new(pidfd);
        let status = flight.track(Rc::clone(&pidfd));
        let running = Running {
            group: group.as_ref().map_or_else(Weak::new, Rc::downgrade),
            session,
            terminal: ends.terminal.clone(),
        };
        commands.add(pid.unsigned_abs(), running);
        // From here on, dropping the job kills all of the command's processes.
        let job = Job { commands, pid, pidfd, group, ends, status: Some(status), started, limits };
        fault.map_or(Ok(job), Err)
    }
}

/// A running command. Dropping it kills all processes that are left of it.
#[derive(Debug)]
pub struct Job {
    pub(super) commands: Rc<Commands>,
    pub(super) pid: i32,
    pub(super) pidfd: Rc<OwnedFd>,
    pub(super) group: Option<Rc<Group>>,
    pub(super) ends: Ends,
    pub(super) status: Option<oneshot::Receiver<Exit>>,
    pub(super) started: Instant,
    pub(super) limits: Limits,
}

impl Job {
    /// Starts the command of `request`, after the thaw if commands are frozen, and waits until it runs.
    ///
    /// # Errors
    /// If the command can't be run. `None` if `inbox` requested the end first.
    pub async fn start(
        commands: &Rc<Commands>,
        request: &ExecRequest,
        output: Output,
        inbox: &Inbox,
        session: Option<&str>,
    ) -> Result<Self, Option<Fault>> {
        let command = Command::new(commands.defaults(), request)?;
        check_limits(commands, &request.limits)?;
        let birth = tokio::select! {
            biased;
            birth = commands.freezer().pass() => birth,
            end = inbox.ended() => return Err(fault_of(end)),
        };
        let group = match commands.cgroups() {
            Some(cgroups) => Some(cgroups.take(&request.limits).map_err(|error| io_fault("control group", &error))?),
            None => None,
        };
        let (ends, child_ends) = stdio::open(request, command.user.as_ref(), output, commands.null())
            .map_err(|error| io_fault("stdin, stdout and stderr", &error))?;
        let setup = Setup {
            ends: child_ends,
            terminal: request.tty.is_some(),
            limits: rlimits(&request.limits, group.is_some()),
            reset_oom: commands.are_oom_exempt(),
            cgroup: group.as_ref().map(|group| group.directory()),
        };
        let started = Instant::now();
        let flight = commands.reaper().expect_child();
        let pid = flight.pid();
        let pid_cell = Arc::clone(&pid);
        let spawning = spawn_blocking(move || spawn(&command, &setup, &pid_cell));
        let born =
            Newborn { commands: Rc::clone(commands), flight, group, ends, started, limits: request.limits, birth };
        let mut birth = Box::pin(born.finish(spawning, session.map(str::to_owned)));
        tokio::select! {
            biased;
            job = &mut birth => job.map_err(Some),
            end = inbox.ended() => {
                // A child that hangs before its execve has a pid and is killed by it. If there is no pid yet, the child
                // is killed when `birth` ends and its job is dropped.
                tree::kill_process(pid.load(Ordering::Acquire));
                spawn_local(async move { drop(birth.await) });
                Err(fault_of(end))
            }
        }
    }

    /// Pid in the guest.
    pub fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// The command's control group.
    pub fn group(&self) -> Option<&Rc<Group>> {
        self.group.as_ref()
    }

    /// Sends a signal to the whole process group.
    pub(super) fn signal(&self, signal: i32) {
        // This fails if the group has just ended, which is not an error.
        let _ = tree::signal_group(self.pid, signal);
    }

    /// Sends the signal that ends the command to all processes of the group, also to stopped ones.
    pub(super) fn terminate(&self) {
        self.signal(self.limits.stop_signal.unwrap_or(libc::SIGTERM));
        // A stopped process handles a signal only after it is continued.
        self.signal(libc::SIGCONT);
    }

    /// CPU time so far: of the whole control group, or of the command's own process without control groups.
    pub(super) fn cpu_used(&self) -> Duration {
        self.group.as_ref().map_or_else(|| tree::cpu_of(self.pid), |group| group.cpu())
    }

    /// Kills all processes of the command.
    pub(super) fn kill(&self) {
        match &self.group {
            Some(group) => group.kill(),
            None => {
                tree::kill_pidfd(self.pidfd.as_raw_fd());
                tree::kill_session(self.pid);
            }
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.commands.remove(self.pid());
        match self.group.take() {
            Some(group) => self.commands.give_back(group),
            None => {
                if self.status.is_some() {
                    tree::kill_pidfd(self.pidfd.as_raw_fd());
                }
                tree::kill_session(self.pid);
            }
        }
    }
}

fn fault_of(end: End) -> Option<Fault> {
    match end {
        End::Fault(fault) => Some(fault),
        End::Cancelled | End::LinkLost => None,
    }
}

fn io_fault(what: &str, error: &std::io::Error) -> Fault {
    let code = match Errno::from_io_error(error) {
        Some(Errno::MFILE | Errno::NFILE) => ErrorCode::TooManyFiles,
        Some(Errno::AGAIN | Errno::NOMEM) => ErrorCode::LimitExceeded,
        _ => ErrorCode::Io,
    };
    Fault::new(code, format!("can't create the command's {what}: {error}"))
}

/// Refuses limits that can't be enforced here, by name.
fn check_limits(commands: &Commands, limits: &Limits) -> Result<(), Fault> {
    let zero = [
        ("cpu_ms", limits.cpu_ms),
        ("wall_ms", limits.wall_ms),
        ("memory_bytes", limits.memory_bytes),
        ("pids", limits.pids),
        ("files", limits.files),
    ];
    if let Some((name, _)) = zero.iter().find(|(_, value)| *value == Some(0)) {
        return Err(Fault::new(ErrorCode::InvalidRequest, format!("limit `{name}` is 0: no command could run")));
    }
    if let Some(signal) = limits.stop_signal.filter(|signal| !(1..=SIGNAL_MAX).contains(signal)) {
        let message = format!("limit `stop_signal` is {signal}: signals are 1 to {SIGNAL_MAX}");
        return Err(Fault::new(ErrorCode::InvalidRequest, message));
    }
    if commands.cgroups().is_none() {
        for (name, value) in [("memory_bytes", limits.memory_bytes), ("pids", limits.pids)] {
            if value.is_some() {
                let message = format!("limit `{name}` needs control groups, and this agent has none");
                return Err(Fault::new(ErrorCode::Unsupported, message));
            }
        }
    }
    Ok(())
}

fn rlimits(limits: &Limits, cgroups: bool) -> Vec<(u32, u64)> {
    let mut list = Vec::new();
    if let Some(files) = limits.files {
        list.push((libc::RLIMIT_NOFILE, files));
    }
    if let (Some(cpu_ms), false) = (limits.cpu_ms, cgroups) {
        // This limits each process, in whole seconds. The supervisor watches the command's own process more exactly.
        list.push((libc::RLIMIT_CPU, cpu_ms.div_ceil(1000)));
    }
    list
}

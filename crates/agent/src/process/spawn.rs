//! Makes a child: one clone3 that gives a pidfd, clears signal handlers and puts the child into its control group.
//!
//! The child tells through a close-on-exec pipe what failed; its end means that the program runs. The agent waits for
//! that without blocking: an execve from a file system that hangs must not take the agent with it.
#![expect(unsafe_code, reason = "clone3 is only reachable as a raw system call")]

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

use kiln_wire::{ErrorCode, Fault};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::child::{self, Identity, Plan, REPORT_BYTES, Stage};
use super::command::{Command, Directory};
use crate::watched::watch_reading;

// From linux/sched.h; two of them do not fit into the type that libc gives them.
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// A child between clone and execve.
#[derive(Debug)]
pub struct Spawned {
    /// Its pid, session and process group.
    pub pid: i32,
    /// Refers to it and nothing else.
    pub pidfd: OwnedFd,
    /// Tells whether its program runs.
    pub report: Report,
}

/// The read end of the pipe that a successful execve closes.
#[derive(Debug)]
pub struct Report(OwnedFd);

/// How the child is set up beside its [`Command`].
#[derive(Debug)]
pub struct Setup<'a> {
    /// Descriptors that become 0, 1 and 2; all above 2.
    pub stdio: [RawFd; 3],
    /// Makes stdin the controlling terminal.
    pub terminal: bool,
    /// RLIMIT_* and its value.
    pub limits: &'a [(u32, u64)],
    /// Undoes the agent's own exemption from the OOM killer.
    pub reset_oom: bool,
    /// Directory of the control group to start in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Starts a child.
///
/// # Errors
/// The kernel makes no process or no pipe.
pub fn spawn(command: &Command, setup: &Setup<'_>) -> io::Result<Spawned> {
    let (report, report_end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let argv = pointers(&command.argv);
    let env = pointers(&command.env);
    let candidates = pointers(&command.candidates);
    let mut shell_argv = vec![c"/bin/sh".as_ptr(), ptr::null()];
    shell_argv.extend_from_slice(&argv[1..]);
    let (directory, root_will_do) = match &command.directory {
        Directory::Asked(directory) => (directory, false),
        Directory::Home(directory) => (directory, true),
    };
    let mut plan = Plan {
        argv: &argv,
        shell_argv: &mut shell_argv,
        env: &env,
        candidates: &candidates[..command.candidates.len()],
        directory,
        root_will_do,
        stdio: setup.stdio,
        terminal: setup.terminal,
        identity: command.user.as_ref().map(|user| Identity { uid: user.uid, gid: user.gid, groups: &user.groups }),
        limits: setup.limits,
        reset_oom: setup.reset_oom,
        report: report_end.as_raw_fd(),
    };
    let (pid, pidfd) = clone(setup.cgroup, &mut plan)?;
    Ok(Spawned { pid, pidfd, report: Report(report) })
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

fn clone(cgroup: Option<BorrowedFd<'_>>, plan: &mut Plan<'_>) -> io::Result<(i32, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero bytes are a value of this plain struct; zero fields ask for nothing.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_PIDFD | CLONE_CLEAR_SIGHAND;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::try_from(cgroup.as_raw_fd()).expect("an open descriptor is not negative");
    }
    // SAFETY: without CLONE_VM the child gets a copy of memory and goes on here like after fork; it only makes system
    // calls from then on. The plan's pointers live in the caller's frame, of which the child has its copy.
    let pid = unsafe {
        let pid = libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>());
        if pid == 0 {
            child::run(plan);
        }
        pid
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let pid = i32::try_from(pid).expect("pids fit into 22 bits");
    // SAFETY: the kernel put a new descriptor there, which nothing else owns.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

impl Report {
    /// Waits until the program runs.
    ///
    /// # Errors
    /// What kept it from running.
    pub async fn running(self, command: &Command) -> Result<(), Fault> {
        let report = watch_reading(self.0).map_err(|error| Fault::new(ErrorCode::Io, error.to_string()))?;
        let mut bytes = [0; REPORT_BYTES];
        loop {
            // The end of the pipe is nearly always what comes next, so wait before the first look.
            let mut guard = report.readable().await.map_err(|error| Fault::new(ErrorCode::Io, error.to_string()))?;
            match rustix::io::read(&report, &mut bytes[..]) {
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                // A report is shorter than a pipe's atomic write, so it comes whole.
                Ok(REPORT_BYTES) => return Err(fault(command, bytes)),
                Ok(_) | Err(_) => return Ok(()),
            }
        }
    }
}

fn fault(command: &Command, report: [u8; REPORT_BYTES]) -> Fault {
    let [stage, errno] =
        [0, 4].map(|at| i32::from_ne_bytes([report[at], report[at + 1], report[at + 2], report[at + 3]]));
    let stage = Stage::ALL.into_iter().find(|known| *known as i32 == stage).unwrap_or(Stage::Session);
    let reason = Errno::from_raw_os_error(errno);
    let because = io::Error::from_raw_os_error(errno);
    let program = command.argv[0].to_string_lossy();
    match stage {
        Stage::Search => Fault::new(ErrorCode::CommandNotFound, format!("`{program}` does not exist")),
        Stage::Interpreter => {
            Fault::new(ErrorCode::NotExecutable, format!("`{program}` needs an interpreter that does not exist"))
        }
        Stage::Execute => Fault::new(ErrorCode::NotExecutable, format!("`{program}` can't be executed: {because}")),
        Stage::Directory => {
            let (Directory::Asked(path) | Directory::Home(path)) = &command.directory;
            let code = match reason {
                Errno::NOENT => ErrorCode::NotFound,
                Errno::NOTDIR => ErrorCode::NotADirectory,
                Errno::ACCESS => ErrorCode::PermissionDenied,
                Errno::LOOP => ErrorCode::TooManyLinks,
                Errno::NAMETOOLONG => ErrorCode::NameTooLong,
                _ => ErrorCode::Io,
            };
            Fault::new(code, format!("working directory `{}`: {because}", path.to_string_lossy()))
        }
        Stage::Identity => Fault::new(ErrorCode::PermissionDenied, format!("can't change to another user: {because}")),
        Stage::Limits => Fault::new(ErrorCode::InvalidRequest, format!("a limit can't be set: {because}")),
        Stage::Session | Stage::Terminal | Stage::Stdio => {
            Fault::new(ErrorCode::Io, format!("can't set up the command ({stage:?}): {because}"))
        }
    }
}

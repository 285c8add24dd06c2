//! Creates a child: one clone3 that returns a pidfd, clears signal handlers and puts the child into its control group.
//!
//! The child uses the agent's memory until its program runs (`CLONE_VM` and `CLONE_VFORK`), so that no page has to be
//! copied, write-protected and faulted in again. `child` explains what the child may touch meanwhile. The thread that
//! clones is suspended until then, possibly forever if the program is on a file system that hangs. So it is a thread of
//! the pool and not the thread that serves the host.
//!
//! Only clone3 can do all of this in one call. The older clone has one pointer for the pid and for the pidfd, so it
//! gives either one or the other. It can't place the child into a control group: the child would have to be moved
//! afterwards, and whatever it forks before the move would stay outside the group and outlive its command. The move
//! also takes a lock exclusively that each fork on the machine takes shared. And without `CLONE_CLEAR_SIGHAND` the
//! child would have to reset each handler by a system call.
//!
//! The kernel writes the pid to `pid` (`CLONE_PARENT_SETTID`) before the child runs, so the pid is known also while the
//! child hangs before its execve. The [`reaper`](super::reaper) and a cancel depend on that.
#![expect(unsafe_code, reason = "clone3 is only reachable as a raw system call")]

use std::ffi::{CString, c_char, c_void};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use kiln_wire::{ErrorCode, Fault};
use rustix::io::Errno;

use super::child::{self, Identity, Plan, Stage};
use super::command::{Command, Directory};
use super::stdio::ChildEnds;

// From linux/sched.h. Two of them don't fit into the type that libc uses for them.
const CLONE_VM: u64 = 0x100;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_PARENT_SETTID: u64 = 0x10_0000;
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
const CLONE_INTO_CGROUP: u64 = 1 << 33;
/// Stack of a child until its execve. It needs only a few nested calls.
const STACK_BYTES: usize = 32 << 10;

/// A child that was created.
#[derive(Debug)]
pub struct Spawned {
    /// Its pid, session and process group.
    pub pid: i32,
    /// Refers to this process only, also after its pid is used again.
    pub pidfd: OwnedFd,
    /// The reason if its program could not be run.
    pub fault: Option<Fault>,
}

/// The child's setup in addition to its [`Command`].
#[derive(Debug)]
pub(super) struct Setup {
    /// The descriptors that become 0, 1 and 2. They are closed when the child has them.
    pub ends: ChildEnds,
    /// Makes stdin the controlling terminal.
    pub terminal: bool,
    /// RLIMIT_* and its value.
    pub limits: Vec<(u32, u64)>,
    /// Whether to undo the agent's exemption from the OOM killer.
    pub reset_oom: bool,
    /// Directory of the control group to start in.
    pub cgroup: Option<Arc<OwnedFd>>,
}

/// Starts a child and waits until its program runs or can't be run.
///
/// `pid` is set before the child runs.
///
/// # Errors
/// If the kernel can't create a process.
pub(super) fn spawn(command: &Command, setup: &Setup, pid: &AtomicI32) -> io::Result<Spawned> {
    let argv = pointers(&command.argv);
    let env = pointers(&command.env);
    let candidates = pointers(&command.candidates);
    let mut shell_argv = vec![c"/bin/sh".as_ptr(), ptr::null()];
    shell_argv.extend_from_slice(&argv[1..]);
    let (directory, root_instead) = match &command.directory {
        Directory::Requested(directory) => (directory, false),
        Directory::Home(directory) => (directory, true),
    };
    let mut plan = Plan {
        argv: &argv,
        shell_argv: &mut shell_argv,
        env: &env,
        candidates: &candidates[..command.candidates.len()],
        directory,
        root_instead,
        stdio: setup.ends.stdio(),
        terminal: setup.terminal,
        identity: command.user.as_ref().map(|user| Identity { uid: user.uid, gid: user.gid, groups: &user.groups }),
        limits: &setup.limits,
        reset_oom: setup.reset_oom,
        failure: None,
    };
    let pidfd = clone(setup.cgroup.as_ref().map(AsRawFd::as_raw_fd), &mut plan, pid)?;
    let fault = plan.failure.map(|(stage, errno)| fault(command, stage, errno));
    Ok(Spawned { pid: pid.load(Ordering::Acquire), pidfd, fault })
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

fn clone(cgroup: Option<RawFd>, plan: &mut Plan<'_>, pid: &AtomicI32) -> io::Result<OwnedFd> {
    let mut pidfd: RawFd = -1;
    let mut stack = vec![0u128; STACK_BYTES / size_of::<u128>()];
    // SAFETY: all-zero bytes are a value of this plain struct, and zero fields have no effect.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_PARENT_SETTID | CLONE_CLEAR_SIGHAND;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.parent_tid = pid.as_ptr() as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.stack = stack.as_mut_ptr() as u64;
    arguments.stack_size = STACK_BYTES as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::try_from(cgroup).expect("an open descriptor is not negative");
    }
    // SAFETY: the arguments are complete. The stack, the plan and all that it points to outlive the call, because
    // CLONE_VFORK makes the call return only after the child has left this memory by execve or has exited.
    let result = unsafe { clone3_with_entry(&mut arguments, (&raw mut *plan).cast()) };
    drop(stack);
    if result < 0 {
        return Err(io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EINVAL)));
    }
    // SAFETY: the kernel wrote a new descriptor there, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// Calls clone3. The child calls [`entry`] on its own stack and never returns here.
///
/// # Safety
/// `arguments` must have a stack for the child and CLONE_VFORK. `plan` must point to a [`Plan`].
#[cfg(target_arch = "x86_64")]
unsafe fn clone3_with_entry(arguments: &mut libc::clone_args, plan: *mut c_void) -> isize {
    let result: isize;
    // SAFETY: the parent continues after the block, and only the named registers have changed. The child has a fresh
    // stack, aligned as a call requires, and leaves the block only through a function that doesn't return.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {plan}",
            "call {entry}",
            "ud2",
            "2:",
            plan = in(reg) plan,
            entry = in(reg) entry as *const () as usize,
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") &raw mut *arguments,
            in("rsi") size_of::<libc::clone_args>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the agent can create a child on x86-64 only");

/// The child's first function.
extern "C" fn entry(plan: *mut c_void) -> ! {
    // SAFETY: `clone` passed a plan that lives until the child has left this memory, and its thread is suspended.
    unsafe { child::run(&mut *plan.cast::<Plan<'_>>()) }
}

fn fault(command: &Command, stage: Stage, errno: i32) -> Fault {
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
            let (Directory::Requested(path) | Directory::Home(path)) = &command.directory;
            let code = match reason {
                Errno::NOENT => ErrorCode::NotFound,
                Errno::NOTDIR => ErrorCode::NotADirectory,
                Errno::ACCESS => ErrorCode::PermissionDenied,
                Errno::LOOP => ErrorCode::TooManyLinks,
                Errno::NAMETOOLONG => ErrorCode::NameTooLong,
                _ => ErrorCode::Io,
            };
            Fault::new(code, format!("can't enter working directory `{}`: {because}", path.to_string_lossy()))
        }
        Stage::Identity => Fault::new(ErrorCode::PermissionDenied, format!("can't change to another user: {because}")),
        Stage::Limits => Fault::new(ErrorCode::InvalidRequest, format!("can't set a limit: {because}")),
        Stage::Session | Stage::Terminal | Stage::Stdio => {
            let what = match stage {
                Stage::Session => "session",
                Stage::Terminal => "terminal",
                _ => "stdin, stdout and stderr",
            };
            Fault::new(ErrorCode::Io, format!("can't set up the command's {what}: {because}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_wire::ExecRequest;

    use super::*;
    use crate::process::Defaults;

    #[test]
    fn the_faults_of_a_command_that_can_not_be_run_read_like_this() {
        let request = ExecRequest { argv: vec!["prog".into()], cwd: Some("/work".into()), ..ExecRequest::default() };
        let command = Command::new(&Defaults::new(true, None), &request).expect("a plain command");
        let faults = [
            (Stage::Search, libc::ENOENT),
            (Stage::Interpreter, libc::ENOENT),
            (Stage::Execute, libc::EACCES),
            (Stage::Directory, libc::ENOENT),
            (Stage::Identity, libc::EPERM),
            (Stage::Limits, libc::EPERM),
            (Stage::Terminal, libc::EIO),
        ]
        .map(|(stage, errno)| fault(&command, stage, errno));
        let lines: Vec<String> = faults.iter().map(|fault| format!("{:?}: {}", fault.code, fault.message)).collect();
        insta::assert_snapshot!(lines.join("\n"), @"
        CommandNotFound: `prog` does not exist
        NotExecutable: `prog` needs an interpreter that does not exist
        NotExecutable: `prog` can't be executed: Permission denied (os error 13)
        NotFound: can't enter working directory `/work`: No such file or directory (os error 2)
        PermissionDenied: can't change to another user: Operation not permitted (os error 1)
        InvalidRequest: can't set a limit: Operation not permitted (os error 1)
        Io: can't set up the command's terminal: Input/output error (os error 5)
        ");
    }
}

//! The child between clone3 and execve. It runs in the agent's memory and makes system calls only.
//!
//! [`spawn`](super::spawn) clones with `CLONE_VM` and `CLONE_VFORK`: the child is a process of its own that uses the
//! agent's memory, and the thread that cloned it is suspended until the child has executed a program or exited. The
//! other threads of the agent continue. What the child may touch follows from that:
//!
//! - *No lock and no allocation.* The child can be killed at any instruction, by a cancel for example. A lock that it
//!   held would then stay locked in the agent's memory forever, and a list that it was changing would stay broken. The
//!   allocator, the standard library's output and a panic all need locks, so none of them may be reached. Nothing here
//!   can panic: there is no indexing except `shell_argv[1]`, which always exists, and no arithmetic that overflows.
//! - *Writes only to what the suspended thread owns.* These are the child's stack, `Plan::failure`, `Plan::shell_argv`,
//!   and `errno`, which is the suspended thread's because both have the same thread pointer. No other thread reads
//!   them, and the suspended thread reads them only after the kernel has resumed it, which happens after the child's
//!   last write. So they need no atomics.
//! - *Raw system calls where the C library does more.* Its `setuid` and similar functions signal all threads in the
//!   process, so that all change their identity. The list of threads is in the agent's memory and names the agent's
//!   threads, which are not threads of the child: the call would wait for them forever.
//! - *Other state is the child's own.* Without `CLONE_FILES`, `CLONE_FS` and `CLONE_SIGHAND` it has copies of the
//!   descriptor table, the working directory and the signal handlers, so `dup2`, `chdir` and the signal mask don't
//!   affect the agent. `CLONE_CLEAR_SIGHAND` resets all handlers, so no handler of the agent runs in the child. The
//!   signal mask is cleared last, directly before execve.
//! - *No return.* The stack frames of the function that cloned are on the other stack, so [`run`] never returns.
//!
//! The strings and arrays that the child reads are prepared before the clone and outlive it, because they belong to the
//! thread that is suspended.
#![expect(unsafe_code, reason = "a child after clone may use nothing but raw system calls")]

use std::ffi::{CStr, c_char, c_int};
use std::os::fd::RawFd;
use std::ptr;

/// Everything that the child needs, prepared before the clone.
pub(super) struct Plan<'a> {
    /// Arguments, ended by a null pointer.
    pub argv: &'a [*const c_char],
    /// `/bin/sh`, a place for the script's path, the other arguments, a null pointer.
    pub shell_argv: &'a mut [*const c_char],
    pub env: &'a [*const c_char],
    /// Paths to try, in order.
    pub candidates: &'a [*const c_char],
    pub directory: &'a CStr,
    /// Whether the child starts in `/` if the directory can't be entered.
    pub root_instead: bool,
    pub stdio: [RawFd; 3],
    /// Makes stdin the controlling terminal.
    pub terminal: bool,
    pub identity: Option<Identity<'a>>,
    /// RLIMIT_* and its value, soft and hard.
    pub limits: &'a [(u32, u64)],
    /// Whether to undo the agent's exemption from the OOM killer.
    pub reset_oom: bool,
    /// The step that failed, and errno. The parent reads it, since it shares this memory.
    pub failure: Option<(Stage, c_int)>,
}

pub(super) struct Identity<'a> {
    pub uid: u32,
    pub gid: u32,
    pub groups: &'a [u32],
}

/// The step that failed before the program ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Session,
    Terminal,
    Stdio,
    Identity,
    Limits,
    Directory,
    /// A candidate exists and can't be executed.
    Execute,
    /// No candidate exists.
    Search,
    /// A candidate exists, but the interpreter that its first line or its ELF header names does not.
    Interpreter,
}

/// Runs in the child and never returns.
///
/// # Safety
/// It must be called in a child that was just cloned, while the thread that cloned it is suspended. All pointers in
/// `plan` must be valid, and its lists must end with null.
pub(super) unsafe fn run(plan: &mut Plan<'_>) -> ! {
    // SAFETY: the caller's promise is the same as that of the functions called.
    unsafe {
        plan.failure = Some(prepare_and_execute(plan));
        libc::_exit(127)
    }
}

/// # Safety
/// See [`run`].
unsafe fn prepare_and_execute(plan: &mut Plan<'_>) -> (Stage, c_int) {
    macro_rules! check {
        ($stage:ident, $call:expr) => {
            if $call < 0 {
                return (Stage::$stage, errno());
            }
        };
    }
    // SAFETY: see `run`. Each call gets plain numbers or pointers from the plan.
    unsafe {
        check!(Session, libc::setsid());
        for (target, source) in (0..).zip(plan.stdio) {
            check!(Stdio, libc::dup2(source, target));
        }
        if plan.terminal {
            check!(Terminal, libc::ioctl(0, libc::TIOCSCTTY, 0));
        }
        if plan.reset_oom {
            // The descriptor is closed by execve or when the child exits.
            let path = c"/proc/self/oom_score_adj".as_ptr();
            let fd = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, libc::O_WRONLY | libc::O_CLOEXEC);
            libc::syscall(libc::SYS_write, fd, c"0".as_ptr(), 1);
        }
        for (resource, value) in plan.limits {
            let limit = libc::rlimit { rlim_cur: *value, rlim_max: *value };
            check!(Limits, libc::syscall(libc::SYS_prlimit64, 0, *resource, &raw const limit, ptr::null::<u8>()));
        }
        if let Some(identity) = &plan.identity {
            // The C library's functions would signal threads that this process doesn't have, see the module.
            check!(Identity, libc::syscall(libc::SYS_setgroups, identity.groups.len(), identity.groups.as_ptr()));
            let gid = identity.gid;
            check!(Identity, libc::syscall(libc::SYS_setresgid, gid, gid, gid));
            let uid = identity.uid;
            check!(Identity, libc::syscall(libc::SYS_setresuid, uid, uid, uid));
        }
        if libc::chdir(plan.directory.as_ptr()) < 0 {
            let reason = errno();
            if !plan.root_instead || libc::chdir(c"/".as_ptr()) < 0 {
                return (Stage::Directory, reason);
            }
        }
        // An empty mask. The kernel's sigset has 8 bytes.
        let none = 0u64;
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, ptr::null::<u8>(), 8);
        execute(plan)
    }
}

/// # Safety
/// See [`run`].
unsafe fn execute(plan: &mut Plan<'_>) -> (Stage, c_int) {
    let mut result = (Stage::Search, libc::ENOENT);
    for candidate in plan.candidates {
        // SAFETY: see `run`.
        unsafe {
            // execve builds a whole address space before it opens the file, so a missing file is found faster by a
            // check.
            if libc::syscall(libc::SYS_faccessat, libc::AT_FDCWD, *candidate, libc::F_OK) < 0 {
                match errno() {
                    libc::ENOENT | libc::ENOTDIR => {}
                    reason => result = (Stage::Execute, reason),
                }
                continue;
            }
            libc::execve(*candidate, plan.argv.as_ptr(), plan.env.as_ptr());
            match errno() {
                libc::ENOENT | libc::ENOTDIR => return (Stage::Interpreter, libc::ENOENT),
                libc::EACCES => result = (Stage::Execute, libc::EACCES),
                libc::ENOEXEC => {
                    plan.shell_argv[1] = *candidate;
                    libc::execve(plan.shell_argv[0], plan.shell_argv.as_ptr(), plan.env.as_ptr());
                    return (Stage::Execute, libc::ENOEXEC);
                }
                reason => return (Stage::Execute, reason),
            }
        }
    }
    result
}

fn errno() -> c_int {
    // SAFETY: the location belongs to the thread that cloned the child, which is suspended.
    unsafe { *libc::__errno_location() }
}

//! What the child does between clone and execve. It runs in the agent's own memory, where any lock may be held, so it
//! makes system calls and nothing else.
#![expect(unsafe_code, reason = "a child after clone may use nothing but raw system calls")]

use std::ffi::{CStr, c_char, c_int};
use std::os::fd::RawFd;
use std::ptr;

/// Everything the child needs, prepared before the clone.
pub(super) struct Plan<'a> {
    /// Arguments, ended by a null pointer.
    pub argv: &'a [*const c_char],
    /// `/bin/sh`, a place for the script's path, the other arguments, a null pointer.
    pub shell_argv: &'a mut [*const c_char],
    pub env: &'a [*const c_char],
    /// Paths to try, in order.
    pub candidates: &'a [*const c_char],
    pub directory: &'a CStr,
    /// Whether `/` will do where the directory is missing.
    pub root_will_do: bool,
    pub stdio: [RawFd; 3],
    /// Makes stdin the controlling terminal.
    pub terminal: bool,
    pub identity: Option<Identity<'a>>,
    /// RLIMIT_* and its value, soft and hard.
    pub limits: &'a [(u32, u64)],
    /// Undoes the agent's own exemption from the OOM killer.
    pub reset_oom: bool,
    /// What failed, and errno; read by the parent, which shares this memory.
    pub failure: Option<(Stage, c_int)>,
}

pub(super) struct Identity<'a> {
    pub uid: u32,
    pub gid: u32,
    pub groups: &'a [u32],
}

/// What failed before the program ran.
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
    /// A candidate exists, but what its first line or its ELF header names does not.
    Interpreter,
}

/// Runs in the child; never returns.
///
/// # Safety
/// Only in a child that was just cloned, while the thread that made it is suspended; all pointers in `plan` live and
/// lists end with null.
pub(super) unsafe fn run(plan: &mut Plan<'_>) -> ! {
    // SAFETY: the caller's promise is the same as that of the functions called.
    unsafe {
        plan.failure = Some(prepare_and_execute(plan));
        libc::_exit(127)
    }
}

/// # Safety
/// As for [`run`].
unsafe fn prepare_and_execute(plan: &mut Plan<'_>) -> (Stage, c_int) {
    macro_rules! check {
        ($stage:ident, $call:expr) => {
            if $call < 0 {
                return (Stage::$stage, errno());
            }
        };
    }
    // SAFETY: the caller's promise; each call gets plain numbers or pointers from the plan.
    unsafe {
        check!(Session, libc::setsid());
        for (target, source) in (0..).zip(plan.stdio) {
            check!(Stdio, libc::dup2(source, target));
        }
        if plan.terminal {
            check!(Terminal, libc::ioctl(0, libc::TIOCSCTTY, 0));
        }
        if plan.reset_oom {
            // Closed by execve, or by the child's end.
            let path = c"/proc/self/oom_score_adj".as_ptr();
            let fd = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, libc::O_WRONLY | libc::O_CLOEXEC);
            libc::syscall(libc::SYS_write, fd, c"0".as_ptr(), 1);
        }
        for (resource, value) in plan.limits {
            let limit = libc::rlimit { rlim_cur: *value, rlim_max: *value };
            check!(Limits, libc::syscall(libc::SYS_prlimit64, 0, *resource, &raw const limit, ptr::null::<u8>()));
        }
        if let Some(identity) = &plan.identity {
            // The C library's own functions would tell threads that this process does not have.
            check!(Identity, libc::syscall(libc::SYS_setgroups, identity.groups.len(), identity.groups.as_ptr()));
            let gid = identity.gid;
            check!(Identity, libc::syscall(libc::SYS_setresgid, gid, gid, gid));
            let uid = identity.uid;
            check!(Identity, libc::syscall(libc::SYS_setresuid, uid, uid, uid));
        }
        if libc::chdir(plan.directory.as_ptr()) < 0 {
            let reason = errno();
            if !plan.root_will_do || libc::chdir(c"/".as_ptr()) < 0 {
                return (Stage::Directory, reason);
            }
        }
        // An empty mask; the kernel's sigset has 8 bytes.
        let none = 0u64;
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, ptr::null::<u8>(), 8);
        execute(plan)
    }
}

/// # Safety
/// As for [`run`].
unsafe fn execute(plan: &mut Plan<'_>) -> (Stage, c_int) {
    let mut result = (Stage::Search, libc::ENOENT);
    for candidate in plan.candidates {
        // SAFETY: as for `run`.
        unsafe {
            // execve builds a whole new address space before it looks for the file, so look first.
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
    // SAFETY: the location is that of the thread that made the child, which is suspended meanwhile.
    unsafe { *libc::__errno_location() }
}

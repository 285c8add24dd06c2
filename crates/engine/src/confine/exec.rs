//! From the fork of a VMM to its exec.
//!
//! ```text
//!   Launch::new: strings, descriptors ──clone3──▶ child: own session, namespaces, directory, user, limits,
//!        │                                              Landlock, descriptors ──exec──▶ the program
//!        └──◀── status pipe: closed by the exec, or the step that failed and its errno ──┘
//! ```
//! The child is a copy of one thread of a process that has many. If another thread held a lock at the fork, that lock
//! is held forever in the child. So between fork and exec the child makes only system calls. It allocates nothing, and
//! calls no function of libc that could lock or that keeps state of its own. Above all it does not call `setresuid`:
//! glibc's signals all threads of the process and waits for them, and they do not exist in the child. All strings and
//! tables are made before the fork.
#![expect(unsafe_code, reason = "what happens between fork and exec has no safe interface")]

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_long};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::ptr;

use camino::Utf8Path;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal};

use super::broker::Filter;
use crate::spec::OwnerLoss;

/// More than any line of proc(5) `stat` has.
const STAT_BYTES_MAX: usize = 1024;
/// Descriptors that a child closes one by one if the host's kernel has no call for all of them.
const DESCRIPTORS_MAX: u64 = 1 << 16;
/// Signals of Linux.
const SIGNALS: c_int = 64;
/// Of linux/mount.h.
const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
/// Of linux/landlock.h.
const LANDLOCK_RULE_PATH_BENEATH: c_long = 1;
const LANDLOCK_ACCESS_FS_READ_FILE: u64 = 1 << 2;
/// The exit code of a child that did not reach its exec. Only a debugger sees it.
const NOT_STARTED: c_int = 127;

/// All that a child needs, made before the fork.
#[derive(Debug)]
pub(crate) struct Launch {
    program: CString,
    arguments: Strings,
    environment: Strings,
    directory: CString,
    /// Standard input, output and error.
    standard: [OwnedFd; 3],
    keep: Vec<OwnedFd>,
    pid_file: Option<OwnedFd>,
    owner_loss: OwnerLoss,
}

/// What confines this child, beside what confines every child.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    /// Flags `CLONE_NEW…`.
    pub(crate) namespaces: c_int,
    /// What is written to `uid_map` and `gid_map` of a user namespace.
    pub(crate) maps: Option<[String; 2]>,
    /// In a mount namespace of its own, every mount except the directory is read-only.
    pub(crate) read_only: bool,
    /// Another user: uid and gid, and the supplementary groups.
    pub(crate) user: Option<(u32, Vec<u32>)>,
    pub(crate) limits: Vec<(Resource, u64)>,
    pub(crate) landlock: Option<OwnedFd>,
    /// Under Landlock, it may read the table of its own mounts.
    pub(crate) own_mounts: bool,
    pub(crate) filter: Option<Filter>,
}

/// The steps of a child. Each has a name, because if the host refuses a step, the [measure](super::Measure) that it
/// belongs to is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Fork,
    Session,
    PidFile,
    Namespaces,
    Mounts,
    Directory,
    User,
    OwnerLoss,
    Limits,
    Landlock,
    Descriptors,
    Memory,
    Exec,
}

const STEPS: [Step; 13] = [
    Step::Fork,
    Step::Session,
    Step::PidFile,
    Step::Namespaces,
    Step::Mounts,
    Step::Directory,
    Step::User,
    Step::OwnerLoss,
    Step::Limits,
    Step::Landlock,
    Step::Descriptors,
    Step::Memory,
    Step::Exec,
];

/// Why a child did not reach its exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) errno: Errno,
}

impl Step {
    fn what(self) -> &'static str {
        match self {
            Self::Fork => "fork",
            Self::Session => "begin a session",
            Self::PidFile => "write its pid file",
            Self::Namespaces => "enter its own namespaces",
            Self::Mounts => "make its mounts read-only",
            Self::Directory => "enter its directory",
            Self::User => "become another user",
            Self::OwnerLoss => "set the signal for the end of its owner",
            Self::Limits => "limit its resources",
            Self::Landlock => "restrict itself with Landlock",
            Self::Descriptors => "arrange its descriptors",
            Self::Memory => "get the memory of its snapshot",
            Self::Exec => "run its program",
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the child could not {}: {}", self.step.what(), io::Error::from(self.errno))
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure.step {
            // Callers recognise by its kind that a program does not exist.
            Step::Exec => failure.errno.into(),
            _ => Self::other(failure.to_string()),
        }
    }
}

/// Strings in the form that `execve` requires.
#[derive(Debug)]
struct Strings {
    pointers: Vec<*const c_char>,
    _strings: Vec<CString>,
}

// SAFETY: the pointers lead into `_strings`, whose heap blocks move with it and are never written.
unsafe impl Send for Strings {}

impl Strings {
    fn new(strings: impl IntoIterator<Item = OsString>) -> io::Result<Self> {
        let strings = strings.into_iter().map(|string| CString::new(string.into_vec()));
        let strings = strings.collect::<Result<Vec<_>, _>>()?;
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Ok(Self { pointers, _strings: strings })
    }
}

/// What to start.
pub(crate) struct Request<'a> {
    pub(crate) program: &'a Utf8Path,
    pub(crate) arguments: Vec<OsString>,
    /// The whole environment: the child inherits no variable.
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) directory: &'a Utf8Path,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// Descriptors that the child keeps under the same numbers.
    pub(crate) keep: Vec<OwnedFd>,
    pub(crate) pid_file: Option<OwnedFd>,
    pub(crate) owner_loss: OwnerLoss,
}

impl Launch {
    pub(crate) fn new(request: Request<'_>) -> io::Result<Self> {
        let null = rustix::fs::open(c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let arguments = [request.program.as_str().into()].into_iter().chain(request.arguments);
        let environment = request.environment.into_iter().map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name
        });
        Ok(Self {
            program: CString::new(request.program.as_str())?,
            arguments: Strings::new(arguments)?,
            environment: Strings::new(environment)?,
            directory: CString::new(request.directory.as_str())?,
            standard: [null, request.stdout, request.stderr],
            keep: request.keep,
            pid_file: request.pid_file,
            owner_loss: request.owner_loss,
        })
    }

    /// Starts it. Returns once the child has reached its exec. Blocks until then, for some milliseconds.
    pub(crate) fn start(&self, steps: &Steps) -> io::Result<Result<(Pid, OwnedFd), Failure>> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        let parent = std::process::id();
        let (pid, pidfd) = match self.fork(steps, &writer, parent) {
            Ok(child) => child,
            Err(errno) => {
                let step = if steps.namespaces == 0 { Step::Fork } else { Step::Namespaces };
                return Ok(Err(Failure { step, errno }));
            }
        };
        drop(writer);
        let mut word = Vec::new();
        // The child's end of the pipe is close-on-exec. So the read ends when the exec has succeeded, or when the child
        // exits, after it has written the step that failed. A child that is killed before its exec, by the kernel's OOM
        // killer for example, has written nothing and looks like a success. That is harmless: the caller watches the
        // pidfd and waits for QMP's greeting, and finds at once that the process has ended.
        let read = std::fs::File::from(reader).read_to_end(&mut word);
        let failure = match (read, word.as_slice()) {
            (Ok(_), []) => return Ok(Ok((pid, pidfd))),
            (Ok(_), &[step, a, b, c, d]) => STEPS
                .get(usize::from(step))
                .map(|step| Failure { step: *step, errno: Errno::from_raw_os_error(i32::from_ne_bytes([a, b, c, d])) }),
            _ => None,
        };
        rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()))?;
        failure.map(Err).ok_or_else(|| io::Error::other("the child exited before its exec"))
    }

    fn fork(&self, steps: &Steps, status: &OwnedFd, parent: u32) -> Result<(Pid, OwnedFd), Errno> {
        // Until the child has reset its handlers, a signal to it would run a handler of Kiln's, which writes to pipes
        // that both share.
        let blocked = SignalMask::block_all();
        let mut pidfd: c_int = -1;
        let pid = clone(steps.namespaces, &mut pidfd)?;
        if pid == 0 {
            self.become_program(steps, status.as_raw_fd(), parent);
        }
        drop(blocked);
        let pid = Pid::from_raw(pid).expect("a child's pid is above zero");
        if pidfd >= 0 {
            // SAFETY: the kernel has just opened it for us.
            return Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }));
        }
        // The child is not reaped yet, so its pid can't be reused.
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok((pid, pidfd)),
            Err(errno) => {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                let _ = rustix::io::retry_on_intr(|| {
                    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
                });
                Err(errno)
            }
        }
    }

    /// The child's side of the fork.
    fn become_program(&self, steps: &Steps, status: RawFd, parent: u32) -> ! {
        let Failure { step, errno } = match self.prepare(steps, parent) {
            Err(failure) => failure,
            Ok(()) => self.exec(),
        };
        let [a, b, c, d] = errno.raw_os_error().to_ne_bytes();
        // SAFETY: the descriptor is the write end of the status pipe, which this copy of the process keeps open until
        // it ends.
        let status = unsafe { BorrowedFd::borrow_raw(status) };
        let _ = rustix::io::write(status, &[step as u8, a, b, c, d]);
        // SAFETY: ends this process at once. Nothing of the parent's is flushed or dropped.
        unsafe { libc::_exit(NOT_STARTED) }
    }

    /// The steps of a child between fork and exec. Most steps take a right away that an earlier one still needs, so
    /// their order is fixed.
    ///
    /// - The pid file is written first, while the child has its parent's user and mounts: then it can read its own
    ///   `/proc/self/stat` in any case.
    /// - A user namespace gets its maps before anything else is done in it. Without them the child has no valid user
    ///   and must not mount.
    /// - Mounts need the rights of root, in the host or in the user namespace, so they come before the change of user.
    ///   The directory is entered after them, because the writable mount covers it, and before the change of user, who
    ///   may not reach it by name.
    /// - The kernel clears the signal for the parent's death when the user changes, so it is set after that.
    /// - Landlock and the seccomp filter require that no privileges can be gained any more. Landlock follows all steps
    ///   that open files which its rules do not name, like `/proc/self/stat`.
    /// - The filter is the last step: its broker answers only after the exec, so a call of the child that it stops
    ///   would wait.
    fn prepare(&self, steps: &Steps, parent: u32) -> Result<(), Failure> {
        at(Step::Session, reset_signals(self.owner_loss).and_then(|()| rustix::process::setsid().map(drop)))?;
        at(Step::PidFile, self.pid_file.as_ref().map_or(Ok(()), write_own_stat))?;
        if let Some(maps) = &steps.maps {
            at(Step::Namespaces, write_maps(maps))?;
        }
        if steps.read_only {
            at(Step::Mounts, make_read_only(&self.directory))?;
        }
        at(Step::Directory, rustix::process::chdir(self.directory.as_c_str()))?;
        if let Some((user, groups)) = &steps.user {
            at(Step::User, become_user(*user, groups))?;
        }
        // After the change of user, because that clears the signal.
        at(Step::OwnerLoss, self.tie_to_owner(parent))?;
        for (resource, limit) in &steps.limits {
            at(Step::Limits, limit_to(*resource, *limit))?;
        }
        // A core file of a crashed VMM would hold its guest's memory with all secrets.
        at(Step::Limits, limit_to(Resource::Core, 0))?;
        at(Step::Limits, rustix::thread::set_no_new_privs(true))?;
        let mut mounts = None;
        if let Some(ruleset) = &steps.landlock {
            if steps.own_mounts {
                mounts = Some(at(Step::Landlock, allow_own_mounts(ruleset))?);
            }
            // SAFETY: the call takes only numbers.
            at(Step::Landlock, unsafe { call(libc::SYS_landlock_restrict_self, [fd_arg(ruleset), 0, 0, 0, 0]) })?;
        }
        at(Step::Descriptors, self.arrange_descriptors())?;
        if let Some(mounts) = mounts {
            at(Step::Descriptors, rustix::io::fcntl_setfd(&mounts, FdFlags::empty()))?;
            std::mem::forget(mounts);
        }
        // Last: from here on the child's own `openat` calls would wait for the broker.
        at(Step::Memory, steps.filter.as_ref().map_or(Ok(()), Filter::install))
    }

    fn tie_to_owner(&self, parent: u32) -> Result<(), Errno> {
        if self.owner_loss == OwnerLoss::Kill {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        }
        // Two cases need this check. The parent may have died before the signal was set; then the kernel would never
        // send it. And if the VM may outlive its owner, an owner that died during the start has not handed the VM to
        // anyone yet. In both cases the child must not become a VMM. The parent's pid is read from `/proc`, because in
        // a pid namespace of its own `getppid` returns 0.
        let mut stat = [0; STAT_BYTES_MAX];
        let stat = read_own_stat(&mut stat)?;
        if parent_in(stat) == Some(parent) { Ok(()) } else { Err(Errno::SRCH) }
    }

    fn arrange_descriptors(&self) -> Result<(), Errno> {
        for (number, fd) in (0..).zip(&self.standard) {
            // SAFETY: the call takes only numbers. The descriptor that it replaces is this process's own copy.
            unsafe { call(libc::SYS_dup3, [fd_arg(fd), number, 0, 0, 0]) }?;
        }
        // Nothing is closed here. The status pipe has to stay open until the exec, and so do the descriptors that the
        // remaining steps use. Instead everything above 2 becomes close-on-exec, including descriptors that a library
        // of this process has opened without the flag, and then the flag is removed from the few that the child keeps.
        close_on_exec_from(3)?;
        self.keep.iter().try_for_each(|fd| rustix::io::fcntl_setfd(fd, FdFlags::empty()))
    }

    fn exec(&self) -> Failure {
        SignalMask::unblock_all();
        // SAFETY: the three are strings and tables of strings that end with a null, and live until the exec.
        unsafe {
            libc::execve(self.program.as_ptr(), self.arguments.pointers.as_ptr(), self.environment.pointers.as_ptr());
        }
        Failure { step: Step::Exec, errno: last_errno() }
    }
}

fn at<T>(step: Step, result: Result<T, Errno>) -> Result<T, Failure> {
    result.map_err(|errno| Failure { step, errno })
}

/// Forks. `pidfd` is unchanged if the kernel has no `clone3` or the host forbids it.
fn clone(namespaces: c_int, pidfd: &mut c_int) -> Result<i32, Errno> {
    // SAFETY: all zeros is a valid value of this structure of numbers.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from((libc::CLONE_PIDFD | namespaces).cast_unsigned());
    arguments.pidfd = ptr::from_mut(pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    let size = size_of::<libc::clone_args>() as c_long;
    // SAFETY: without `CLONE_VM` this is a fork: the child gets a copy of all memory and continues here on a copy of
    // this stack. It keeps the rules of this module's docs. `pidfd` is written before the call returns.
    match unsafe { call(libc::SYS_clone3, [ptr::from_mut(&mut arguments) as c_long, size, 0, 0, 0]) } {
        Ok(pid) => Ok(i32::try_from(pid).expect("a pid is an int")),
        Err(Errno::NOSYS) if namespaces == 0 => {
            // SAFETY: as above.
            match unsafe { libc::fork() } {
                -1 => Err(last_errno()),
                pid => Ok(pid),
            }
        }
        Err(errno) => Err(errno),
    }
}

/// Sets all signals to what a new program expects, except two. If the VM outlives its owner, its output pipe has no
/// reader, which must not end the VMM, so `SIGPIPE` is ignored. A file that has reached the size limit must not end it
/// either, so `SIGXFSZ` is ignored.
fn reset_signals(owner_loss: OwnerLoss) -> Result<(), Errno> {
    for signal in 1..=SIGNALS {
        let ignored = signal == libc::SIGXFSZ || signal == libc::SIGPIPE && owner_loss == OwnerLoss::KeepRunning;
        let action = if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: both actions run no code of this process. The kernel and libc refuse signals that can't be set.
        unsafe { libc::signal(signal, action) };
    }
    Ok(())
}

/// Blocks all signals of this thread until dropped.
struct SignalMask(libc::sigset_t);

impl SignalMask {
    fn block_all() -> Self {
        // SAFETY: both sets are this function's, and `sigfillset` makes the first valid before it is used.
        unsafe {
            let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
            Self(before)
        }
    }

    /// For the child: a new program starts with no signal blocked, whatever mask the forking thread had.
    fn unblock_all() {
        // SAFETY: the set is this function's, and `sigemptyset` makes it valid before it is used.
        unsafe {
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::pthread_sigmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        }
    }
}

impl Drop for SignalMask {
    fn drop(&mut self) {
        // SAFETY: the set is the one that `block_all` was given.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, ptr::null_mut()) };
    }
}

fn read_own_stat(line: &mut [u8; STAT_BYTES_MAX]) -> Result<&[u8], Errno> {
    let stat = rustix::fs::open(c"/proc/self/stat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let count = rustix::io::read(&stat, &mut line[..])?;
    Ok(&line[..count])
}

fn write_own_stat(pid_file: &OwnedFd) -> Result<(), Errno> {
    let mut line = [0; STAT_BYTES_MAX];
    let line = read_own_stat(&mut line)?;
    // If the host refused a measure, an earlier child may have left its line here.
    rustix::fs::ftruncate(pid_file, 0)?;
    if rustix::io::pwrite(pid_file, line, 0)? == line.len() { Ok(()) } else { Err(Errno::NOSPC) }
}

/// The parent's pid in a line of proc(5) `stat`: the second field after the name. The name may hold any bytes.
fn parent_in(stat: &[u8]) -> Option<u32> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = stat[end + 1..].split(|byte| *byte == b' ').filter(|field| !field.is_empty());
    std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()
}

/// Maps only this user and this group into the user namespace.
fn write_maps([users, groups]: &[String; 2]) -> Result<(), Errno> {
    // While a process can't be dumped, its files below `/proc` belong to root. Kiln can't be dumped, and the child
    // inherits that.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)?;
    // Dropping a group could give access to a file that denies it to this group. So the kernel requires this before it
    // accepts `gid_map` from an unprivileged user.
    write_file(c"/proc/self/setgroups", b"deny")?;
    write_file(c"/proc/self/uid_map", users.as_bytes())?;
    write_file(c"/proc/self/gid_map", groups.as_bytes())
}

fn write_file(path: &CStr, bytes: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, bytes).map(drop)
}

/// `struct landlock_path_beneath_attr` of linux/landlock.h.
#[repr(C, packed)]
struct PathBeneath {
    access: u64,
    parent: c_int,
}

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Makes every mount read-only for this process, except a new mount of the directory itself.
fn make_read_only(directory: &CStr) -> Result<(), Errno> {
    use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
    let writable = open_tree(CWD, directory, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    // Mounts that are made here must not appear in the host's namespace.
    let attributes = MountAttributes {
        set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID,
        clear: 0,
        propagation: libc::MS_PRIVATE,
        user_namespace: 0,
    };
    let size = size_of::<MountAttributes>() as c_long;
    let root = c"/".as_ptr() as c_long;
    let flags = libc::AT_RECURSIVE.into();
    // SAFETY: the path and the structure are valid during the call, which only reads them.
    unsafe {
        call(
            libc::SYS_mount_setattr,
            [libc::AT_FDCWD.into(), root, flags, ptr::from_ref(&attributes) as c_long, size],
        )?;
    }
    move_mount(&writable, c"", CWD, directory, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Lets a ruleset allow the table of this process's mounts. A rule is bound to an inode, and that of the table exists as
/// long as a descriptor of it: so the child keeps the one that is returned, which can't be read or written.
fn allow_own_mounts(ruleset: &OwnedFd) -> Result<OwnedFd, Errno> {
    let mounts = rustix::fs::open(c"/proc/self/mounts", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let rule = PathBeneath { access: LANDLOCK_ACCESS_FS_READ_FILE, parent: mounts.as_raw_fd() };
    let rule = ptr::from_ref(&rule) as c_long;
    // SAFETY: the kernel reads the structure during the call.
    unsafe { call(libc::SYS_landlock_add_rule, [fd_arg(ruleset), LANDLOCK_RULE_PATH_BENEATH, rule, 0, 0]) }?;
    Ok(mounts)
}

/// Gives up root. The kernel then clears all capabilities.
fn become_user(user: u32, groups: &[u32]) -> Result<(), Errno> {
    let (user, count) = (c_long::from(user), groups.len() as c_long);
    // SAFETY: the table of groups is valid during the call; the others take only numbers. They change only this thread,
    // which is the whole process.
    unsafe {
        call(libc::SYS_setgroups, [count, groups.as_ptr() as c_long, 0, 0, 0])?;
        call(libc::SYS_setresgid, [user, user, user, 0, 0])?;
        call(libc::SYS_setresuid, [user, user, user, 0, 0])?;
    }
    Ok(())
}

/// Limits a resource, never above this process's own limit.
fn limit_to(resource: Resource, limit: u64) -> Result<(), Errno> {
    let limit = rustix::process::getrlimit(resource).maximum.map_or(limit, |maximum| maximum.min(limit));
    rustix::process::setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })
}

fn close_on_exec_from(first: c_int) -> Result<(), Errno> {
    let flags = c_long::from(libc::CLOSE_RANGE_CLOEXEC.cast_signed());
    // SAFETY: the call takes only numbers.
    match unsafe { call(libc::SYS_close_range, [first.into(), u32::MAX.into(), flags, 0, 0]) } {
        // Before Linux 5.11.
        Err(Errno::NOSYS | Errno::INVAL) => {
            let open = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS_MAX);
            for number in first..c_int::try_from(open.min(DESCRIPTORS_MAX)).unwrap_or(c_int::MAX) {
                // SAFETY: sets a flag of a descriptor, if it is one.
                unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
            Ok(())
        }
        other => other.map(drop),
    }
}

fn fd_arg(fd: &OwnedFd) -> c_long {
    fd.as_raw_fd().into()
}

/// A raw system call, without what libc does around it.
///
/// # Safety
/// The call's own requirements for its arguments.
unsafe fn call(number: c_long, [a, b, c, d, e]: [c_long; 5]) -> Result<c_long, Errno> {
    // SAFETY: the caller keeps the requirements.
    match unsafe { libc::syscall(number, a, b, c, d, e) } {
        -1 => Err(last_errno()),
        result => Ok(result),
    }
}

fn last_errno() -> Errno {
    // SAFETY: points to this thread's errno. In a child it points to the copy.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        for (line, parent) in [
            ("7 (qemu) S 42 7 7 0", Some(42)),
            ("7 (a) S 1) R 43 7", Some(43)),
            ("7 (x) S", None),
            ("7 (x) S y", None),
            ("", None),
        ] {
            assert_eq!(parent_in(line.as_bytes()), parent, "{line}");
        }
    }

    #[test]
    fn every_step_has_its_number() {
        for (number, step) in STEPS.into_iter().enumerate() {
            assert_eq!(step as usize, number, "{step:?}");
        }
    }

    #[test]
    fn each_failed_step_has_its_text() {
        let failures = STEPS.map(|step| Failure { step, errno: Errno::PERM }.to_string());
        insta::assert_snapshot!(failures.join("\n"));
    }
}

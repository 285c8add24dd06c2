//! Programs of the host that Kiln starts, but for VMMs, which `kiln_engine::confine` starts inside a border.
//!
//! What a process has open without close-on-exec, and all of its environment, goes to each program that it starts. Kiln's
//! caller may hold locks, sockets and tokens that are no business of `apt-get` or of a device backend: a backend that
//! keeps a descriptor keeps the caller's lock or pipe open for as long as it lives. So each program is started through
//! [`command`], which says what it gets of both; `cargo xtask tidy` refuses any other way.
//!
//! | program | environment |
//! |---|---|
//! | `qemu-system-x86_64 --version` and the like | `PATH` |
//! | `dpkg-deb` | `PATH` |
//! | `apt-get`, `apt-cache` | `PATH`, and what says how this host reaches its mirror, see [`APT`] |
//! | a backend of `kiln vhost check --spawn` and its kin | the caller's, whole: the user wrote that command line |
//! | `kiln` itself, in `kiln bench` | the caller's, whole: it is the same program |
//! | QEMU alone and `runsc`, in `kiln bench` | `PATH` |
//!
//! No program gets a descriptor beside stdin, stdout and stderr, unless [`keep`] names it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// What of the caller's environment a program gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// `PATH`, and the variables of these names that are set.
    Named(&'static [&'static str]),
    /// All of it: the program is the user's own choice, and `RUST_LOG` or `LD_LIBRARY_PATH` are meant for it.
    Callers,
}

/// `PATH` alone.
pub const PATH_ONLY: Environment = Environment::Named(&[]);

/// What apt reads: where its configuration and its temporary files are, and the way to its mirror (apt.conf(5) and
/// apt-transport-http(1)). Its helpers look for the user's files below `HOME`.
pub const APT: Environment =
    Environment::Named(&["APT_CONFIG", "HOME", "TMPDIR", "http_proxy", "https_proxy", "all_proxy", "no_proxy"]);

/// Where programs are if the caller does not say.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Descriptors that are looked at on a kernel that can't close a range of them.
const DESCRIPTORS_MAX: RawFd = 1 << 16;

/// A program to start, with this environment and no descriptors but those that the caller sets for stdin, stdout and
/// stderr.
pub fn command(program: impl AsRef<OsStr>, environment: Environment) -> Command {
    let mut command = Command::new(program);
    if let Environment::Named(names) = environment {
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| PATH_DEFAULT.into()));
        command.envs(names.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    }
    #[expect(unsafe_code, reason = "code that runs between fork and exec")]
    // SAFETY: the closure makes system calls alone, which neither allocate nor take a lock.
    unsafe {
        command.pre_exec(|| close_on_exec_from(libc::STDERR_FILENO + 1));
    }
    command
}

/// Lets a program have a descriptor too, under the same number. It stays close-on-exec in this process, and must be open
/// when the program is started.
pub fn keep(command: &mut Command, descriptor: BorrowedFd<'_>) {
    let number = descriptor.as_raw_fd();
    #[expect(unsafe_code, reason = "code that runs between fork and exec")]
    // SAFETY: as in `command`, whose closure runs before this one.
    unsafe {
        command.pre_exec(move || set_flags(number, 0));
    }
}

/// Marks all descriptors from `first` on, so that the next exec closes them. Std has a pipe open to learn of a failed exec,
/// so they are not closed at once.
fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    #[expect(unsafe_code, reason = "std has no such call")]
    // SAFETY: the call takes numbers alone and changes flags of descriptors.
    let marked = unsafe {
        libc::syscall(libc::SYS_close_range, first.cast_unsigned(), u32::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed())
    };
    if marked == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // Before Linux 5.11, or under a filter that does not know the call.
    if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL | libc::EPERM)) {
        return Err(error);
    }
    for number in first..DESCRIPTORS_MAX {
        // One that is not open has no flags.
        let _ = set_flags(number, libc::FD_CLOEXEC);
    }
    Ok(())
}

fn set_flags(number: RawFd, flags: libc::c_int) -> io::Result<()> {
    #[expect(unsafe_code, reason = "descriptors of which only the number is known")]
    // SAFETY: the call sets a flag of a descriptor, if it is one.
    match unsafe { libc::fcntl(number, libc::F_SETFD, flags) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

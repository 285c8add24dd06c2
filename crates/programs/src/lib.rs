//! Starts programs of the host, except VMMs and e2fsprogs, which `kiln_engine::confine` starts inside a border.
//!
//! A program inherits the whole environment of its parent, and all descriptors that are not close-on-exec. Kiln's
//! caller may hold locks, sockets and tokens that `apt-get` or a device backend must not get: a backend that inherits a
//! descriptor keeps the caller's lock or pipe open until it exits. So each program is started through [`command`],
//! which decides what the program inherits. `cargo xtask tidy` refuses any other way.
//!
//! | program | environment |
//! |---|---|
//! | `qemu-system-x86_64 --version` and the like | `PATH` |
//! | `dpkg-deb`, `tar`, and `make` and `gcc` of `kiln kernel build` | `PATH` |
//! | `apt-get`, `apt-cache`, `mmdebstrap` | `PATH`, and the variables for this host's mirror, see [`APT`] |
//! | a backend of `--spawn`, such as that of `kiln vhost check` | the caller's: the user wrote that command line |
//! | `docker-credential-NAME` | the caller's: the user's configuration of docker names it |
//! | `kiln` itself, in `kiln bench` | the caller's: it is the same program |
//! | QEMU alone, `runsc`, `mkfs.erofs`, `tar` and `ip`, in `kiln bench` | `PATH` |
//!
//! A program inherits only stdin, stdout and stderr, and the descriptors given to [`keep`].

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The part of the caller's environment that a program inherits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// `PATH`, and the variables of these names that are set.
    Named(&'static [&'static str]),
    /// All variables: the user chose the program, and `RUST_LOG` or `LD_LIBRARY_PATH` are meant for it.
    Callers,
}

/// `PATH` alone.
pub const PATH_ONLY: Environment = Environment::Named(&[]);

/// The variables that apt reads: the paths of its configuration and temporary files, and the proxies to its mirror
/// (apt.conf(5) and apt-transport-http(1)). Its helpers look for the user's files below `HOME`.
pub const APT: Environment =
    Environment::Named(&["APT_CONFIG", "HOME", "TMPDIR", "http_proxy", "https_proxy", "all_proxy", "no_proxy"]);

/// `PATH` if the caller has not set it.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Descriptors below this are marked one by one, on a kernel that can't mark a range.
const DESCRIPTORS_MAX: RawFd = 1 << 16;

/// A command that starts `program` with this environment. It inherits no descriptors except stdin, stdout and stderr.
pub fn command(program: impl AsRef<OsStr>, environment: Environment) -> Command {
    let mut command = Command::new(program);
    if let Environment::Named(names) = environment {
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| PATH_DEFAULT.into()));
        command.envs(names.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    }
    #[expect(unsafe_code, reason = "code that runs between fork and exec")]
    // SAFETY: the closure only makes system calls, which do not allocate and do not take a lock.
    unsafe {
        command.pre_exec(|| close_on_exec_from(libc::STDERR_FILENO + 1));
    }
    command
}

/// Lets a program inherit a descriptor, under the same number. The descriptor stays close-on-exec in this process. It
/// must be open when the program is started.
pub fn keep(command: &mut Command, descriptor: BorrowedFd<'_>) {
    let number = descriptor.as_raw_fd();
    #[expect(unsafe_code, reason = "code that runs between fork and exec")]
    // SAFETY: see `command`. Its closure runs before this one, so this one has the last word on the flag.
    unsafe {
        command.pre_exec(move || set_flags(number, 0));
    }
}

/// Marks all descriptors from `first` on as close-on-exec. They are not closed now, because std has a pipe among them,
/// through which it reports a failed exec.
fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    #[expect(unsafe_code, reason = "std has no such call")]
    // SAFETY: the call takes only numbers, and changes only flags of descriptors.
    let marked = unsafe {
        libc::syscall(libc::SYS_close_range, first.cast_unsigned(), u32::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed())
    };
    if marked == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // The flag is missing before Linux 5.11, and a seccomp filter may refuse the call.
    if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL | libc::EPERM)) {
        return Err(error);
    }
    for number in first..DESCRIPTORS_MAX {
        // Fails for numbers without an open descriptor.
        let _ = set_flags(number, libc::FD_CLOEXEC);
    }
    Ok(())
}

fn set_flags(number: RawFd, flags: libc::c_int) -> io::Result<()> {
    #[expect(unsafe_code, reason = "descriptors are known only by their numbers")]
    // SAFETY: the call sets a flag of a descriptor, and fails if the number is not an open descriptor.
    match unsafe { libc::fcntl(number, libc::F_SETFD, flags) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

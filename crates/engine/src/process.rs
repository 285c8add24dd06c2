//! VMM processes that never outlive the process that started them.
//!
//! ```text
//!   spawn(Program) ──▶ spawner thread ──fork──▶ child: setsid, PDEATHSIG, keep its descriptors, exec
//!        ◀── Child { pid, pidfd } ──┘
//! ```
//! The kernel sends the parent-death signal when the *thread* that forked ends, so all forks come from one thread that
//! lives as long as the process. A child is its own session, so a Ctrl-C at the terminal reaches Kiln alone.
#![expect(
    unsafe_code,
    reason = "what happens between fork and exec has no safe interface, nor has waiting for a pidfd"
)]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use camino::Utf8PathBuf;
use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::vm::VmmStatus;

/// Forks that may wait for the spawner thread.
const SPAWN_QUEUE: usize = 16;
/// From the request to the exec, behind others; each takes some milliseconds.
const SPAWN_DEADLINE: Duration = Duration::from_secs(30);

/// A program to start.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) path: Utf8PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// Descriptors that the child keeps, under the same numbers. They stay close-on-exec in this process.
    pub(crate) inherit: Vec<OwnedFd>,
    pub(crate) stdout: Stdout,
}

/// What becomes of a program's standard output. Its standard error is always a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdout {
    /// Nobody reads it.
    Null,
    /// [`Child::take_stdout`] reads it.
    Piped,
}

/// A child process. Dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Child {
    pid: u32,
    pidfd: Arc<OwnedFd>,
    status: Option<VmmStatus>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// Sends signals to a child; does nothing once the child was reaped.
#[derive(Debug, Clone)]
pub(crate) struct Killer(Arc<OwnedFd>);

/// Starts a program in a session of its own.
pub(crate) async fn spawn(program: Program) -> io::Result<Child> {
    let (reply, answer) = oneshot::channel();
    let gone = || io::Error::other("the thread that starts processes has ended");
    let spawner = spawner()?;
    let exchange = async {
        spawner.send((program, reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    };
    // Cut short, the child is killed as soon as the spawner finds that nobody takes it.
    tokio::time::timeout(SPAWN_DEADLINE, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

type Request = (Program, oneshot::Sender<io::Result<Child>>);

fn spawner() -> io::Result<&'static mpsc::Sender<Request>> {
    static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    if let Some(spawner) = SPAWNER.get() {
        return Ok(spawner);
    }
    let (sender, mut requests) = mpsc::channel::<Request>(SPAWN_QUEUE);
    std::thread::Builder::new().name("kiln-spawner".into()).spawn(move || {
        while let Some((program, reply)) = requests.blocking_recv() {
            // When nobody waits any more, the answer comes back here and its drop kills the child.
            drop(reply.send(fork_and_exec(program)));
        }
    })?;
    // If another thread was faster, our sender is dropped and our thread ends without having forked.
    Ok(SPAWNER.get_or_init(|| sender))
}

fn fork_and_exec(program: Program) -> io::Result<Child> {
    let Program { path, arguments, inherit, stdout } = program;
    let mut command = Command::new(&path);
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::piped());
    command.stdout(match stdout {
        Stdout::Null => Stdio::null(),
        Stdout::Piped => Stdio::piped(),
    });
    let parent = std::process::id();
    // SAFETY: the closure runs between fork and exec and makes system calls alone: it neither allocates nor locks.
    // It owns `inherit`, so those descriptors are open when the fork happens.
    unsafe {
        command.pre_exec(move || become_child(parent, &inherit));
    }
    let mut child = command.spawn()?;
    // Closes our copies of what the child inherited.
    drop(command);
    let pid = child.id();
    let (stdout, stderr) = (child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from));
    let pid_checked = Pid::from_raw(pid.cast_signed()).expect("a child's pid is above zero");
    match rustix::process::pidfd_open(pid_checked, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Child { pid, pidfd: Arc::new(pidfd), status: None, stdout, stderr }),
        Err(error) => {
            child.kill()?;
            child.wait()?;
            Err(error.into())
        }
    }
}

fn become_child(parent: u32, keep: &[OwnedFd]) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have died before the line above took effect; then nobody would ever send the signal.
    if rustix::process::getppid().is_none_or(|pid| pid.as_raw_nonzero().get().cast_unsigned() != parent) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // A crashed VMM would leave its guest's memory, secrets and all, in a core file.
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    for fd in keep {
        rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
    }
    Ok(())
}

impl Child {
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn killer(&self) -> Killer {
        Killer(Arc::clone(&self.pidfd))
    }

    pub(crate) fn take_stdout(&mut self) -> Option<OwnedFd> {
        self.stdout.take()
    }

    pub(crate) fn take_stderr(&mut self) -> Option<OwnedFd> {
        self.stderr.take()
    }

    /// A descriptor that becomes readable when the child has ended.
    pub(crate) fn watch(&self) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
        // SAFETY: the `Arc` gives the same descriptor every time, and keeps it open for as long as it is registered.
        Ok(unsafe { AsyncFd::register_with_interest(Arc::clone(&self.pidfd), Interest::READABLE) }?)
    }

    /// Reaps the child if it has ended.
    pub(crate) fn try_reap(&mut self) -> io::Result<Option<VmmStatus>> {
        if self.status.is_none() {
            self.status = reap(&self.pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)?;
        }
        Ok(self.status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.killer().signal(Signal::KILL);
            // A killed process ends as soon as it is scheduled, so this wait is short.
            if let Err(error) = reap(&self.pidfd, WaitIdOptions::EXITED) {
                tracing::warn!(pid = self.pid, %error, "failed to reap a killed process");
            }
        }
    }
}

impl Killer {
    pub(crate) fn signal(&self, signal: Signal) {
        match rustix::process::pidfd_send_signal(&*self.0, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => tracing::warn!(%error, ?signal, "failed to signal a process"),
        }
    }

    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }
}

fn reap(pidfd: &OwnedFd, options: WaitIdOptions) -> io::Result<Option<VmmStatus>> {
    let status = rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options))?;
    Ok(status.map(|status| match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => VmmStatus::Code(code),
        (None, Some(signal)) => VmmStatus::Signal(signal),
        (None, None) => VmmStatus::Signal(0),
    }))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    fn shell(script: &str) -> Program {
        let arguments = vec!["-c".into(), script.into()];
        Program { path: "/bin/sh".into(), arguments, inherit: Vec::new(), stdout: Stdout::Null }
    }

    async fn end(child: &mut Child) -> VmmStatus {
        let watch = child.watch().expect("a pidfd can be watched");
        let ready = tokio::time::timeout(Duration::from_secs(10), watch.readable()).await;
        drop(ready.expect("ends in time").expect("readable"));
        child.try_reap().expect("reaped").expect("has ended")
    }

    #[tokio::test]
    async fn exit_codes_and_signals_come_back() {
        let mut child = spawn(shell("exit 7")).await.expect("starts");
        assert_eq!(end(&mut child).await, VmmStatus::Code(7));
        let mut child = spawn(shell("kill -9 $$")).await.expect("starts");
        assert_eq!(end(&mut child).await, VmmStatus::Signal(9));
    }

    #[tokio::test]
    async fn a_missing_program_is_an_error_of_its_own() {
        let program = Program { path: "/nowhere/vmm".into(), ..shell("") };
        let error = spawn(program).await.expect_err("not there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_dropped_child_is_gone() {
        let child = spawn(shell("sleep 1000")).await.expect("starts");
        let path = format!("/proc/{}", child.pid());
        assert!(std::path::Path::new(&path).exists());
        drop(child);
        assert!(!std::path::Path::new(&path).exists());
    }

    #[tokio::test]
    async fn a_child_has_its_own_session_and_only_the_descriptors_given_to_it() {
        use std::io::Read as _;
        let given = fs_err::File::open("/dev/null").expect("opens");
        let hidden = fs_err::File::open("/dev/null").expect("opens");
        let (kept, not_kept) = (given.as_raw_fd(), hidden.as_raw_fd());
        let script = format!(
            "test -e /proc/$$/fd/{kept} && test ! -e /proc/$$/fd/{not_kept} && cut -d' ' -f6 /proc/$$/stat >&2"
        );
        let inherit = vec![OwnedFd::from(given.into_file())];
        let mut child = spawn(Program { inherit, ..shell(&script) }).await.expect("starts");
        assert_eq!(end(&mut child).await, VmmStatus::Code(0));
        let mut session = String::new();
        let stderr = child.take_stderr().expect("piped");
        std::fs::File::from(stderr).read_to_string(&mut session).expect("reads");
        assert_eq!(session.trim(), child.pid().to_string());
    }
}

//! Starts and ends VMM processes. They outlive the process that started them only if their spec requires that.
//!
//! ```text
//!   spawn(Program) ──▶ spawner thread ──fork──▶ child: see `confine::exec`
//!        ◀── Child { pid, pidfd } ──┘
//! ```
//! A VMM has to die with Kiln, also if Kiln is killed by SIGKILL and can't clean up. `PR_SET_PDEATHSIG` does that, but
//! the kernel sends the signal when the *thread* that forked ends, not when its process does. A thread of a pool ends
//! after some idle seconds, and would take running VMs with it. So one thread forks all children and lives as long as
//! the process.
//!
//! Each child is a session of its own, so a Ctrl-C at the terminal is sent to Kiln and not to the VMMs. Kiln then ends
//! them in order.
//!
//! A child is signalled and awaited through its pidfd, never by its pid. A pid can be reused as soon as the process was
//! reaped, and a signal to it would then reach an unrelated process. A pidfd stays bound to its process: after the
//! process was reaped, a signal fails with `ESRCH`.
#![expect(unsafe_code, reason = "waiting for a pidfd has no safe interface")]

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use camino::Utf8PathBuf;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitId, WaitIdOptions};
use serde::Serialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::blocking::blocking;
use crate::confine::{Border, Broker, Cgroup, Confinement, Entry, Launch, Measure, MeasureState, Request};
use crate::spec::OwnerLoss;
use crate::vm_dir::orphan::KILL_DEADLINE;
use crate::vm_dir::{Orphan, orphan};

/// Requests that may wait for the spawner thread.
const SPAWN_QUEUE: usize = 16;
/// From the request to the exec, with the requests before it. Each takes some milliseconds.
const SPAWN_DEADLINE: Duration = Duration::from_secs(30);
/// The `PATH` of a child. The caller's `PATH` may contain directories of other users.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to start.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) path: Utf8PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// The whole environment: the child inherits no variable of this process. See [`own_environment`].
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// The working directory. A program may search it for files that no argument names.
    pub(crate) directory: Utf8PathBuf,
    /// Descriptors that the child keeps, with the same numbers. In this process they stay close-on-exec.
    pub(crate) inherit: Vec<OwnedFd>,
    pub(crate) stdout: Sink,
    pub(crate) stderr: Sink,
    /// The file into which the child writes its pid and start time, see [`Orphan::find`].
    pub(crate) pid_file: Option<OwnedFd>,
    pub(crate) owner_loss: OwnerLoss,
    pub(crate) border: Border,
}

/// The environment of a program that must inherit nothing of Kiln's caller, such as a token or `LD_PRELOAD`.
pub(crate) fn own_environment() -> Vec<(OsString, OsString)> {
    vec![("PATH".into(), PATH.into())]
}

/// The target of a program's output.
#[derive(Debug)]
pub(crate) enum Sink {
    /// `/dev/null`.
    Null,
    /// A new pipe, for standard error only. [`Child::take_stderr`] returns its reader.
    Pipe,
    /// An open file or pipe.
    To(OwnedFd),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VmmStatus {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// It was adopted. The kernel reports an exit status only to the parent.
    Unknown,
}

impl fmt::Display for VmmStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("an unknown status"),
        }
    }
}

/// A child process, or an adopted one. Dropping it kills it, and reaps it if it is a child.
#[derive(Debug)]
pub(crate) struct Child {
    pid: u32,
    pidfd: Arc<OwnedFd>,
    kin: Kin,
    status: Option<VmmStatus>,
    stderr: Option<OwnedFd>,
    confinement: Confinement,
    /// The move into its control group, while that is not finished.
    entry: Option<Entry>,
    // Dropped after the process has ended, because a control group with a process in it can't be removed.
    cgroup: Option<Cgroup>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kin {
    Own,
    /// A child of another process. Init reaps it and gets its status.
    Adopted,
}

/// Sends signals to a child. Does nothing after the child was reaped.
#[derive(Debug, Clone)]
pub(crate) struct Killer(Arc<OwnedFd>);

/// Lets a process write to files of this size. Only root can raise a limit, so the limit is not touched if it suffices.
///
/// # Errors
/// The limit is too low and can't be raised; or the process does not exist.
pub(crate) fn allow_file_size(pid: u32, bytes: u64) -> io::Result<()> {
    let limits = fs_err::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max file size"));
    // A word that is not a number is `unlimited`.
    let now = line.and_then(|line| line.split_ascii_whitespace().next()).map(|soft| soft.parse().unwrap_or(u64::MAX));
    if now.is_some_and(|now| now >= bytes) {
        return Ok(());
    }
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let limit = rustix::process::Rlimit { current: Some(bytes), maximum: Some(bytes) };
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Fsize, limit)?;
    Ok(())
}

/// Starts a program in a session of its own.
///
/// Safe to cancel: the start continues on its thread, which then kills and reaps the child. The runtime waits for that
/// thread at its end, so the child of a cancelled start does not outlive this process.
pub(crate) async fn spawn(program: Program) -> io::Result<Child> {
    blocking(move || {
        let (reply, answer) = mpsc::channel();
        let gone = || io::Error::other("the thread that starts processes has ended");
        spawner()?.send((program, reply)).map_err(|_| gone())?;
        match answer.recv_timeout(SPAWN_DEADLINE) {
            Ok(started) => started,
            // `answer` is dropped here, so the spawner's reply fails, and its drop kills the child.
            Err(RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    })
    .await
}

type Order = (Program, mpsc::Sender<io::Result<Child>>);

fn spawner() -> io::Result<&'static mpsc::SyncSender<Order>> {
    static SPAWNER: OnceLock<mpsc::SyncSender<Order>> = OnceLock::new();
    if let Some(spawner) = SPAWNER.get() {
        return Ok(spawner);
    }
    let (sender, requests) = mpsc::sync_channel::<Order>(SPAWN_QUEUE);
    std::thread::Builder::new().name("kiln-spawner".into()).spawn(move || {
        while let Ok((program, reply)) = requests.recv() {
            // If the caller is gone, `send` returns the reply, and its drop kills the child.
            drop(reply.send(fork_and_exec(program)));
        }
    })?;
    // If another thread was faster, our sender is dropped, and our thread ends. It has forked nothing, so its end sends
    // no signal.
    Ok(SPAWNER.get_or_init(|| sender))
}

fn fork_and_exec(program: Program) -> io::Result<Child> {
    let Program { path, arguments, environment, directory, inherit, stdout, stderr, pid_file, owner_loss, border } =
        program;
    let (stdout, _) = stdout.open()?;
    let (stderr, words) = stderr.open()?;
    let mut border = border;
    let request = Request {
        program: &path,
        arguments,
        environment,
        directory: &directory,
        stdout,
        stderr,
        keep: inherit,
        pid_file,
        owner_loss,
    };
    let launch = Launch::new(request)?;
    let (pid, pidfd) = loop {
        match launch.start(&border.steps)? {
            Ok(child) => break child,
            // A host may refuse a measure in the child although a check outside of it succeeded. The measure is left
            // out, the reason is recorded, and the start is tried again.
            Err(failure) if border.give_up(failure) => tracing::debug!(%failure, "a measure of confinement is refused"),
            Err(failure) => return Err(failure.into()),
        }
    };
    let pid = pid.as_raw_nonzero().get().cast_unsigned();
    let Border { confinement, broker, cgroup, entrances, .. } = border;
    let (pidfd, kin) = (Arc::new(pidfd), Kin::Own);
    let mut child = Child { pid, pidfd, kin, status: None, stderr: words, confinement, entry: None, cgroup };
    if !entrances.is_empty() {
        child.entry = Some(Entry::begin(entrances, pid)?);
    }
    broker.map_or(Ok(()), Broker::serve)?;
    Ok(child)
}

impl Sink {
    /// The child's end, and for a pipe also this process's end.
    fn open(self) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
        match self {
            Self::Null => {
                let null = rustix::fs::open(c"/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
                Ok((null, None))
            }
            Self::Pipe => {
                let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
                Ok((writer, Some(reader)))
            }
            Self::To(fd) => Ok((fd, None)),
        }
    }
}

impl Child {
    /// Takes over a process that another process started, and its control group.
    pub(crate) fn adopt(orphan: Orphan, cgroup: Option<Cgroup>) -> Self {
        let Orphan { pid, pidfd } = orphan;
        let confinement = Confinement::default();
        let (pidfd, kin) = (Arc::new(pidfd), Kin::Adopted);
        Self { pid, pidfd, kin, status: None, stderr: None, confinement, entry: None, cgroup }
    }

    /// Kills a child. An adopted process keeps running.
    pub(crate) fn give_up(mut self) {
        if self.kin == Kin::Adopted {
            self.status = Some(VmmStatus::Unknown);
            if let Some(cgroup) = self.cgroup.take() {
                cgroup.leave();
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the child is in its control group, or the host has refused that. Blocks up to some 10 ms after the
    /// start.
    pub(crate) fn settle(&mut self) {
        if let Some(Err(error)) = self.entry.take().map(Entry::finish) {
            let reason = format!("the child could not enter its cgroup: {error}");
            self.confinement.set(Measure::Cgroup, MeasureState::refused(reason));
        }
    }

    /// The measures that confine it. The state of its control group is final once it has [settled](Self::settle).
    pub(crate) fn confinement(&self) -> &Confinement {
        &self.confinement
    }

    pub(crate) fn killer(&self) -> Killer {
        Killer(Arc::clone(&self.pidfd))
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
            self.settle();
            self.status = match self.kin {
                Kin::Own => reap(&self.pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)?,
                Kin::Adopted => orphan::ends_within(&self.pidfd, Duration::ZERO)?.then_some(VmmStatus::Unknown),
            };
        }
        Ok(self.status)
    }

    /// Waits for the end of a killed process. It ends as soon as the kernel schedules it.
    fn reap_killed(&self) -> io::Result<()> {
        match self.kin {
            Kin::Own => reap(&self.pidfd, WaitIdOptions::EXITED).map(|_| ()),
            Kin::Adopted => match orphan::ends_within(&self.pidfd, KILL_DEADLINE)? {
                true => Ok(()),
                false => Err(io::ErrorKind::TimedOut.into()),
            },
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.killer().signal(Signal::KILL);
            self.settle();
            if let Err(error) = self.reap_killed() {
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

    /// Whether the process has ended. `false` if that can't be found out.
    pub(crate) fn has_ended(&self) -> bool {
        orphan::ends_within(&self.0, Duration::ZERO).unwrap_or(false)
    }

    /// Waits for the end of a killed process. Blocks.
    pub(crate) fn wait(&self) -> io::Result<()> {
        if orphan::ends_within(&self.0, KILL_DEADLINE)? { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
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
    use std::process::{Command, Stdio};

    use super::*;

    fn shell(script: &str) -> Program {
        let arguments = vec!["-c".into(), script.into()];
        Program {
            path: "/bin/sh".into(),
            arguments,
            environment: own_environment(),
            directory: "/".into(),
            inherit: Vec::new(),
            stdout: Sink::Null,
            stderr: Sink::Pipe,
            pid_file: None,
            owner_loss: OwnerLoss::Kill,
            border: Border::default(),
        }
    }

    async fn end(child: &mut Child) -> VmmStatus {
        let watch = child.watch().expect("a pidfd can be watched");
        let ready = tokio::time::timeout(Duration::from_secs(10), watch.readable()).await;
        drop(ready.expect("ends in time").expect("readable"));
        child.try_reap().expect("reaped").expect("has ended")
    }

    #[tokio::test]
    async fn exit_codes_and_signals_are_reported() {
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
    async fn a_dropped_child_is_killed_and_reaped() {
        let child = spawn(shell("exec sleep 1000")).await.expect("starts");
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

    #[tokio::test]
    async fn a_child_inherits_no_descriptors_environment_or_directory() {
        use std::io::Read as _;
        let leaked = fs_err::File::open("/dev/null").expect("opens");
        // A child inherits these unless that is prevented.
        let dup = |number| rustix::io::dup(&leaked).unwrap_or_else(|error| panic!("the {number}th: {error}"));
        let _leaked = (3..300).map(dup).collect::<Vec<_>>();
        assert!(std::env::vars_os().count() > 1, "there is something to inherit");
        let script = "exec >&2; ls /proc/$$/fd; pwd; cat /proc/$$/environ";
        let mut child = spawn(shell(script)).await.expect("starts");
        assert_eq!(end(&mut child).await, VmmStatus::Code(0));
        let mut found = String::new();
        std::fs::File::from(child.take_stderr().expect("piped")).read_to_string(&mut found).expect("reads");
        assert_eq!(found, format!("0\n1\n2\n/\nPATH={PATH}\0"));
    }

    #[tokio::test]
    #[ignore = "the other half of the test below, started by it in a process of its own"]
    async fn start_two_children_and_wait_to_be_killed() {
        use std::io::Write as _;
        let mut started = Vec::new();
        for owner_loss in [OwnerLoss::Kill, OwnerLoss::KeepRunning] {
            started.push(spawn(Program { owner_loss, ..shell("exec sleep 1000") }).await.expect("starts"));
        }
        println!("\nready {} {}", started[0].pid(), started[1].pid());
        io::stdout().flush().expect("written");
        std::future::pending::<()>().await;
    }

    #[tokio::test]
    async fn a_child_outlives_its_owner_only_if_its_spec_requires_it() {
        use std::io::BufRead as _;
        let mut owner = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "process::tests::start_two_children_and_wait_to_be_killed", "--nocapture", "--ignored"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = io::BufReader::new(owner.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let ready = lines.find_map(|line| line.strip_prefix("ready ").map(str::to_owned)).expect("started both");
        let directory = tempfile::tempdir().expect("a directory");
        let path = camino::Utf8Path::from_path(directory.path()).expect("UTF-8");
        let find = |pid: &str| {
            fs_err::copy(format!("/proc/{pid}/stat"), path.join(orphan::PID_FILE)).expect("runs");
            Orphan::named(path).expect("looks").expect("runs")
        };
        let [killed, kept] = [0, 1].map(|index| find(ready.split(' ').nth(index).expect("two pids")));
        owner.kill().expect("SIGKILL");
        owner.wait().expect("ends");
        assert!(orphan::ends_within(&killed.pidfd, Duration::from_secs(10)).expect("waits"));
        assert!(!orphan::ends_within(&kept.pidfd, Duration::ZERO).expect("looks"));
        Child::adopt(kept, None).give_up();
        let kept = find(ready.split(' ').nth(1).expect("two pids"));
        let mut adopted = Child::adopt(kept, None);
        assert_eq!(adopted.try_reap().expect("looks"), None);
        adopted.killer().kill();
        assert_eq!(end(&mut adopted).await, VmmStatus::Unknown);
    }

    #[tokio::test]
    async fn a_child_writes_its_own_pid_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = camino::Utf8Path::from_path(directory.path()).expect("UTF-8");
        let pid_file = fs_err::File::create(path.join(orphan::PID_FILE)).expect("made").into_file().into();
        let child = spawn(Program { pid_file: Some(pid_file), ..shell("exec sleep 1000") }).await.expect("starts");
        assert_eq!(Orphan::named(path).expect("looks").expect("runs").pid, child.pid());
    }
}

//! Runs a program of e2fsprogs inside the border that confines VMMs: it parses what a guest has written.
//!
//! ```text
//!   program, one file ──▶ Border: Landlock, namespaces, limits ──▶ confine::exec ──▶ exit code, the start of its output
//!                                                     └── deadline, memory: killed
//! ```
//! The program can read the system's libraries and its own configuration, and can write to the one file. It has no
//! network, sees no other process, can't make the file larger, and is killed with this process. A measure that this host
//! refuses is left out, as for a VMM. It keeps this process's user, because the file belongs to that.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Signal, WaitOptions};

use crate::confine::{Border, Launch, Measure, Needs, Policy, Request};
use crate::image::CommandError;
use crate::process::own_environment;
use crate::spec::OwnerLoss;

/// What is kept of each of a program's outputs. The rest is read and dropped, so that the program is never blocked.
const OUTPUT_BYTES_MAX: u64 = 16 << 10;
/// What the programs read beside the volume.
const CONFIGURATION: [&str; 2] = ["/etc/e2fsck.conf", "/etc/mke2fs.conf"];
/// Memory of a program, for a small filesystem. e2fsck takes some 10 MiB for one of 10 GiB.
const MEMORY_BYTES: u64 = 1 << 30;
/// Bytes of a filesystem for each byte of memory more: bitmaps of its blocks and inodes, and what e2fsck counts.
const FILESYSTEM_BYTES_PER_BYTE: u64 = 512;

/// A program for one file.
#[derive(Debug)]
pub(super) struct Confined<'a> {
    /// Its path.
    pub(super) program: Utf8PathBuf,
    /// All arguments.
    pub(super) arguments: Vec<&'a str>,
    /// The only file that it can write to.
    pub(super) data: &'a Utf8Path,
    /// Descriptors that it keeps.
    pub(super) keep: Vec<OwnedFd>,
    pub(super) deadline: Duration,
}

/// How a program ended, and the start of what it printed.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) status: ExitStatus,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Confined<'_> {
    /// The program and its arguments, for messages.
    pub(super) fn line(&self) -> String {
        [self.program.as_str()].into_iter().chain(self.arguments.iter().copied()).collect::<Vec<_>>().join(" ")
    }

    /// Runs it to its end.
    pub(super) fn run(&self) -> Result<Ran, CommandError> {
        self.run_inside()
            .map_err(|source| CommandError::Io { program: self.program.to_string(), source })?
            .ok_or_else(|| CommandError::TimedOut { command: self.line(), deadline: self.deadline })
    }

    /// `None` if it did not end in time.
    fn run_inside(&self) -> io::Result<Option<Ran>> {
        let bytes = fs_err::metadata(self.data)?.len();
        let directory = self.data.parent().filter(|parent| !parent.as_str().is_empty()).unwrap_or(Utf8Path::new("."));
        let mut border = self.border(directory, bytes);
        let (stdout, stdout_writer) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, stderr_writer) = pipe_with(PipeFlags::CLOEXEC)?;
        let keep = self.keep.iter().map(|fd| fd.as_fd().try_clone_to_owned()).collect::<io::Result<_>>()?;
        let mut environment = own_environment();
        // Its messages are compared, and users read them in errors.
        environment.push(("LC_ALL".into(), "C".into()));
        let launch = Launch::new(Request {
            program: &self.program,
            arguments: self.arguments.iter().map(Into::into).collect(),
            environment,
            directory,
            stdout: stdout_writer,
            stderr: stderr_writer,
            keep,
            pid_file: None,
            // It ends with this thread, which waits for it.
            owner_loss: OwnerLoss::Kill,
        })?;
        let (pid, pidfd) = loop {
            match launch.start(&border.steps)? {
                Ok(child) => break child,
                Err(failure) if border.give_up(failure) => {
                    tracing::debug!(%failure, program = %self.program, "a measure of confinement is refused");
                }
                Err(failure) => return Err(failure.into()),
            }
        };
        // Otherwise this process holds the other ends of the pipes.
        drop(launch);
        let child = Child { pid, reaped: false };
        let (stdout, stderr) = (head(stdout)?, head(stderr)?);
        let in_time = ends_within(&pidfd, self.deadline)?;
        let status = child.end()?;
        let text =
            |reader: JoinHandle<Vec<u8>>| String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned();
        let ran = Ran { status, stdout: text(stdout), stderr: text(stderr) };
        Ok(in_time.then_some(ran))
    }

    fn border(&self, directory: &Utf8Path, bytes: u64) -> Border {
        // An unknown word in the variable is reported by commands that start VMs. Here it turns off nothing.
        let policy = Policy::from_environment().unwrap_or_default();
        let policy = policy.less([Measure::User, Measure::Cgroup, Measure::ForkMemory]);
        let limited = policy.wants(Measure::Limits);
        let needs = Needs {
            directory: directory.to_owned(),
            read: CONFIGURATION.map(Into::into).into(),
            write: vec![self.data.to_owned()],
            file_bytes: bytes,
            cpus: 1,
            ..Needs::default()
        };
        let mut border = Border::new(&policy, &self.program, needs);
        border.steps.own_mounts = true;
        if limited {
            let memory = MEMORY_BYTES.saturating_add(bytes / FILESYSTEM_BYTES_PER_BYTE);
            border.steps.limits.extend([(Resource::As, memory), (Resource::Cpu, self.deadline.as_secs().max(1))]);
        }
        border
    }
}

/// A child that is killed when it is dropped.
struct Child {
    pid: Pid,
    reaped: bool,
}

impl Child {
    /// Ends it with all of its session, and reaps it.
    fn end(mut self) -> io::Result<ExitStatus> {
        self.reap()
    }

    fn reap(&mut self) -> io::Result<ExitStatus> {
        // It is not reaped yet, so its pid and the number of its process group are its own. It may have ended long ago.
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        self.reaped = true;
        let found = rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(self.pid), WaitOptions::empty()))?;
        let (_, status) = found.ok_or_else(|| io::Error::other("the program has not ended"))?;
        Ok(ExitStatus::from_raw(status.as_raw()))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.reap();
        }
    }
}

/// Waits for the end of a child. Returns whether it came in time.
fn ends_within(pidfd: &OwnedFd, deadline: Duration) -> io::Result<bool> {
    let until = Instant::now() + deadline;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads a pipe to its end on another thread, and keeps its start.
fn head(pipe: OwnedFd) -> io::Result<JoinHandle<Vec<u8>>> {
    std::thread::Builder::new().name("kiln-output".into()).spawn(move || {
        let mut kept = Vec::new();
        let mut pipe = File::from(pipe).take(OUTPUT_BYTES_MAX);
        // What was read until an error is kept.
        let _ = pipe.read_to_end(&mut kept);
        let _ = io::copy(&mut pipe.into_inner(), &mut io::sink());
        kept
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use fs_err as fs;

    use super::*;

    /// A stand-in for a program of e2fsprogs that a filesystem has taken over.
    fn stand_in(data: &Utf8Path, script: &str, deadline: Duration) -> Result<Ran, CommandError> {
        let program = Utf8PathBuf::from("/bin/sh").canonicalize_utf8().expect("a shell");
        Confined { program, arguments: vec!["-c", script], data, keep: vec![], deadline }.run()
    }

    fn volume() -> (tempfile::TempDir, Utf8PathBuf) {
        let guard = tempfile::tempdir().expect("a directory");
        let path = Utf8Path::from_path(guard.path()).expect("UTF-8").canonicalize_utf8().expect("is there");
        let data = path.join("data");
        fs::write(&data, [0; 4096]).expect("written");
        fs::write(path.join("volume.json"), "{}").expect("written");
        (guard, data)
    }

    const DEADLINE: Duration = Duration::from_secs(60);

    /// What a program that was taken over would try in the directory of its volume, as a script that prints what
    /// succeeds.
    struct Attack {
        outside: tempfile::NamedTempFile,
        _listener: TcpListener,
        acts: Vec<(&'static str, String)>,
    }

    impl Attack {
        fn new() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
            let port = listener.local_addr().expect("bound").port();
            let outside = tempfile::NamedTempFile::new().expect("a file");
            let (owner, file) = (std::process::id(), outside.path().display().to_string());
            let connect =
                "socket(S, PF_INET, SOCK_STREAM, 0) && connect(S, sockaddr_in($ARGV[0], INADDR_LOOPBACK)) or exit 1";
            let acts = vec![
                ("the volume", "printf x | dd of=data conv=notrunc".into()),
                ("a larger volume", "dd if=/dev/zero of=data bs=4096 seek=1 count=1 conv=notrunc".into()),
                ("the record of the volume", "echo x >> volume.json".into()),
                ("reading the record of the volume", "cat volume.json".into()),
                ("a new file", "echo x > new".into()),
                ("a file of the host", format!("echo x >> {file}")),
                ("reading a file of the host", format!("cat {file}")),
                ("users of the host", "cat /etc/passwd".into()),
                ("the environment of its owner", format!("cat /proc/{owner}/environ")),
                ("the command line of its owner", format!("cat /proc/{owner}/cmdline")),
                ("a signal to its owner", format!("kill -0 {owner}")),
                ("a connection", format!("perl -MSocket -e '{connect}' {port}")),
                ("removing the volume", "rm data".into()),
            ];
            Self { outside, _listener: listener, acts }
        }

        fn script(&self) -> String {
            let acts = self.acts.iter();
            acts.map(|(name, act)| format!("if ( {act} ) > /dev/null 2>&1; then echo '{name}'; fi; ")).collect()
        }
    }

    #[test]
    fn a_tool_that_was_taken_over_reaches_only_its_volume() {
        let (attack, (_guard, data)) = (Attack::new(), volume());
        let ran = stand_in(&data, &attack.script(), DEADLINE).expect("runs");
        assert!(ran.status.success() && ran.stdout == "the volume\n", "{ran:?}");
        assert_eq!(fs::metadata(&data).expect("is there").len(), 4096);
        assert_eq!(fs::read(attack.outside.path()).expect("reads"), b"");
    }

    #[test]
    fn without_a_border_it_reaches_all_that_it_tries() {
        let (attack, (_guard, data)) = (Attack::new(), volume());
        let mut command = kiln_programs::command("/bin/sh", kiln_programs::PATH_ONLY);
        command.args(["-c", &attack.script()]).current_dir(data.parent().expect("a directory"));
        let ran = command.output().expect("runs");
        let all: String = attack.acts.iter().map(|(name, _)| format!("{name}\n")).collect();
        assert_eq!(String::from_utf8_lossy(&ran.stdout), all);
    }

    #[test]
    fn a_tool_that_does_not_end_is_killed_with_its_children() {
        let (_guard, data) = volume();
        let began = Instant::now();
        let error = stand_in(&data, "sleep 1000 & while :; do :; done", Duration::from_millis(300)).expect_err("loops");
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
        assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
    }

    #[test]
    fn a_tool_gets_no_more_memory_than_its_limit() {
        let (_guard, data) = volume();
        // It doubles a text until it has no memory left.
        let ran = stand_in(
            &data,
            "exec awk 'BEGIN { s = \"x\"; while (length(s) < 3000000000) s = s s; print \"got it\" }'",
            DEADLINE,
        );
        let ran = ran.expect("ends");
        assert!(!ran.status.success() && !ran.stdout.contains("got it"), "{ran:?}");
    }

    #[test]
    fn only_the_start_of_endless_output_is_kept() {
        let (_guard, data) = volume();
        let ran = stand_in(&data, "yes | head -c 5000000; exit 3", DEADLINE).expect("ends");
        assert_eq!((ran.status.code(), ran.stdout.len() as u64), (Some(3), OUTPUT_BYTES_MAX));
    }

    #[test]
    fn a_tool_has_no_variable_and_no_descriptor_of_its_owner() {
        let (_guard, data) = volume();
        let _open = File::open("/etc/passwd").expect("opens");
        let ran = stand_in(
            &data,
            "env | cut -d= -f1 | sort | tr '\\n' ' '; for fd in 3 4 5 6 7 8 9; do (eval \"cat <&$fd\") 2>/dev/null; done",
            DEADLINE,
        );
        let ran = ran.expect("ends");
        assert_eq!(ran.stdout.trim(), "LC_ALL PATH PWD");
    }
}

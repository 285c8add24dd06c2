//! Runs the host's package tools under a deadline, and keeps their error output.

use std::io::{self, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of a program's stderr that are kept.
const STDERR_BYTES_MAX: u64 = 16 << 10;
/// Lines of these that an error shows.
const STDERR_LINES_SHOWN: usize = 4;

/// Time between two looks at whether a program must end.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Set by [`cancel_programs`].
static CANCELLED: AtomicBool = AtomicBool::new(false);

/// Ends all programs that this module runs, now and from now on: their callers get [`CommandError::Cancelled`], and
/// remove what they have made. For a process that was interrupted and is about to end.
pub fn cancel_programs() {
    CANCELLED.store(true, Ordering::Relaxed);
}

/// Whether [`cancel_programs`] was called.
pub(crate) fn is_cancelled() -> bool {
    CANCELLED.load(Ordering::Relaxed)
}

/// Why a program failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not installed.
    #[error("`{program}` was not found")]
    Missing {
        /// Its name.
        program: String,
    },
    /// It could not be started, or its pipes failed.
    #[error("failed to run `{program}`")]
    Io {
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It exited with an error.
    #[error("`{command}` failed with {status}: {stderr}")]
    Failed {
        /// The program with its arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its error output.
        stderr: String,
    },
    /// It was killed, because this process was interrupted.
    #[error("interrupted")]
    Cancelled,
    /// It did not end in time and was killed.
    #[error("`{command}` did not end within {deadline:?}")]
    TimedOut {
        /// The program with its arguments.
        command: String,
        /// The time that it had.
        deadline: Duration,
    },
}

/// Runs a program and returns at most `bytes_max` of its stdout.
pub(crate) fn output(command: &mut Command, deadline: Duration, bytes_max: u64) -> Result<String, CommandError> {
    let mut text = String::new();
    stream(command, deadline, |stdout| {
        let mut bytes = Vec::new();
        stdout.take(bytes_max).read_to_end(&mut bytes)?;
        text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(())
    })?;
    Ok(text)
}

/// Runs a program while `consume` reads its stdout. At the deadline the program and all its children are killed, so
/// `consume` reaches the end of its input.
pub(crate) fn stream(
    command: &mut Command,
    deadline: Duration,
    consume: impl FnOnce(&mut dyn Read) -> io::Result<()>,
) -> Result<(), CommandError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let line = describe(command);
    // apt's output is parsed below, and users read it in errors.
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => CommandError::Missing { program: program.clone() },
        _ => CommandError::Io { program: program.clone(), source },
    })?;
    let mut stdout = child.stdout.take().expect("stdout is piped");
    let stderr = child.stderr.take().expect("stderr is piped");

    let pid = rustix::process::Pid::from_child(&child);
    let (done, ended) = mpsc::channel::<()>();
    let (consumed, said, timed_out) = thread::scope(|scope| {
        let watchdog = scope.spawn(move || {
            let start = Instant::now();
            let late = || start.elapsed() >= deadline;
            let still_runs = || {
                let step = LOOK_INTERVAL.min(deadline.saturating_sub(start.elapsed()));
                ended.recv_timeout(step) == Err(mpsc::RecvTimeoutError::Timeout)
            };
            let mut timed_out = false;
            while !timed_out && still_runs() {
                timed_out = late() || is_cancelled();
            }
            if timed_out {
                // The child is reaped only after this thread has ended, so its process group can't be reused.
                _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            }
            timed_out
        });
        let talk = scope.spawn(move || tail(stderr));
        let consumed = consume(&mut stdout);
        if consumed.is_err() {
            // Its output is not read any more.
            _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        // With unread output in the pipe, the program would not end.
        _ = io::copy(&mut stdout, &mut io::sink());
        let said = talk.join().unwrap_or_default();
        wait_for_end(&child);
        drop(done);
        (consumed, said, watchdog.join().unwrap_or(false))
    });
    let status = child.wait().map_err(|source| CommandError::Io { program: program.clone(), source })?;
    if timed_out && is_cancelled() {
        return Err(CommandError::Cancelled);
    }
    if timed_out {
        return Err(CommandError::TimedOut { command: line, deadline });
    }
    consumed.map_err(|source| CommandError::Io { program, source })?;
    match status.success() {
        true => Ok(()),
        false => Err(CommandError::Failed { command: line, status, stderr: said }),
    }
}

/// Waits until the child has exited, but does not reap it, so its pid can't be reused.
fn wait_for_end(child: &Child) {
    use rustix::process::{WaitId, WaitIdOptions};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while let Err(rustix::io::Errno::INTR) =
        rustix::process::waitid(WaitId::Pid(rustix::process::Pid::from_child(child)), options)
    {}
}

fn tail(stderr: impl Read) -> String {
    let mut bytes = Vec::new();
    let mut stderr = stderr.take(STDERR_BYTES_MAX);
    _ = stderr.read_to_end(&mut bytes);
    _ = io::copy(&mut stderr.into_inner(), &mut io::sink());
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(STDERR_LINES_SHOWN)..].join("; ")
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_output_of_a_program_is_returned() {
        assert_eq!(output(&mut shell("echo yes; echo no >&2"), DEADLINE, 100).expect("runs"), "yes\n");
    }

    #[test]
    fn a_failure_carries_the_command_and_the_end_of_its_stderr() {
        let error = output(&mut shell("echo E: no space >&2; exit 3"), DEADLINE, 100).expect_err("fails").to_string();
        assert!(
            error.contains("sh -c") && error.contains("exit status: 3") && error.ends_with("E: no space"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = output(&mut Command::new("kiln-no-such-program"), DEADLINE, 100).expect_err("is not there");
        assert!(matches!(error, CommandError::Missing { program } if program == "kiln-no-such-program"));
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children() {
        let deadline = Duration::from_millis(300);
        let error = output(&mut shell("sleep 1000 & sleep 1000"), deadline, 100).expect_err("hangs");
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
    }

    #[test]
    fn a_program_that_closes_its_output_and_hangs_is_killed_too() {
        let deadline = Duration::from_millis(300);
        let error = output(&mut shell("exec >&- 2>&-; exec sleep 1000"), deadline, 100).expect_err("hangs");
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
    }

    #[test]
    fn endless_output_is_cut_when_it_is_not_read() {
        let refuse = |_: &mut dyn Read| Err(io::Error::other("enough"));
        let error = stream(&mut shell("yes"), DEADLINE, refuse).expect_err("is refused");
        assert!(matches!(error, CommandError::Io { .. }), "{error}");
        let error = stream(&mut shell("yes"), Duration::from_millis(300), |_| Ok(())).expect_err("is endless");
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
    }
}

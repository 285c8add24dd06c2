//! The command in the guest: from the request to kiln's exit code.

use std::time::Duration;

use kiln_engine::Guest;
use kiln_engine::deadlines::{RunClock, START_DEADLINE};
use kiln_engine::image::MINI;
use kiln_engine::link::{Exec, StreamError, StreamSender};
use kiln_oci::Signal;
use kiln_wire::{Capability, ErrorCode, ExecRequest, ExitStatus, Exited};
use tokio::signal::unix::{SignalKind, signal};

use super::job::Job;
use super::pump::{self, End, Sink};
use super::report::Report;
use super::step::{Cut, Phase, Steps};
use super::terminal;
use crate::failure::{Failure, INTERRUPTED, TIMED_OUT, USAGE, VM};
use crate::guest;

/// A shell's exit codes for commands that could not start.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
/// A shell's exit code for a program that SIGPIPE killed.
const OUTPUT_CLOSED: u8 = 141;

/// How a command ended.
pub(super) struct Ended {
    /// Kiln's exit code, unless a later step fails.
    pub code: u8,
    /// `--timeout` ended it.
    pub timed_out: bool,
}

impl From<u8> for Ended {
    fn from(code: u8) -> Self {
        Self { code, timed_out: false }
    }
}

impl Job {
    /// Runs the command to its end.
    pub(super) async fn command(&self, steps: &mut Steps<'_>, report: &mut Report) -> Result<Ended, Cut> {
        let mut exec = self.start(steps).await?;
        let raw = if self.args.tty { Some(terminal::RawMode::enter().map_err(Failure::from)?) } else { None };
        let limit = self.args.limit_output;
        let mut sink = if self.args.json { Sink::capture(limit) } else { Sink::pass(limit) };
        let mut signalled = None;
        let ended = {
            let (guest, clock, interrupts) = (steps.guest, steps.clock, &mut *steps.interrupts);
            let (input, stop) = (exec.input.clone(), self.exec.limits.stop_signal);
            let stdin = async {
                if self.args.stdin || self.args.tty {
                    pump::stdin(input.clone()).await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                ended = pump::output(&mut exec.output, &mut sink) => Ok(ended),
                gone = guest.gone() => Err(Cut::Gone(gone)),
                () = stdin => unreachable!("stdin never ends the command"),
                () = follow_size(input.clone(), self.args.tty) => unreachable!("nor does its terminal"),
                code = interrupts.pass_on(&guest.link, &exec.input, stop, self.args.grace, &mut signalled) => {
                    Err(Cut::Interrupted(code))
                }
                () = clock.overdue() => Err(Cut::TimedOut(Phase::Command)),
            }
        };
        drop(raw);
        if let Some(captured) = sink.captured() {
            report.output(captured);
        }
        // A guest may crash or power off on the signal that was to end its command. The run was interrupted then, too.
        if let (Err(Cut::Gone(_)) | Ok(Err(StreamError::LinkLost(_))), Some(code)) = (&ended, signalled) {
            return Err(Cut::Interrupted(code));
        }
        let exited = match (ended?, signalled) {
            (Ok(End::Exited(exited)), _) => exited,
            (Ok(End::OutputClosed), _) => return Ok(OUTPUT_CLOSED.into()),
            (Ok(End::OutputFailed(error)), _) => {
                let error = anyhow::Error::new(error).context("failed to pass on the command's output");
                return Err(Failure::new(1, error).into());
            }
            (Err(StreamError::LinkLost(why)), _) => return Err(link_lost(steps.guest, &why).await.into()),
            // The command did not end within the grace and was killed.
            (Err(StreamError::Fault(fault)), Some(code)) if fault.code == ErrorCode::Cancelled => {
                return Ok(code.into());
            }
            (Err(error), _) => return Err(Failure::new(VM, error).into()),
        };
        report.exited(&exited);
        let own = self.code_of(&exited, exec.started.pid, &steps.clock);
        // After Ctrl-C kiln exits like a shell, whatever the command did. After other signals it exits with the
        // command's code.
        let code = if signalled == Some(INTERRUPTED) { INTERRUPTED } else { own };
        Ok(Ended { code, timed_out: exited.timed_out })
    }

    /// Starts the command.
    async fn start(&self, steps: &mut Steps<'_>) -> Result<Exec, Cut> {
        let (guest, clock) = (steps.guest, steps.clock);
        let request = self.request(guest, &clock);
        let starting = async {
            match tokio::time::timeout(START_DEADLINE, guest.link.exec(request)).await {
                Ok(Ok(exec)) => Ok(exec),
                Ok(Err(error)) => Err(self.not_started(guest, error).await),
                Err(_) => {
                    let words = format!("the guest did not start the command within {START_DEADLINE:?}");
                    Err(Failure::words(VM, words))
                }
            }
        };
        steps.run(Phase::Start, clock.up(), starting).await
    }

    /// The request with the remaining time. The agent enforces it, so that a command gets its stop signal before
    /// SIGKILL. If the agent does not, kiln kills the VM.
    fn request(&self, guest: &Guest, clock: &RunClock) -> ExecRequest {
        let mut request = self.exec.clone();
        // The agent refuses a limit of 0. If the time is already up, `clock` ends this step before a reply can arrive.
        request.limits.wall_ms = clock.left().map(|left| millis(left).max(1));
        if guest.link.hello().capabilities.contains(&Capability::Grace) {
            request.limits.grace_ms = Some(millis(self.args.grace)).filter(|grace| *grace > 0);
        }
        // The agent of an older snapshot sends SIGTERM.
        if !guest.link.hello().capabilities.contains(&Capability::StopSignal) {
            request.limits.stop_signal = None;
        }
        request
    }

    /// The name of the signal that ends the command.
    fn stop_signal(&self) -> String {
        let number = self.exec.limits.stop_signal.unwrap_or(libc::SIGTERM);
        number.to_string().parse::<Signal>().map_or_else(|_| number.to_string(), |signal| signal.to_string())
    }

    fn code_of(&self, exited: &Exited, pid: u32, clock: &RunClock) -> u8 {
        if exited.timed_out {
            let limit = if clock.is_up() { self.args.timeout } else { self.args.limit_cpu };
            let (after, name) = (limit.unwrap_or_default(), self.name());
            self.warn(&match exited.status {
                ExitStatus::Signal(libc::SIGKILL) => {
                    format!("timed out after {after:?}: killed `{name}` (pid {pid}) and all its children")
                }
                status => format!(
                    "timed out after {after:?}: `{name}` (pid {pid}) exited with {} after {}; killed all its children",
                    status.shell_code(),
                    self.stop_signal()
                ),
            });
            return TIMED_OUT;
        }
        if exited.oom_killed {
            self.warn("out of memory: the guest's kernel killed a process of the command (see --memory)");
        }
        if exited.pipes_held {
            self.warn("killed a process that outlived the command and held its output open");
        }
        if exited.truncated {
            self.warn("dropped the output beyond the limit");
        }
        // A guest can send any number, but an exit code is a byte.
        let code = match exited.status {
            ExitStatus::Code(code) => code & 0xff,
            signal @ ExitStatus::Signal(_) => signal.shell_code().clamp(0, 255),
        };
        u8::try_from(code).unwrap_or(VM)
    }

    async fn not_started(&self, guest: &Guest, error: StreamError) -> Failure {
        match error {
            StreamError::Fault(fault) => match fault.code {
                ErrorCode::CommandNotFound => self.not_found(),
                ErrorCode::NotExecutable => Failure::words(NOT_EXECUTABLE, fault.message),
                _ => Failure::words(VM, fault.message),
            },
            StreamError::LinkLost(why) => link_lost(guest, &why).await,
            StreamError::TooLarge { .. } => Failure::new(USAGE, error),
            other => Failure::new(VM, other),
        }
    }

    /// The program is not in the guest. Users who type `kiln run alpine sh` mean an image.
    fn not_found(&self) -> Failure {
        let program = self.exec.argv.first().map(ToString::to_string).unwrap_or_default();
        let failure = Failure::words(NOT_FOUND, format!("`{program}` was not found in the guest"));
        if program.starts_with(['/', '.']) || program.chars().any(char::is_whitespace) {
            let image = self.image.as_deref().unwrap_or(MINI);
            return failure.hint(format!("the program must be in the image `{image}`, or be copied in with --in"));
        }
        failure.hint(format!("if `{program}` is an image: kiln run --image {program}; it is pulled if it is not here"))
    }

    fn name(&self) -> String {
        self.exec.argv.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

async fn link_lost(guest: &Guest, why: &str) -> Failure {
    match guest.gone_soon().await {
        Some(gone) => guest::cut_off(guest, &gone),
        None => Failure::words(VM, format!("the link to the guest was lost: {why}")),
    }
}

/// Resizes the command's terminal whenever the user's terminal changes. Never returns.
async fn follow_size(input: StreamSender, tty: bool) {
    if let (true, Ok(mut changes)) = (tty, signal(SignalKind::window_change())) {
        while changes.recv().await.is_some() {
            let (rows, cols) = terminal::size();
            if input.resize(rows, cols).is_err() {
                break;
            }
        }
    }
    std::future::pending::<()>().await;
}

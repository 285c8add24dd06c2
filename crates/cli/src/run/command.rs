//! The command in the guest: from the request to the code that it ends kiln with.

use std::time::Duration;

use kiln_engine::Guest;
use kiln_engine::deadlines::{RunClock, START_DEADLINE};
use kiln_engine::link::{Exec, StreamError, StreamSender};
use kiln_wire::{Capability, ErrorCode, ExecRequest, ExitStatus, Exited};
use tokio::signal::unix::{SignalKind, signal};

use super::pump::{self, End, Sink};
use super::report::Report;
use super::step::{Cut, Phase, Steps};
use super::{Job, terminal};
use crate::failure::{Failure, INTERRUPTED, TIMED_OUT, USAGE, VM};
use crate::guest;

/// The shell's codes for commands that could not start.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
/// A program that SIGPIPE ended.
const OUTPUT_CLOSED: u8 = 141;

/// How a command came to its end.
pub(super) struct Ended {
    /// What kiln ends with, unless a later step fails.
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
            let input = exec.input.clone();
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
                code = interrupts.pass_on(&guest.link, &exec.input, self.args.grace, &mut signalled) => {
                    Err(Cut::Interrupted(code))
                }
                () = clock.overdue() => Err(Cut::TimedOut(Phase::Command)),
            }
        };
        drop(raw);
        if let Some(captured) = sink.captured() {
            report.output(captured);
        }
        // What a guest makes of a signal that was to end its command is an end, too.
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
            // It did not end within the grace and was killed.
            (Err(StreamError::Fault(fault)), Some(code)) if fault.code == ErrorCode::Cancelled => {
                return Ok(code.into());
            }
            (Err(error), _) => return Err(Failure::new(VM, error).into()),
        };
        report.exited(&exited);
        let own = self.code_of(&exited, exec.started.pid, &steps.clock);
        // After Ctrl-C it is what a shell returns, whatever the command made of it; after others it is the command's own.
        let code = if signalled == Some(INTERRUPTED) { INTERRUPTED } else { own };
        Ok(Ended { code, timed_out: exited.timed_out })
    }

    /// Waits until the command runs.
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

    /// The request with what is left of the time. The agent keeps to it on its own, so that a command is asked to end
    /// before it is killed; a guest that does not is overdue.
    fn request(&self, guest: &Guest, clock: &RunClock) -> ExecRequest {
        let mut request = self.exec.clone();
        // No limit may be 0; a time that is up is found before an answer comes.
        request.limits.wall_ms = clock.left().map(|left| millis(left).max(1));
        if guest.link.hello().capabilities.contains(&Capability::Grace) {
            request.limits.grace_ms = Some(millis(self.args.grace)).filter(|grace| *grace > 0);
        }
        request
    }

    fn code_of(&self, exited: &Exited, pid: u32, clock: &RunClock) -> u8 {
        if exited.timed_out {
            let limit = if clock.is_up() { self.args.timeout } else { self.args.limit_cpu };
            let (after, name) = (limit.unwrap_or_default(), self.name());
            self.talk(&match exited.status {
                ExitStatus::Signal(libc::SIGKILL) => {
                    format!("timed out after {after:?}: killed `{name}` (pid {pid}) and all that it started")
                }
                status => format!(
                    "timed out after {after:?}: `{name}` (pid {pid}) ended with {} when it was asked to, killed all that it \
                     started",
                    status.shell_code()
                ),
            });
            return TIMED_OUT;
        }
        if exited.oom_killed {
            self.talk("out of memory: the guest's kernel killed a process of the command (see --memory)");
        }
        if exited.pipes_held {
            self.talk("a process that outlived the command held its output open and was killed");
        }
        if exited.truncated {
            self.talk("output beyond the limit was dropped");
        }
        // A guest may say any number; a shell's codes are bytes.
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

    /// What people mean who write `kiln run alpine sh`.
    fn not_found(&self) -> Failure {
        let program = self.args.command.first().map(|word| word.to_string_lossy()).unwrap_or_default();
        let failure = Failure::words(NOT_FOUND, format!("`{program}` was not found in the guest"));
        if program.starts_with(['/', '.']) || program.chars().any(char::is_whitespace) {
            return failure.hint(format!("it must be in the image `{}`, or come with --in", self.args.image));
        }
        failure.hint(format!("did you mean `--image {program}`? kiln image ls lists the images that are here"))
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

/// Gives the command's terminal the size of the user's, whenever that changes; never ends.
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

//! `kiln run`: one command in one VM.
//!
//! ```text
//!   check arguments ─▶ fork or boot ─▶ link ─▶ --in ─▶ exec ⇄ stdin, stdout, stderr, signals ─▶ --out ─▶ VM gone ─▶ exit code
//! ```
//!
//! Whatever happens on the way, the VM is gone before kiln is.

mod env_file;
mod out;
mod pack;
mod pump;
mod report;
mod request;
mod start;
mod terminal;
mod transfer;
mod vhost_user;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kiln_detect::Severity;
use kiln_engine::link::{GuestLink, Renewal, StreamError, StreamSender};
use kiln_engine::{Acceleration, Guest};
use kiln_wire::{ErrorCode, ExecRequest, ExitStatus, Exited, Identity};
use owo_colors::OwoColorize as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::RunArgs;
use crate::failure::{Failure, INTERRUPTED, TIMED_OUT, USAGE, VM};
use crate::guest;
use crate::image;
use crate::interrupt::Interrupts;
use crate::output::{Progress, plain, say};
use pump::{End, Sink};
use report::Report;
use request::Copy;
use start::Started;

pub use vhost_user::parse as parse_vhost_user;

/// The shell's codes for commands that could not start.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
/// A program that SIGPIPE ended.
const OUTPUT_CLOSED: u8 = 141;
/// The agent enforces `--timeout`; a guest that does not is ended this long after it.
const TIMEOUT_GRACE: Duration = Duration::from_secs(5);
/// The agent answers in milliseconds; a guest that has not started a command by now has stopped.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// For threads that still tidy up a copy. One that is blocked in a write to a stdout that nobody reads is left.
const THREADS_DEADLINE: Duration = Duration::from_secs(2);

/// What is known of how a run went, however far it came.
pub struct Times {
    start: Instant,
    /// What runs the VM's CPUs, once that is decided.
    accel: Option<Acceleration>,
    /// Making the ready-made snapshot, where it was not there.
    ready: Option<Duration>,
}

/// Everything that was checked before a VM starts.
struct Job {
    args: RunArgs,
    exec: ExecRequest,
    copy_in: Vec<Copy>,
    copy_out: Vec<Copy>,
}

/// Runs the command and gives its exit code.
pub fn run(args: RunArgs) -> Result<u8, Failure> {
    let start = Instant::now();
    let json = args.json;
    let mut report = Report::of(&args);
    let mut times = Times { start, accel: None, ready: None };
    let outcome = check(args).and_then(|job| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let outcome = runtime.block_on(job.run(&mut times, &mut report));
        // What a VM that was not waited for has left is removed here.
        runtime.shutdown_timeout(THREADS_DEADLINE);
        outcome
    });
    if !json {
        return outcome;
    }
    let code = match outcome {
        Ok(code) => code,
        Err(failure) => {
            report.failed(&failure);
            failure.code
        }
    };
    report.exit_code = code;
    report.times(&times);
    report.print()?;
    Ok(code)
}

fn check(args: RunArgs) -> Result<Job, Failure> {
    args.docker.check()?;
    let terminal = args.tty.then(terminal::describe);
    Ok(Job {
        exec: request::exec_request(&args, terminal)?,
        copy_in: args.copy_in.iter().map(request::copy_in).collect::<Result<_, _>>()?,
        copy_out: args.copy_out.iter().map(|given| request::copy_out(given, args.json)).collect::<Result<_, _>>()?,
        args,
    })
}

impl Job {
    async fn run(self, times: &mut Times, report: &mut Report) -> Result<u8, Failure> {
        let home = image::home()?;
        let progress = Progress::start("finding the image");
        let image = image::find_or_build(&home, &self.args.image, &progress)?;
        image::check_modules(&image, &self.args.modules)?;
        image::check_memory(&image, self.args.memory, self.args.cpus)?;
        let mut spec = image.vm_spec();
        spec.memory_mib = self.args.memory;
        spec.cpus = self.args.cpus;
        spec.modules = self.args.modules.clone();
        spec.vhost_user = self.args.vhost_user.clone();
        spec.acceleration = self.args.accel.into();
        let engine = image::engine(&home)?;
        // Not before: building an image blocks, and its files are swept by the next one.
        let mut interrupts = Interrupts::new()?;
        let started = start::start(&engine, spec, &self.args, &mut interrupts, &progress, times).await?;
        let (guest, start) = match started {
            Started::Guest(guest, start) => (guest, start),
            Started::Interrupted(code) => return Ok(code),
        };
        report.started(start, guest.boot);
        drop(progress);
        let outcome = self.in_guest(&guest, &mut interrupts, report).await;
        report.findings = guest.findings().into_iter().map(Into::into).collect();
        warn_of_findings(&guest, &outcome);
        guest.vm.kill().await;
        outcome
    }

    async fn in_guest(&self, guest: &Guest, interrupts: &mut Interrupts, report: &mut Report) -> Result<u8, Failure> {
        let copied = async {
            if let Some(name) = &self.args.docker.hostname {
                rename(&guest.link, name).await?;
            }
            for copy in &self.copy_in {
                transfer::copy_in(&guest.link, copy).await.map_err(|error| Failure::new(VM, error))?;
            }
            Ok::<_, Failure>(())
        };
        tokio::select! {
            copied = copied => copied?,
            gone = guest.gone() => return Err(guest::cut_off(&gone)),
            code = interrupts.any() => return Ok(code),
        }
        let code = self.exec(guest, interrupts, report).await?;
        let fetched = tokio::select! {
            fetched = transfer::copy_all_out(&guest.link, &self.copy_out, self.args.out_limit) => fetched,
            gone = guest.gone() => Err(guest::cut_off(&gone)),
            code = interrupts.any() => return Ok(code),
        };
        match fetched {
            // The command's own failure matters more than that its result is missing.
            Err(failure) if code != 0 => {
                if self.args.json {
                    report.failed(&failure);
                } else {
                    failure.print();
                }
                Ok(code)
            }
            other => other.map(|()| code),
        }
    }

    async fn exec(&self, guest: &Guest, interrupts: &mut Interrupts, report: &mut Report) -> Result<u8, Failure> {
        let starting = tokio::select! {
            exec = guest.link.exec(self.exec.clone()) => exec,
            () = tokio::time::sleep(START_DEADLINE) => {
                let words = format!("the guest did not start the command within {START_DEADLINE:?}");
                return Err(Failure::words(VM, words));
            }
            gone = guest.gone() => return Err(guest::cut_off(&gone)),
            code = interrupts.any() => return Ok(code),
        };
        let mut exec = match starting {
            Ok(exec) => exec,
            Err(error) => return Err(self.not_started(guest, error).await),
        };
        let raw = if self.args.tty { Some(terminal::RawMode::enter()?) } else { None };
        let limit = self.args.limit_output;
        let mut sink = if self.args.json { Sink::capture(limit) } else { Sink::pass(limit) };
        let mut interrupted = false;
        let ended = {
            let input = exec.input.clone();
            let stdin = async {
                if self.args.stdin || self.args.tty {
                    pump::stdin(input.clone()).await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                ended = pump::output(&mut exec.output, &mut sink) => Ok(ended),
                () = stdin => unreachable!("stdin never ends the command"),
                () = follow_size(input.clone(), self.args.tty) => unreachable!("nor does its terminal"),
                code = interrupts.pass_on(&exec.input, &mut interrupted) => Err(Ok(code)),
                () = deadline(self.args.timeout) => Err(Err(self.overdue())),
            }
        };
        drop(raw);
        if let Some(captured) = sink.captured() {
            report.output(captured);
        }
        let ended = match ended {
            Ok(ended) => ended,
            Err(cut_short) => return cut_short,
        };
        let exited = match ended {
            Ok(End::Exited(exited)) => exited,
            Ok(End::OutputClosed) => return Ok(OUTPUT_CLOSED),
            Ok(End::OutputFailed(error)) => {
                return Err(Failure::new(
                    1,
                    anyhow::Error::new(error).context("failed to pass on the command's output"),
                ));
            }
            Err(StreamError::LinkLost(why)) => {
                return Err(match guest.gone_soon().await {
                    Some(gone) => guest::cut_off(&gone),
                    None => Failure::words(VM, format!("the link to the guest was lost: {why}")),
                });
            }
            Err(StreamError::Fault(fault)) if interrupted && fault.code == ErrorCode::Cancelled => {
                return Ok(INTERRUPTED);
            }
            Err(error) => return Err(Failure::new(VM, error)),
        };
        report.exited(&exited);
        Ok(if interrupted { INTERRUPTED } else { self.code_of(&exited, exec.started.pid) })
    }

    fn code_of(&self, exited: &Exited, pid: u32) -> u8 {
        if exited.timed_out {
            let after = self.args.timeout.or(self.args.limit_cpu).unwrap_or_default();
            self.talk(&format!(
                "timed out after {after:?}: killed `{}` (pid {pid}) and all that it started",
                self.name()
            ));
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
            StreamError::Fault(fault) => {
                let code = match fault.code {
                    ErrorCode::CommandNotFound => NOT_FOUND,
                    ErrorCode::NotExecutable => NOT_EXECUTABLE,
                    _ => VM,
                };
                match fault.code {
                    ErrorCode::CommandNotFound => self.not_found(),
                    _ => Failure::words(code, fault.message),
                }
            }
            StreamError::LinkLost(why) => match guest.gone_soon().await {
                Some(gone) => guest::cut_off(&gone),
                None => Failure::words(VM, format!("the link to the guest was lost: {why}")),
            },
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

    fn overdue(&self) -> Failure {
        let after = self.args.timeout.unwrap_or_default();
        Failure::words(TIMED_OUT, format!("timed out after {after:?}: the guest did not stop, killed its VM"))
    }

    fn name(&self) -> String {
        self.exec.argv.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    /// A word beside the command's output.
    fn talk(&self, words: &str) {
        if !self.args.json {
            say(format_args!("{} {}", "kiln:".red().bold(), plain(words)));
        }
    }
}

/// Gives the machine a name of the user's. It keeps its addresses, and gets a machine id that nothing has seen yet.
async fn rename(link: &GuestLink, hostname: &str) -> Result<(), Failure> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    let machine_id = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let identity = Identity { hostname: hostname.to_owned(), machine_id, macs: vec![] };
    let renamed = link.renew(Renewal { identity: Some(identity) }).await;
    renamed.map_err(|error| {
        Failure::new(VM, anyhow::Error::new(error).context(format!("failed to name the machine `{hostname}`")))
    })
}

/// Ends when a guest that does not keep to `--timeout` is given up; never without one.
async fn deadline(timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => tokio::time::sleep(timeout.saturating_add(TIMEOUT_GRACE)).await,
        None => std::future::pending().await,
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

/// Names what the kernel complained of while the command ran, each once; a crash that ended it was named already.
fn warn_of_findings(guest: &Guest, outcome: &Result<u8, Failure>) {
    let crashed = outcome.is_err();
    let mut titles = BTreeMap::<String, usize>::new();
    for finding in guest.findings() {
        if finding.severity != Severity::Fatal || !crashed {
            *titles.entry(finding.title).or_default() += 1;
        }
    }
    for (title, count) in titles {
        let times = if count > 1 { format!(" ({count} times)") } else { String::new() };
        say(format_args!("{} the guest's kernel reported: {title}{times}", "kiln:".yellow().bold()));
    }
}

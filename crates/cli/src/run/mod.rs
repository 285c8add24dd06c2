//! `kiln run`: one command in one VM.
//!
//! ```text
//!   check arguments ─▶ fork or boot ─▶ link ─▶ --in ─▶ exec ⇄ stdin, stdout, stderr, signals ─▶ --out ─▶ VM gone ─▶ exit code
//! ```
//!
//! Whatever happens on the way, the VM is gone before kiln is.

mod command;
mod env_file;
#[cfg(test)]
mod hostile;
mod out;
mod pack;
mod pump;
mod report;
mod request;
mod start;
mod step;
mod terminal;
mod transfer;
mod vhost_user;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kiln_detect::Severity;
use kiln_engine::deadlines::RENEW_DEADLINE;
use kiln_engine::link::{GuestLink, Renewal};
use kiln_engine::{Acceleration, Guest};
use kiln_wire::{ExecRequest, Identity};
use owo_colors::OwoColorize as _;

use crate::args::RunArgs;
use crate::failure::{Failure, VM};
use crate::image;
use crate::interrupt::Interrupts;
use crate::output::{Progress, plain, say};
use report::Report;
use request::Copy;
use start::Started;

pub use vhost_user::parse as parse_vhost_user;

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
    let renamed = link.renew(Renewal { identity: Some(identity) }, RENEW_DEADLINE).await;
    renamed.map_err(|error| {
        Failure::new(VM, anyhow::Error::new(error).context(format!("failed to name the machine `{hostname}`")))
    })
}

/// Names what the kernel complained of while the command ran, each once; a crash that ended it was named already.
fn warn_of_findings(guest: &Guest, outcome: &Result<u8, Failure>) {
    let crashed = outcome.as_ref().is_err_and(|failure| failure.code == VM);
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

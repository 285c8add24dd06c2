//! A run from its arguments to its exit code: checks, the VM, the steps in the guest, the report.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_detect::Severity;
use kiln_engine::deadlines::RENEW_DEADLINE;
use kiln_engine::home::Home;
use kiln_engine::image::MINI;
use kiln_engine::link::{GuestLink, Renewal};
use kiln_engine::network::{NetworkRequest, VmNetwork};
use kiln_engine::snapshot::SnapshotStore;
use kiln_engine::{Acceleration, Guest};
use kiln_wire::{ExecRequest, Identity};
use owo_colors::OwoColorize as _;

use super::image_word;
use super::publish::{Ports, Published};
use super::report::Report;
use super::request::{self, Copy};
use super::save::{self, Saved};
use super::start::{self, ImageVm, Origin, Started};
use super::terminal;
use super::volumes::{self, Volumes};
use crate::args::RunArgs;
use crate::args::network::WantedNetwork;
use crate::engine_failure::{network_failure, snapshot_failure};
use crate::failure::{Failure, USAGE, VM};
use crate::image::{self, Runnable, Wants};
use crate::interrupt::Interrupts;
use crate::net::Control;
use crate::output::{Progress, plain, print, say};
use crate::snapshot_names as names;

/// For threads that clean up after a copy. A thread that is blocked in a write to stdout, because its reader does not
/// read, is abandoned.
const THREADS_DEADLINE: Duration = Duration::from_secs(2);

/// The times of a run, as far as it came.
pub struct Times {
    pub(super) start: Instant,
    /// How the VM's CPUs run; `None` until that is decided.
    pub(super) accel: Option<Acceleration>,
    /// How long making the ready-made snapshot took; `None` if it existed.
    pub(super) ready: Option<Duration>,
}

/// A checked request.
pub(super) struct Job {
    pub(super) args: RunArgs,
    /// The name of the image; with `--from`, of the snapshot's image, once the snapshot is found.
    pub(super) image: Option<String>,
    /// What to run: first as the arguments name it, then with the image's configuration.
    pub(super) exec: ExecRequest,
    pub(super) copy_in: Vec<Copy>,
    pub(super) copy_out: Vec<Copy>,
    /// The name to save the VM under if the command exits with 0.
    save_as: Option<String>,
}

/// Runs the command and returns its exit code.
pub fn run(args: RunArgs) -> Result<u8, Failure> {
    run_and_save(args, None)
}

/// Runs the command and saves its VM under a name.
pub fn create(args: RunArgs, name: String) -> Result<u8, Failure> {
    run_and_save(args, Some(name))
}

fn run_and_save(mut args: RunArgs, save_as: Option<String>) -> Result<u8, Failure> {
    let start = Instant::now();
    let json = args.json;
    let image = image_word::take(&mut args);
    let mut report = Report::of(&args, image.as_deref());
    let mut times = Times { start, accel: None, ready: None };
    let outcome = check(args, image, save_as).and_then(|job| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let outcome = runtime.block_on(job.run(&mut times, &mut report));
        // Threads of a killed VM remove its files in this time.
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

/// Refuses arguments that contradict each other or the host, before a VM starts.
pub(super) fn check(args: RunArgs, image: Option<String>, save_as: Option<String>) -> Result<Job, Failure> {
    args.docker.check()?;
    volumes::check(&args.storage, save_as.is_some(), args.from.is_some())?;
    args.network.wanted(args.docker.name.as_deref())?;
    let terminal = args.tty.then(terminal::describe);
    if save_as.is_some() && !args.vhost_user.is_empty() {
        return Err(
            Failure::words(USAGE, "a VM with a vhost-user device can't be saved").hint("leave out --vhost-user")
        );
    }
    Ok(Job {
        exec: request::exec_request(&args, terminal)?,
        copy_in: args.copy_in.iter().map(request::copy_in).collect::<Result<_, _>>()?,
        copy_out: args.copy_out.iter().map(|given| request::copy_out(given, args.json)).collect::<Result<_, _>>()?,
        args,
        image,
        save_as,
    })
}

impl Job {
    async fn run(mut self, times: &mut Times, report: &mut Report) -> Result<u8, Failure> {
        let home = image::home()?;
        let progress = Progress::start("finding the image");
        let mut origin = self.origin(&home, &progress, report)?;
        let engine = image::engine(&home)?;
        let volumes = match &mut origin {
            Origin::Image(vm) => Volumes::attach(&home, &self.args.storage, &mut vm.spec, &progress)?,
            Origin::Snapshot(_) => Volumes::default(),
        };
        // Not earlier: building an image blocks, and a signal would not be handled. If one kills kiln during a build,
        // the next build removes the leftovers.
        let mut interrupts = Interrupts::new()?;
        let ports = Ports::bind(&self.args.docker.publish).await?;
        let network = self.network(&home).await?.map(Arc::new);
        let mut part = volumes.part.clone();
        if let Some(network) = &network {
            (part.nics, part.network) = (vec![network.nic()], Some(network.guest()));
        }
        let started = start::start(&engine, origin, &part, &self.args, &mut interrupts, &progress, times).await?;
        let (guest, start) = match started {
            Started::Guest(guest, start) => (guest, start),
            Started::Interrupted(code) => return Ok(code),
        };
        times.accel = Some(guest.vm.acceleration());
        report.started(start, guest.boot);
        drop(progress);
        let published = ports.lead_to(&guest.link)?;
        self.announce(&published);
        let control = match &network {
            None => None,
            Some(network) => {
                let (vm, name) = (guest.vm.id().to_string(), self.args.docker.name.clone());
                Some(Control::start(&home, &vm, name, Arc::clone(network))?)
            }
        };
        let outcome = tokio::select! {
            outcome = self.in_guest(&guest, &mut interrupts, report) => outcome,
            never = volumes.serve(&guest) => match never {},
        };
        report.findings = guest.findings().into_iter().map(Into::into).collect();
        warn_of_findings(&guest, &outcome);
        let outcome = match (outcome, &self.save_as) {
            (Ok(0), Some(name)) => self.save(&home, &guest, name, &mut interrupts, report).await,
            (outcome, Some(name)) => {
                self.warn(&format!("`{name}` was not saved: its command did not exit with 0"));
                outcome
            }
            (outcome, None) => outcome,
        };
        drop((published, control));
        // Whatever the outcome is: what the guest wrote to its volumes must be on them.
        let ended = volumes.end(&guest, &mut interrupts).await;
        // Only now: the network of a VM is not removed while the VM uses it.
        if let Some(network) = network.and_then(Arc::into_inner)
            && let Err(error) = network.stop().await
        {
            tracing::warn!(%error, "the network of the VM is not removed yet; the next run tries again");
        }
        outcome.and_then(|code| ended.map(|()| code))
    }

    /// The network of the run, with its rules in place.
    async fn network(&self, home: &Home) -> Result<Option<VmNetwork>, Failure> {
        let label = self.args.docker.name.clone().unwrap_or_default();
        let network = match self.wanted_network()? {
            None => return Ok(None),
            Some(WantedNetwork::Alone(kind, policy)) => {
                VmNetwork::start(home, NetworkRequest { kind, policy: *policy, label }).await
            }
            Some(WantedNetwork::Shared(network)) => VmNetwork::join(home, &network, &label).await,
        };
        Ok(Some(network.map_err(network_failure)?))
    }

    fn wanted_network(&self) -> Result<Option<WantedNetwork>, Failure> {
        self.args.network.wanted(self.args.docker.name.as_deref())
    }

    /// Prints the ports that kiln has chosen.
    fn announce(&self, published: &Published) {
        let chosen = self.args.docker.publish.iter().zip(&published.addresses);
        for (_, (address, guest)) in chosen.filter(|(wanted, _)| wanted.host.port() == 0) {
            say(format_args!("port {guest} of the guest is {address} on this host"));
        }
    }

    /// What the VM is made from.
    fn origin(&mut self, home: &Home, progress: &Progress, report: &mut Report) -> Result<Origin, Failure> {
        let store = SnapshotStore::new(home);
        let listed = || store.list().map_err(snapshot_failure);
        if let Some(name) = &self.save_as {
            names::check_new(&listed()?, name)?;
        }
        if let Some(from) = &self.args.from {
            let id = names::resolve(&listed()?, from)?;
            let snapshot = store.open(&id).map_err(snapshot_failure)?;
            // What the image decides, it decides for the forks of its VMs, too.
            let root = image::of_snapshot(home, &snapshot)?;
            request::add_image(&mut self.exec, &self.args, root.as_ref().map(|root| &root.config))?;
            self.image = root.map(|root| root.name);
            report.from = Some(id);
            return Ok(Origin::Snapshot(Box::new(snapshot)));
        }
        let name = self.image.as_deref().unwrap_or(MINI);
        let wants = Wants {
            volumes: !self.args.storage.volumes.is_empty(),
            network: self.wanted_network()?.is_some(),
            ..Wants::default()
        };
        let mut image = Runnable::find(home, name, self.args.pull, (&self.args.kernel, wants), progress)?;
        request::add_image(&mut self.exec, &self.args, image.root.as_ref().map(|root| &root.config))?;
        image.check_modules(&self.args.modules)?;
        image.boot = image::with_memory(home, image.boot, self.args.memory, self.args.cpus, progress)?;
        let mut spec = image.vm_spec();
        spec.memory_mib = self.args.memory;
        spec.cpus = self.args.cpus;
        spec.modules = self.args.modules.clone();
        spec.modules.extend(volumes::modules(&self.args.storage, &image.boot.modules));
        spec.vhost_user = self.args.vhost_user.clone();
        spec.acceleration = self.args.accel.into();
        spec.forkable = self.save_as.is_some();
        let kind = self.wanted_network()?.map(|wanted| wanted.kind());
        spec.nics = kind.map(VmNetwork::card).into_iter().collect();
        let network = kind.and_then(VmNetwork::ready);
        let booted = if self.args.init_system { Some(image.use_init(&mut spec)?) } else { None };
        let rehearse = booted.clone().into_iter().chain(image.rehearse(image.warm())).collect();
        let image = image.name().to_owned();
        Ok(Origin::Image(Box::new(ImageVm { image, spec, network, rehearse, booted })))
    }

    async fn save(
        &self,
        home: &Home,
        guest: &Guest,
        name: &str,
        interrupts: &mut Interrupts,
        report: &mut Report,
    ) -> Result<u8, Failure> {
        match save::save(home, guest, name, interrupts).await? {
            Saved::Interrupted(code) => Ok(code),
            Saved::Snapshot(snapshot) => {
                report.snapshot = Some(snapshot.id().clone());
                if !self.args.json {
                    print(snapshot.id())?;
                }
                Ok(0)
            }
        }
    }

    /// Prints a message on stderr, beside the command's output.
    pub(super) fn warn(&self, message: &str) {
        if !self.args.json {
            say(format_args!("{} {}", "kiln:".red().bold(), plain(message)));
        }
    }
}

/// Sets the guest's host name to the user's. The guest keeps its addresses and gets a new machine id.
pub(super) async fn rename(link: &GuestLink, hostname: &str) -> Result<(), Failure> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    let machine_id = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let identity = Identity { hostname: hostname.to_owned(), machine_id, macs: vec![] };
    let renamed = link.renew(Renewal::of(identity), RENEW_DEADLINE).await;
    renamed.map_err(|error| {
        Failure::new(
            VM,
            anyhow::Error::new(error).context(format!("failed to set the guest's host name to `{hostname}`")),
        )
    })
}

/// Prints the title of each finding in the guest's kernel log once, except a crash that ended the run: it is in
/// `outcome`. And whether this host's disk was full.
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
    if guest.watch().lacked_space() {
        let what = "this host had no space left for what the guest wrote to its disk: the guest got an I/O error";
        say(format_args!("{} {what}", "kiln:".yellow().bold()));
    }
}

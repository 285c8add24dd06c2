//! Starts the guest of a run: forks it, or boots it.
//!
//! ```text
//!   --from ──▶ snapshot ──▶ fork ──▶ Guest
//!
//!   spec ──▶ ready-made snapshot ──▶ fork ──▶ Guest
//!              │ can't be made      │ fails
//!              └──── a warning ─────┴──────▶ boot ──▶ Guest ◀── --cold, --vhost-user
//! ```

use std::time::{Duration, Instant};

use kiln_engine::link::{LinkError, Renewal, StreamError};
use kiln_engine::snapshot::Snapshot;
use kiln_engine::{Engine as _, ForkPart, ForkSpec, Guest, QemuEngine, Renew, RestoreError, VmSpec};
use kiln_wire::{ExecRequest, Network};
use owo_colors::OwoColorize as _;

use super::job::Times;
use super::report::Start;
use crate::args::RunArgs;
use crate::console;
use crate::engine_failure::{launch_failure, ready_failure, restore_failure};
use crate::failure::{Failure, USAGE, VM};
use crate::guest::boot_failure;
use crate::interrupt::Interrupts;
use crate::output::{Progress, plain, say};
use crate::ready::{self, NotMade, Wanted};

/// For the services of an image's own init, which are waited for before the command runs.
const SERVICES_DEADLINE: Duration = Duration::from_secs(330);

/// What a VM is made from.
pub enum Origin {
    /// A VM of an image.
    Image(Box<ImageVm>),
    /// The snapshot that `--from` names.
    Snapshot(Box<Snapshot>),
}

/// A VM of an image, which is booted once and then forked.
pub struct ImageVm {
    /// The image's name.
    pub image: String,
    pub spec: VmSpec,
    /// What its network cards are connected to before it is saved.
    pub network: Option<Network>,
    /// What it runs before it is saved.
    pub rehearse: Vec<ExecRequest>,
    /// What waits until its own init has booted it, if that does.
    pub booted: Option<ExecRequest>,
}

/// A guest, or kiln's exit code after an interrupt.
pub enum Started {
    Guest(Box<Guest>, Start),
    Interrupted(u8),
}

/// Forks the snapshot that was given, or the ready-made snapshot of the spec, or boots.
pub async fn start(
    engine: &QemuEngine,
    origin: Origin,
    part: &ForkPart,
    args: &RunArgs,
    interrupts: &mut Interrupts,
    progress: &Progress,
    times: &mut Times,
) -> Result<Started, Failure> {
    let ImageVm { image, mut spec, network, rehearse, booted } = match origin {
        Origin::Image(vm) => *vm,
        Origin::Snapshot(snapshot) => {
            progress.say("forking");
            return fork(engine, &snapshot, part, args, interrupts).await;
        }
    };
    progress.say("testing KVM");
    let decided = tokio::select! {
        decided = engine.decide(&spec) => decided.map_err(launch_failure)?,
        code = interrupts.any() => return Ok(Started::Interrupted(code)),
    };
    times.accel = Some(decided);
    spec.acceleration = decided.into();
    let mut left = args.boot_timeout;
    // A VM with a vhost-user device can't be saved, so there is no snapshot to fork.
    if !args.cold && spec.vhost_user.is_empty() {
        let (renew, boot_timeout) = (Renew::IfNeeded, args.boot_timeout);
        let wanted = Wanted { spec: &spec, label: &image, renew, boot_timeout, network, rehearse };
        let since = Instant::now();
        let made = ready::get(engine, wanted, interrupts, progress).await;
        match made {
            Ok(made) => {
                times.ready = made.new.then(|| since.elapsed());
                progress.say("forking");
                let forking = Instant::now();
                match fork(engine, &made.snapshot, part, args, interrupts).await {
                    Ok(started) => return Ok(started),
                    Err(failure) => {
                        // The fork and the boot share one deadline, since the user waits for a VM either way.
                        left = left.saturating_sub(forking.elapsed());
                        if left.is_zero() {
                            return Err(failure);
                        }
                        warn(&failure);
                    }
                }
            }
            Err(NotMade::Interrupted(code)) => return Ok(Started::Interrupted(code)),
            Err(NotMade::Failed(error)) if ready::a_boot_may_succeed(&error) => {
                warn(&ready_failure(error, args.boot_timeout, &image));
            }
            Err(NotMade::Failed(error)) => return Err(ready_failure(error, args.boot_timeout, &image)),
        }
    }
    progress.say("booting");
    for (nic, part) in spec.nics.iter_mut().zip(&part.nics) {
        nic.attachment = part.attachment.clone();
        nic.mac = part.mac.unwrap_or(nic.mac);
    }
    let guest = tokio::select! {
        guest = Guest::start(engine, spec, left, console::watch(args.console)) => {
            guest.map_err(|error| boot_failure(error, args.boot_timeout))?
        }
        code = interrupts.any() => return Ok(Started::Interrupted(code)),
    };
    if let Some(booted) = booted {
        progress.say(format!("waiting for the services of {image}"));
        let waited = tokio::select! {
            waited = tokio::time::timeout(SERVICES_DEADLINE, guest.link.run(booted, b"", 0)) => waited,
            code = interrupts.any() => return Ok(Started::Interrupted(code)),
        };
        // An image without a shell can't be asked.
        if let Ok(Err(error @ StreamError::LinkLost(_))) = waited {
            return Err(Failure::new(VM, error));
        }
    }
    if !part.mounts.is_empty() || part.network.is_some() {
        // A fork gets both with its first sync.
        let renewal = Renewal { mounts: part.mounts.clone(), network: part.network.clone(), ..Renewal::default() };
        let renewed = tokio::select! {
            renewed = guest.link.renew(renewal, args.boot_timeout) => renewed,
            code = interrupts.any() => return Ok(Started::Interrupted(code)),
        };
        renewed.map_err(|error| Failure::new(VM, error))?;
    }
    Ok(Started::Guest(Box::new(guest), Start::Boot))
}

async fn fork(
    engine: &QemuEngine,
    snapshot: &Snapshot,
    part: &ForkPart,
    args: &RunArgs,
    interrupts: &mut Interrupts,
) -> Result<Started, Failure> {
    if part.network.is_some() && snapshot.manifest().spec.nics.len() != 1 {
        let failure = Failure::words(USAGE, "the snapshot has no network card, so --net can't connect it");
        return Err(failure.hint("make the snapshot with --net, too: kiln snapshot create NAME --net nat -- COMMAND"));
    }
    let forks = ForkSpec { deadline: args.boot_timeout, parts: vec![part.clone()], ..ForkSpec::default() };
    let forked = tokio::select! {
        forked = Guest::fork(engine, snapshot, forks, console::watch(args.console)) => forked,
        code = interrupts.any() => return Ok(Started::Interrupted(code)),
    };
    Ok(Started::Guest(Box::new(forked.map_err(|error| fork_failure(error, args.boot_timeout))?), Start::Fork))
}

fn fork_failure(error: RestoreError, boot_timeout: Duration) -> Failure {
    match error {
        RestoreError::Link(LinkError::TimedOut { .. }) => {
            Failure::words(VM, format!("the guest did not come up within {boot_timeout:?}"))
                .hint("raise --boot-timeout")
        }
        other => restore_failure(other),
    }
}

fn warn(failure: &Failure) {
    say(format_args!(
        "{} booting, because no fork could be made: {}",
        "kiln:".yellow().bold(),
        plain(&failure.message())
    ));
    if let Some(hint) = failure.hint_text() {
        say(format_args!("{} {}", "hint:".cyan(), plain(hint)));
    }
}

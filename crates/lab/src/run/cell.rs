//! Prepares the VM of a cell, once, and saves it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiln_detect::{Finding, Severity};
use kiln_engine::guest::Watch;
use kiln_engine::link::GuestLink;
use kiln_engine::snapshot::{AfterSave, Snapshot, SnapshotRequest};
use kiln_engine::{
    BoxFuture, Engine, ForkSpec, Guest, ReadyError, ReadyRequest, ReadyStep, RestoreError, SaveError, VmSpec,
};
use tokio::time::timeout;

use crate::Cell;
use crate::plan::{Plan, VmPlan};

/// Bytes of a failed script's output that its error has.
const OUTPUT_BYTES_MAX: u64 = 4 << 10;

/// Why a host can't provide what a plan asks for.
pub type HostError = Box<dyn std::error::Error + Send + Sync>;

/// A VM of a cell.
#[derive(Debug, Clone)]
pub struct CellVm {
    /// Its spec.
    pub spec: VmSpec,
    /// Variables of each command: those of the image, and the devices of the plan's disks.
    pub env: Vec<(String, String)>,
}

/// What knows the images, kernels and files of this host.
pub trait Host: Send + Sync {
    /// The VM that a plan describes.
    fn vm<'a>(&'a self, vm: &'a VmPlan) -> BoxFuture<'a, Result<CellVm, HostError>>;

    /// Copies a file or directory of the host into a guest.
    fn copy<'a>(&'a self, link: &'a GuestLink, from: &'a str, to: &'a str) -> BoxFuture<'a, Result<(), HostError>>;
}

/// Why a cell can't be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The host lacks the image, the kernel or a file.
    #[error("{0}")]
    Host(#[source] HostError),
    /// The VM did not boot.
    #[error(transparent)]
    Ready(#[from] ReadyError),
    /// The VM can't be forked.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A file can't be copied.
    #[error("failed to copy `{from}` to `{to}`")]
    Copy {
        /// On the host.
        from: String,
        /// In the guest.
        to: String,
        /// Why.
        #[source]
        source: HostError,
    },
    /// A script failed.
    #[error("the script `{script}` {how}")]
    Script {
        /// The script.
        script: String,
        /// How it ended, and the end of its output.
        how: String,
    },
    /// The kernel reported an error while the scripts ran.
    #[error("the kernel reported: {}", .0.title)]
    Crashed(Box<Finding>),
    /// The VM can't be saved.
    #[error("failed to save the prepared VM")]
    Save(#[from] SaveError),
}

/// A cell that can be forked.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) snapshot: Snapshot,
    pub(super) env: Vec<(String, String)>,
    /// The snapshot was made for this run.
    pub(super) is_own: bool,
}

/// Boots, prepares and saves the VM of a cell. Sets `saving` before something is saved.
pub(super) async fn prepare(
    plan: &Plan,
    cell: &Cell,
    engine: &dyn Engine,
    host: &dyn Host,
    saving: &AtomicBool,
) -> Result<Prepared, PrepareError> {
    let vm = cell.vm(plan);
    let CellVm { spec, mut env } = host.vm(&vm).await.map_err(PrepareError::Host)?;
    env.extend(vm.env.clone());
    let mut step = |step| {
        saving.fetch_or(step != ReadyStep::Booting, Ordering::Relaxed);
    };
    let request = ReadyRequest::new(&spec, &vm.image, vm.boot_timeout);
    let ready = engine.ready(ReadyRequest { progress: Some(&mut step), ..request }).await?;
    saving.store(false, Ordering::Relaxed);
    let prepare = &plan.prepare;
    if prepare.run.is_empty() && prepare.copy.is_empty() {
        return Ok(Prepared { snapshot: ready, env, is_own: false });
    }
    let forks = ForkSpec { deadline: vm.boot_timeout, ..ForkSpec::default() };
    let guest = Guest::fork(engine, &ready, forks, Watch::default()).await?;
    for (from, to) in &prepare.copy {
        let copied = host.copy(&guest.link, from, to).await;
        copied.map_err(|source| PrepareError::Copy { from: from.clone(), to: to.clone(), source })?;
    }
    for script in &prepare.run {
        run_script(&guest, script, &env, prepare.timeout).await?;
    }
    if let Some(finding) = guest.findings().into_iter().find(|finding| finding.severity > Severity::Warning) {
        return Err(PrepareError::Crashed(Box::new(finding)));
    }
    let label = format!("lab: {} [{cell}]", plan.name);
    let request = SnapshotRequest { link: Some(&guest.link), then: AfterSave::End, label };
    saving.store(true, Ordering::Relaxed);
    let snapshot = guest.vm.snapshot(request).await?;
    Ok(Prepared { snapshot, env, is_own: true })
}

async fn run_script(
    guest: &Guest,
    script: &str,
    env: &[(String, String)],
    deadline: Duration,
) -> Result<(), PrepareError> {
    let failed = |how: String| PrepareError::Script { script: script.to_owned(), how };
    let mut command = guest.command("sh");
    command.args(["-c", script]).envs(env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    command.output_bytes_max(OUTPUT_BYTES_MAX);
    let output = tokio::select! {
        output = timeout(deadline, command.output()) => output,
        gone = guest.gone() => return Err(match gone {
            kiln_engine::guest::Gone::Crashed(finding) => PrepareError::Crashed(finding),
            gone => failed(format!("ended with its guest: {gone}")),
        }),
    };
    let output = match output {
        Ok(output) => output.map_err(|error| failed(format!("could not run: {error}")))?,
        Err(_) => return Err(failed(format!("did not end within {deadline:?}"))),
    };
    if output.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(if output.stderr.is_empty() { &output.stdout } else { &output.stderr });
    let last: Vec<_> = words.lines().rev().take(3).collect();
    let last: Vec<_> = last.into_iter().rev().collect();
    Err(failed(format!("ended with exit code {}: {}", output.exited.status.shell_code(), last.join(" / "))))
}

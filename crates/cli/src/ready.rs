//! Ready-made snapshots for commands: shows progress, and leaves nothing behind when the user interrupts.
//!
//! ```text
//!   spec ──▶ engine.ready ──▶ Snapshot
//!                 │ Ctrl-C while it boots: dropped, and its VM is killed
//!                 └ Ctrl-C while it saves: the save is finished first, so that no snapshot is left without a name
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiln_engine::link::LinkError;
use kiln_engine::snapshot::Snapshot;
use kiln_engine::{Engine, LaunchError, ReadyError, ReadyRequest, ReadyStep, Renew, VmSpec};
use kiln_wire::{ExecRequest, Network};

use crate::interrupt::Interrupts;
use crate::output::Progress;

/// For the rest of a save after Ctrl-C, which writes and reads some 100 MiB.
const FINISH_DEADLINE: Duration = Duration::from_secs(30);

/// The snapshot that a command needs.
pub struct Wanted<'a> {
    pub spec: &'a VmSpec,
    /// The image's name, for the list of snapshots.
    pub label: &'a str,
    pub renew: Renew,
    pub boot_timeout: Duration,
    /// What the network cards of its forks are connected to.
    pub network: Option<Network>,
    /// What its VM runs before it is saved.
    pub rehearse: Vec<ExecRequest>,
}

/// A ready-made snapshot.
pub struct Made {
    pub snapshot: Snapshot,
    /// It did not exist before.
    pub new: bool,
}

/// Why a command has no snapshot.
pub enum NotMade {
    /// Something failed.
    Failed(ReadyError),
    /// A signal arrived; kiln exits with this code.
    Interrupted(u8),
}

/// The ready-made snapshot of a spec. Makes it if it does not exist.
pub async fn get(
    engine: &dyn Engine,
    wanted: Wanted<'_>,
    interrupts: &mut Interrupts,
    progress: &Progress,
) -> Result<Made, NotMade> {
    let Wanted { spec, label, renew, boot_timeout, network, rehearse } = wanted;
    let (begun, saving) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut say = |step: ReadyStep| {
        begun.store(true, Ordering::Relaxed);
        progress.say(match step {
            ReadyStep::Booting => format!("booting {label} once, so that later runs fork it"),
            ReadyStep::Saving => format!("saving {label}"),
            ReadyStep::Sealing => format!("sealing the snapshot of {label}"),
        });
        saving.fetch_or(step != ReadyStep::Booting, Ordering::Relaxed);
    };
    let request =
        ReadyRequest { spec, label, renew, boot_deadline: boot_timeout, network, rehearse, progress: Some(&mut say) };
    let mut making = engine.ready(request);
    let code = tokio::select! {
        made = &mut making => {
            let new = begun.load(Ordering::Relaxed);
            return made.map(|snapshot| Made { snapshot, new }).map_err(NotMade::Failed);
        }
        code = interrupts.any() => code,
    };
    if saving.load(Ordering::Relaxed) {
        tokio::select! {
            // The command is interrupted, so it does not use the outcome.
            _ = making => {}
            _ = interrupts.any() => {}
            () = tokio::time::sleep(FINISH_DEADLINE) => {}
        }
    }
    Err(NotMade::Interrupted(code))
}

/// Whether a boot may succeed although no snapshot could be made.
pub fn a_boot_may_succeed(error: &ReadyError) -> bool {
    match error {
        ReadyError::Launch(error) => matches!(error, LaunchError::Directory { .. }),
        // A guest that ends while it boots does so again. That boot prints its console.
        ReadyError::Link(error) => !matches!(error, LinkError::TimedOut { .. } | LinkError::Version { .. }),
        ReadyError::Freeze(_)
        | ReadyError::WarmUp { .. }
        | ReadyError::Rehearsal { .. }
        | ReadyError::Save(_)
        | ReadyError::Snapshot(_) => true,
    }
}

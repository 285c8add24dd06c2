//! Ready-made snapshots, as commands come to them: with words on the way, and without leftovers where somebody interrupts.
//!
//! ```text
//!   spec ──▶ engine.ready ──▶ Snapshot
//!                 │ Ctrl-C while it boots: dropped, and its VM with it
//!                 └ Ctrl-C while it saves: finished first, so that nothing lies there without a name
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiln_engine::link::LinkError;
use kiln_engine::snapshot::Snapshot;
use kiln_engine::{Engine, LaunchError, ReadyError, ReadyRequest, ReadyStep, Renew, VmSpec};

use crate::interrupt::Interrupts;
use crate::output::Progress;

/// For what is left of a save after Ctrl-C: some 100 MiB are written and read.
const FINISH_DEADLINE: Duration = Duration::from_secs(30);

/// What is to be had.
pub struct Wanted<'a> {
    pub spec: &'a VmSpec,
    /// For people: what it is of.
    pub label: &'a str,
    pub renew: Renew,
    pub boot_timeout: Duration,
}

/// A ready-made snapshot.
pub struct Made {
    pub snapshot: Snapshot,
    /// It was made just now.
    pub new: bool,
}

/// Why there is none.
pub enum NotMade {
    /// Something failed.
    Failed(ReadyError),
    /// A signal came that ends kiln with this code.
    Interrupted(u8),
}

/// The ready-made snapshot of a spec, made where it is not there.
pub async fn get(
    engine: &dyn Engine,
    wanted: Wanted<'_>,
    interrupts: &mut Interrupts,
    progress: &Progress,
) -> Result<Made, NotMade> {
    let Wanted { spec, label, renew, boot_timeout } = wanted;
    let (begun, saving) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut say = |step: ReadyStep| {
        begun.store(true, Ordering::Relaxed);
        progress.say(match step {
            ReadyStep::Booting => format!("booting {label} once, to fork it from now on"),
            ReadyStep::Saving => format!("saving {label}"),
            ReadyStep::Sealing => format!("sealing the snapshot of {label}"),
        });
        saving.fetch_or(step != ReadyStep::Booting, Ordering::Relaxed);
    };
    let request = ReadyRequest { spec, label, renew, boot_deadline: boot_timeout, progress: Some(&mut say) };
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
            // Whether it was made or not, nobody wants it any more.
            _ = making => {}
            _ = interrupts.any() => {}
            () = tokio::time::sleep(FINISH_DEADLINE) => {}
        }
    }
    Err(NotMade::Interrupted(code))
}

/// Whether a boot without a snapshot may do what this could not.
pub fn a_boot_may_do(error: &ReadyError) -> bool {
    match error {
        ReadyError::Launch(error) => matches!(error, LaunchError::Directory { .. }),
        // One that ends as it boots does so again, and shows its console then.
        ReadyError::Link(error) => !matches!(error, LinkError::TimedOut { .. } | LinkError::Version { .. }),
        ReadyError::WarmUp(_) | ReadyError::Save(_) | ReadyError::Snapshot(_) => true,
    }
}

//! `kiln snapshot create`: a run whose VM is saved if its command exits with 0.
//!
//! ```text
//!   command exits with 0 ─▶ freeze, save ─▶ seal ─▶ the snapshot has its name
//!       │ other code         │ Ctrl-C: the save is finished, then the snapshot is removed
//!       └─▶ nothing saved    └─▶ nothing saved
//! ```

use std::time::Duration;

use kiln_engine::home::Home;
use kiln_engine::snapshot::{AfterSave, Snapshot, SnapshotRequest, SnapshotStore};
use kiln_engine::{Guest, SaveError};
use tokio::task::spawn_blocking;

use crate::engine_failure::{save_failure, snapshot_failure};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output::Progress;

/// For the rest of a save after Ctrl-C, which writes and reads some 100 MiB.
const FINISH_DEADLINE: Duration = Duration::from_secs(30);

/// A snapshot, or the code that an interrupt ends kiln with.
pub(super) enum Saved {
    Snapshot(Snapshot),
    Interrupted(u8),
}

/// Saves a guest under a name. This ends its VM.
pub(super) async fn save(
    home: &Home,
    guest: &Guest,
    name: &str,
    interrupts: &mut Interrupts,
) -> Result<Saved, Failure> {
    let progress = Progress::start(format!("saving {name}"));
    let saving = async {
        let request = SnapshotRequest { link: Some(&guest.link), then: AfterSave::End, label: name.into() };
        let snapshot = guest.vm.snapshot(request).await?;
        progress.say(format!("sealing {name}"));
        let sealed = snapshot.clone();
        spawn_blocking(move || sealed.seal()).await.expect("sealing does not panic, and the task is not aborted")?;
        Ok::<_, SaveError>(snapshot)
    };
    tokio::pin!(saving);
    let code = tokio::select! {
        saved = &mut saving => return saved.map(Saved::Snapshot).map_err(save_failure),
        code = interrupts.any() => code,
    };
    // Dropping the future would not stop a save whose last step already runs on a thread: it could still publish its
    // snapshot after kiln reported that nothing was saved. So the save is finished, and its snapshot is removed.
    let finished = tokio::select! {
        finished = &mut saving => finished.ok(),
        _ = interrupts.any() => None,
        () = tokio::time::sleep(FINISH_DEADLINE) => None,
    };
    if let Some(snapshot) = finished {
        let (store, id) = (SnapshotStore::new(home), snapshot.id().clone());
        drop(snapshot);
        let removed = spawn_blocking(move || store.remove(&id)).await.expect("removing does not panic");
        removed.map_err(snapshot_failure)?;
    }
    Ok(Saved::Interrupted(code))
}

//! Errors of the engine as failures of a command: the exit code, and what the user can do.

use std::time::Duration;

use kiln_engine::link::LinkError;
use kiln_engine::snapshot::SnapshotError;
use kiln_engine::{LaunchError, ReadyError, RestoreError, SaveError};

use crate::failure::{Failure, HOST, USAGE, VM};
use crate::hints;

/// A failure to launch, with what the user can do.
pub fn launch_failure(error: LaunchError) -> Failure {
    let code = if matches!(error, LaunchError::Spec(_)) { USAGE } else { HOST };
    let hint = hints::launch(&error);
    Failure::new(code, error).maybe_hint(hint)
}

/// A failure to make a ready-made snapshot, with what the user can do.
pub fn ready_failure(error: ReadyError, boot_timeout: Duration) -> Failure {
    match error {
        ReadyError::Launch(error) => launch_failure(error),
        ReadyError::Link(LinkError::TimedOut { .. }) => {
            Failure::words(VM, format!("the guest did not come up within {boot_timeout:?}"))
                .hint("give it longer with --boot-timeout, or see its console with kiln run --cold --console")
        }
        ReadyError::Link(error @ LinkError::Version { .. }) => {
            Failure::new(VM, error).hint("the image holds another agent: kiln image build mini")
        }
        ReadyError::Save(error) => save_failure(error),
        ReadyError::Snapshot(error) => snapshot_failure(error),
        other => Failure::new(1, other).hint("see what its console says with kiln run --cold --console -- true"),
    }
}

/// A failure with a snapshot, with what the user can do.
pub fn snapshot_failure(error: SnapshotError) -> Failure {
    let code = if matches!(error, SnapshotError::NoSpace { .. }) { HOST } else { 1 };
    let hint = hints::snapshot(&error);
    Failure::new(code, error).hint_where_not_writable().maybe_hint(hint)
}

/// A failure to fork a snapshot, with what the user can do.
pub fn restore_failure(error: RestoreError) -> Failure {
    let of_host = matches!(
        error,
        RestoreError::Launch(_) | RestoreError::Budget { .. } | RestoreError::Snapshot(SnapshotError::NoSpace { .. })
    );
    let hint = hints::restore(&error);
    Failure::new(if of_host { HOST } else { 1 }, error).hint_where_not_writable().maybe_hint(hint)
}

/// A failure to save a VM, with what the user can do.
pub fn save_failure(error: SaveError) -> Failure {
    let of_host = matches!(error, SaveError::Snapshot(SnapshotError::NoSpace { .. }));
    let hint = hints::save(&error);
    Failure::new(if of_host { HOST } else { 1 }, error).hint_where_not_writable().maybe_hint(hint)
}

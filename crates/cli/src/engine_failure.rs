//! Errors of the engine as failures of a command: each gets an exit code and a hint.

use std::time::Duration;

use kiln_engine::link::LinkError;
use kiln_engine::snapshot::SnapshotError;
use kiln_engine::{LaunchError, ReadyError, RestoreError, SaveError};

use crate::failure::{Failure, HOST, USAGE, VM};
use crate::hints;

/// A failure to launch a VM.
pub fn launch_failure(error: LaunchError) -> Failure {
    let code = if matches!(error, LaunchError::Spec(_)) { USAGE } else { HOST };
    let hint = hints::launch(&error);
    Failure::new(code, error).maybe_hint(hint)
}

/// A failure to make a ready-made snapshot.
pub fn ready_failure(error: ReadyError, boot_timeout: Duration) -> Failure {
    match error {
        ReadyError::Launch(error) => launch_failure(error),
        ReadyError::Link(LinkError::TimedOut { .. }) => {
            Failure::words(VM, format!("the guest did not come up within {boot_timeout:?}"))
                .hint("raise --boot-timeout, or look at the guest's console: kiln run --cold --console -- true")
        }
        ReadyError::Link(error @ LinkError::Version { .. }) => Failure::new(VM, error)
            .hint("the image has another version of the agent, so build it again: kiln image build mini"),
        ReadyError::Save(error) => save_failure(error),
        ReadyError::Snapshot(error) => snapshot_failure(error),
        other => Failure::new(1, other).hint("look at the guest's console: kiln run --cold --console -- true"),
    }
}

/// A failure of a snapshot's files.
pub fn snapshot_failure(error: SnapshotError) -> Failure {
    let code = if matches!(error, SnapshotError::NoSpace { .. }) { HOST } else { 1 };
    let hint = hints::snapshot(&error);
    Failure::new(code, error).hint_if_not_writable().maybe_hint(hint)
}

/// A failure to fork a snapshot.
pub fn restore_failure(error: RestoreError) -> Failure {
    let of_host = matches!(
        error,
        RestoreError::Launch(_) | RestoreError::Budget { .. } | RestoreError::Snapshot(SnapshotError::NoSpace { .. })
    );
    let hint = hints::restore(&error);
    Failure::new(if of_host { HOST } else { 1 }, error).hint_if_not_writable().maybe_hint(hint)
}

/// A failure to save a VM.
pub fn save_failure(error: SaveError) -> Failure {
    let of_host = matches!(error, SaveError::Snapshot(SnapshotError::NoSpace { .. }));
    let hint = hints::save(&error);
    Failure::new(if of_host { HOST } else { 1 }, error).hint_if_not_writable().maybe_hint(hint)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use kiln_engine::snapshot::SnapshotId;

    use super::*;

    /// What a failure adds to the engine's error: the exit code, the message if it is this crate's, and the hint.
    fn added(name: &str, failure: &Failure) -> String {
        let message = if failure.message().starts_with("the guest did not") { failure.message() } else { "…".into() };
        format!("{name}: exit code {}: {message}\n  hint: {}", failure.code, failure.hint_text().unwrap_or("-"))
    }

    #[test]
    fn every_failure_has_an_exit_code_and_a_hint() {
        let id: SnapshotId = "0123456789abcdef".parse().expect("an id");
        let snapshot = |kind: ErrorKind| SnapshotError::Io { what: "read", path: "/s".into(), source: kind.into() };
        let full = || SnapshotError::NoSpace { path: "/s".into(), source: ErrorKind::StorageFull.into() };
        let missing = || LaunchError::VmmMissing { program: "qemu-system-x86_64".into() };
        let timeout = Duration::from_secs(60);
        let ready = |error| ready_failure(error, timeout);
        let late = LinkError::TimedOut { waiting_for: "hello", waited: timeout };
        let version = LinkError::Version { ours: 2, theirs: 1 };
        let closed = LinkError::Closed { waiting_for: "hello" };
        let machine =
            || RestoreError::OtherMachine { id: id.clone(), what: "QEMU", saved: "7.2".into(), here: "10.0".into() };
        let failures = [
            added("launch, no QEMU", &launch_failure(missing())),
            added("ready, no QEMU", &ready(ReadyError::Launch(missing()))),
            added("ready, timed out", &ready(ReadyError::Link(late))),
            added("ready, another agent", &ready(ReadyError::Link(version))),
            added("ready, link closed", &ready(ReadyError::Link(closed))),
            added("ready, disk full", &ready(ReadyError::Snapshot(full()))),
            added("snapshot, unknown", &snapshot_failure(SnapshotError::Unknown(id.clone()))),
            added("snapshot, disk full", &snapshot_failure(full())),
            added("snapshot, not this user's", &snapshot_failure(snapshot(ErrorKind::PermissionDenied))),
            added("snapshot, unreadable", &snapshot_failure(snapshot(ErrorKind::InvalidData))),
            added("restore, no QEMU", &restore_failure(RestoreError::Launch(missing()))),
            added("restore, another machine", &restore_failure(machine())),
            added("restore, too many", &restore_failure(RestoreError::Budget { count: 9, why: "memory".into() })),
            added("save, disk full", &save_failure(SaveError::Snapshot(full()))),
            added("save, busy", &save_failure(SaveError::Busy)),
        ];
        insta::assert_snapshot!(failures.join("\n"));
    }
}

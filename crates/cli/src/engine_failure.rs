//! Errors of the engine as failures of a command: each gets an exit code and a hint.

use std::time::Duration;

use kiln_engine::link::{LinkError, StreamError};
use kiln_engine::network::NetworkError;
use kiln_engine::snapshot::SnapshotError;
use kiln_engine::{LaunchError, ReadyError, RestoreError, SaveError};
use kiln_wire::ErrorCode;

use crate::failure::{Failure, HOST, USAGE, VM};
use crate::hints;

/// A failure to launch a VM.
pub fn launch_failure(error: LaunchError) -> Failure {
    let code = if matches!(error, LaunchError::Spec(_)) { USAGE } else { HOST };
    let hint = hints::launch(&error);
    Failure::new(code, error).maybe_hint(hint)
}

/// A failure to make a ready-made snapshot.
pub fn ready_failure(error: ReadyError, boot_timeout: Duration, image: &str) -> Failure {
    match error {
        ReadyError::Rehearsal { .. } => {
            let hint = hints::rehearsal(&error, image);
            Failure::new(1, error).maybe_hint(hint)
        }
        ReadyError::WarmUp { source: StreamError::Fault(ref fault), .. }
            if matches!(fault.code, ErrorCode::CommandNotFound | ErrorCode::NotExecutable) =>
        {
            Failure::new(1, error).hint(format!(
                "--run needs `/bin/sh` in the image; make the snapshot without it: kiln image warm {image} --no-run"
            ))
        }
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

/// A failure of a VM's network, or of one that VMs share.
pub fn network_failure(error: NetworkError) -> Failure {
    let (hint, code) = (error.hint(), if error.is_usage() { USAGE } else { HOST });
    Failure::new(code, error).maybe_hint(hint)
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
    use std::iter::successors;

    use kiln_engine::home::HomeError;
    use kiln_engine::host::KvmState;
    use kiln_engine::snapshot::SnapshotId;
    use kiln_engine::{ControlError, SpecError, Tap, TapError, VmmError, VmmStatus};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn id() -> SnapshotId {
        "0123456789abcdef".parse().expect("an id")
    }

    /// What a failure adds to the engine's error: the exit code, the message if it is this crate's, and the hint.
    fn added(name: &str, failure: &Failure) -> String {
        let message = if failure.message().starts_with("the guest did not") { failure.message() } else { "…".into() };
        format!("{name}: exit code {}: {message}\n  hint: {}\n", failure.code, failure.hint_text().unwrap_or("-"))
    }

    /// A line for each error, named by its variant.
    fn lines<E: std::fmt::Debug>(errors: impl Iterator<Item = E>, failure: impl Fn(E) -> Failure) -> String {
        let variant = |error: &E| {
            let text = format!("{error:?}");
            text.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
        };
        errors.map(|error| added(&variant(&error), &failure(error))).collect()
    }

    // In the chains below each variant names the next one. So a new variant does not compile before it has a place, and
    // its exit code and hint are in the snapshot.

    fn launch_errors() -> impl Iterator<Item = LaunchError> {
        use LaunchError as E;
        let io = |kind: ErrorKind| kind.into();
        let program = || "qemu-system-x86_64".into();
        let tap = || Tap { device: "tap0".into(), namespace: None };
        let device = || "the disk of `/b.sock`".into();
        let late = || VmmError::Deadline { command: "cont".into(), waited: TIMEOUT };
        successors(Some(E::Spec(SpecError::NoFile { what: "kernel", path: "/k".into() })), move |last| match last {
            E::Spec(_) => Some(E::Home(HomeError::Unset)),
            E::Home(_) => Some(E::Unsupported { driver: "fake", what: "disks" }),
            // Only the engine can make an error of a policy.
            E::Unsupported { .. } | E::Policy(_) => Some(E::VmmMissing { program: program() }),
            E::VmmMissing { .. } => Some(E::NoKvm(KvmState::Denied)),
            E::NoKvm(_) => Some(E::Image { path: "/i".into(), source: io(ErrorKind::InvalidData) }),
            E::Image { .. } => Some(E::Directory { path: "/d".into(), source: io(ErrorKind::PermissionDenied) }),
            E::Directory { .. } => Some(E::Spawn { program: program(), source: io(ErrorKind::PermissionDenied) }),
            E::Spawn { .. } => {
                Some(E::VmmFailed { program: program(), status: VmmStatus::Code(1), stderr: "words".into() })
            }
            E::VmmFailed { .. } => Some(E::Attachment { index: 0, tap: tap(), source: TapError::NoDevice }),
            E::Attachment { .. } => {
                let source = ErrorKind::ConnectionRefused.into();
                Some(E::Stream { index: 0, socket: "/run/net.sock".into(), source })
            }
            E::Stream { .. } => Some(E::Backend { device: device(), problem: "closed the connection".into() }),
            E::Backend { .. } => Some(E::Monitor { program: program(), source: late() }),
            E::Monitor { .. } => None,
        })
    }

    fn snapshot_errors() -> impl Iterator<Item = SnapshotError> {
        use SnapshotError as E;
        let broken = || E::Broken { id: id(), file: "memory".into(), problem: "does not match".into() };
        successors(Some(E::Unknown(id())), move |last| match last {
            E::Unknown(_) => Some(E::MissingLink { of: id(), missing: id() }),
            E::MissingLink { .. } => Some(broken()),
            E::Broken { .. } => Some(E::InUse { id: id(), by: "by a VM".into() }),
            E::InUse { .. } => Some(E::ChainTooLong { id: id(), max: 16 }),
            E::ChainTooLong { .. } => Some(E::Locked { path: "/s".into(), waited: TIMEOUT }),
            E::Locked { .. } => Some(E::NoSpace { path: "/s".into(), source: ErrorKind::StorageFull.into() }),
            E::NoSpace { .. } => Some(unreadable(ErrorKind::PermissionDenied)),
            // Fail points are only in builds for tests.
            E::Io { .. } | E::FailPoint(_) => None,
        })
    }

    fn unreadable(kind: ErrorKind) -> SnapshotError {
        SnapshotError::Io { what: "read", path: "/s".into(), source: kind.into() }
    }

    fn ready_errors() -> impl Iterator<Item = ReadyError> {
        use ReadyError as E;
        successors(Some(E::Launch(LaunchError::VmmMissing { program: "qemu".into() })), |last| match last {
            E::Launch(_) => Some(E::Link(LinkError::Closed { waiting_for: "hello" })),
            E::Link(_) => Some(E::Freeze(StreamError::LinkLost("it closed".into()))),
            E::Freeze(_) => {
                let source = StreamError::LinkLost("it closed".into());
                Some(E::WarmUp { command: "/bin/true".into(), source })
            }
            E::WarmUp { .. } => {
                Some(E::Rehearsal { command: "/bin/sh -c false".into(), code: 1, stderr: "not today".into() })
            }
            E::Rehearsal { .. } => Some(E::Save(SaveError::Busy)),
            E::Save(_) => Some(E::Snapshot(SnapshotError::Unknown(id()))),
            E::Snapshot(_) => None,
        })
    }

    #[test]
    fn every_launch_error_has_an_exit_code() {
        insta::assert_snapshot!(lines(launch_errors(), launch_failure));
    }

    #[test]
    fn every_snapshot_error_has_an_exit_code() {
        let more = [unreadable(ErrorKind::InvalidData)];
        insta::assert_snapshot!(lines(snapshot_errors().chain(more), snapshot_failure));
    }

    #[test]
    fn every_failure_of_a_ready_made_snapshot_has_an_exit_code() {
        let late = || ReadyError::Link(LinkError::TimedOut { waiting_for: "hello", waited: TIMEOUT });
        let version = ReadyError::Link(LinkError::Version { ours: 2, theirs: 1 });
        let full = SnapshotError::NoSpace { path: "/s".into(), source: ErrorKind::StorageFull.into() };
        let more = [late(), version, ReadyError::Snapshot(full)];
        insta::assert_snapshot!(lines(ready_errors().chain(more), |error| ready_failure(error, TIMEOUT, "IMAGE")));
    }

    #[test]
    fn failures_to_save_and_restore_have_exit_codes() {
        let full = || SnapshotError::NoSpace { path: "/s".into(), source: ErrorKind::StorageFull.into() };
        let machine = RestoreError::OtherMachine { id: id(), what: "QEMU", saved: "7.2".into(), here: "10.0".into() };
        let missing = LaunchError::VmmMissing { program: "qemu-system-x86_64".into() };
        let restores = [
            machine,
            RestoreError::Launch(missing),
            RestoreError::Budget { count: 9, why: "memory".into() },
            RestoreError::Snapshot(full()),
        ];
        let saves = [
            SaveError::Unmigratable { device: "a disk".into() },
            SaveError::NotForkable,
            SaveError::Busy,
            SaveError::Vmm(ControlError::Ended),
            SaveError::Snapshot(full()),
        ];
        let restored = lines(restores.into_iter(), restore_failure);
        insta::assert_snapshot!(format!("{restored}{}", lines(saves.into_iter(), save_failure)));
    }
}

//! Hints for the engine's errors: what the user can do, with the commands of this program.

use std::io;

use kiln_engine::snapshot::SnapshotError;
use kiln_engine::{ErrorKind, LaunchError, ReadyError, RestoreError, SaveError, SpecError, Tap, TapError};

/// A shell's exit code for a program that it did not find.
const NOT_FOUND: i32 = 127;
/// A shell's exit code for a program that SIGKILL ended.
const KILLED: i32 = 137;

/// A hint for a VM that did not start.
pub fn launch(error: &LaunchError) -> Option<String> {
    match error {
        LaunchError::VmmMissing { program } if program.as_str().contains("qemu") => {
            Some("apt-get install --no-install-recommends qemu-system-x86".into())
        }
        LaunchError::NoKvm(state) => Some(state.hint()),
        LaunchError::Home(error) => Some(error.hint()),
        LaunchError::Spec(SpecError::NoFile { what: "kernel" | "initramfs", .. }) => {
            Some("kiln image build mini".into())
        }
        LaunchError::Spec(SpecError::Backend { .. }) => {
            Some("start the backend first: it must listen on its socket before the VM starts".into())
        }
        LaunchError::Attachment { tap, source, .. } => attachment(tap, source),
        LaunchError::Backend { .. } => {
            Some("check the backend's log; `kiln vhost probe SOCKET` shows what the backend supports".into())
        }
        LaunchError::Directory { source, .. }
            if matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) =>
        {
            Some("set KILN_HOME to a directory that you can write to".into())
        }
        _ => None,
    }
}

/// A hint for a TAP device that was not opened.
fn attachment(tap: &Tap, error: &TapError) -> Option<String> {
    match error {
        TapError::NoDevice => {
            let namespace = tap.namespace.as_ref().map(|path| format!("nsenter --net={path} ")).unwrap_or_default();
            Some(format!("{namespace}ip tuntap add {} mode tap", tap.device))
        }
        TapError::NotTap => Some("use a TAP device without `multi_queue`: ip tuntap add NAME mode tap".into()),
        TapError::Busy => Some("stop the VM or the program that uses the device, or use another device".into()),
        TapError::NoTun(_) if error.kind() == ErrorKind::HostLacks => Some("modprobe tun".into()),
        _ if error.kind() == ErrorKind::Denied => Some("run kiln as root, or as the user that owns the device".into()),
        _ => None,
    }
}

/// A hint for an error of a snapshot.
pub fn snapshot(error: &SnapshotError) -> Option<String> {
    match error {
        SnapshotError::Unknown(_) => Some("kiln snapshot ls lists the snapshots".into()),
        SnapshotError::Broken { id, .. } | SnapshotError::MissingLink { of: id, .. } => {
            Some(format!("remove it with kiln snapshot rm {id}; kiln run makes a ready-made snapshot again"))
        }
        SnapshotError::ChainTooLong { id, .. } => Some(format!("kiln snapshot compact {id}")),
        SnapshotError::NoSpace { .. } => {
            Some("kiln snapshot ls shows the size of each snapshot, kiln snapshot rm removes one".into())
        }
        _ => None,
    }
}

/// A hint for a line of `kiln image warm --run` that failed.
pub fn rehearsal(error: &ReadyError, image: &str) -> Option<String> {
    let ReadyError::Rehearsal { command, code, .. } = error else { return None };
    let forget = format!("kiln image warm {image} --no-run forgets the lines");
    Some(match *code {
        NOT_FOUND => format!("a program of the line is not in the image; {forget}"),
        KILLED => format!("the guest may be out of memory: --memory gives it more; {forget}"),
        _ => {
            let line = command.strip_prefix("/bin/sh -c ").unwrap_or(command);
            let line = line.replace('\'', "'\\''");
            format!("see what it does: kiln run --cold --image {image} --entrypoint /bin/sh -- -c '{line}'; {forget}")
        }
    })
}

/// A hint for a VM that was not saved.
pub fn save(error: &SaveError) -> Option<String> {
    match error {
        SaveError::Snapshot(error) => snapshot(error),
        _ => None,
    }
}

/// A hint for a snapshot that was not restored.
pub fn restore(error: &RestoreError) -> Option<String> {
    match error {
        RestoreError::OtherMachine { .. } => {
            Some("boot a VM with --cold, or create the snapshot again on this host".into())
        }
        RestoreError::NoTap { .. } => {
            Some("save a VM whose network cards are unplugged: its snapshot fits any network".into())
        }
        RestoreError::Launch(error) => launch(error),
        RestoreError::Snapshot(error) => snapshot(error),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(error: &str, hint: Option<String>) -> String {
        format!("{error}\n  hint: {}", hint.unwrap_or("-".into()))
    }

    #[test]
    fn every_launch_error_with_a_remedy_has_a_hint() {
        let missing = LaunchError::VmmMissing { program: "qemu-system-x86_64".into() };
        let device = || "the disk of `/b.sock`".to_owned();
        let directory = |kind: io::ErrorKind| LaunchError::Directory { path: "/home".into(), source: kind.into() };
        let spec = |error| launch(&LaunchError::Spec(error));
        let no_file = |what| SpecError::NoFile { what, path: "/k".into() };
        let no_backend = SpecError::Backend { device: device(), problem: "has no socket".into() };
        let failed_backend = LaunchError::Backend { device: device(), problem: "closed the connection".into() };
        let hints = [
            line("no QEMU", launch(&missing)),
            line("no kernel", spec(no_file("kernel"))),
            line("no initramfs", spec(no_file("initramfs"))),
            line("no disk", spec(no_file("disk"))),
            line("no backend", spec(no_backend)),
            line("a backend that fails", launch(&failed_backend)),
            line("a directory of another user", launch(&directory(io::ErrorKind::PermissionDenied))),
            line("a read-only file system", launch(&directory(io::ErrorKind::ReadOnlyFilesystem))),
            line("another error of a directory", launch(&directory(io::ErrorKind::NotFound))),
        ];
        insta::assert_snapshot!(hints.join("\n"));
    }

    #[test]
    fn every_tap_error_with_a_remedy_has_a_hint() {
        let attached = |namespace: Option<&str>, source| {
            let tap = Tap { device: "tap0".into(), namespace: namespace.map(Into::into) };
            launch(&LaunchError::Attachment { index: 0, tap, source })
        };
        let not_found = || io::Error::from_raw_os_error(rustix::io::Errno::NOENT.raw_os_error());
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let hints = [
            line("no device", attached(None, TapError::NoDevice)),
            line("no device in its namespace", attached(Some("/run/netns/one"), TapError::NoDevice)),
            line("another kind of device", attached(None, TapError::NotTap)),
            line("busy", attached(None, TapError::Busy)),
            line("no driver", attached(None, TapError::NoTun(not_found()))),
            line("not permitted", attached(None, TapError::Io(denied()))),
        ];
        insta::assert_snapshot!(hints.join("\n"));
    }

    #[test]
    fn every_snapshot_error_with_a_remedy_has_a_hint() {
        let id: kiln_engine::snapshot::SnapshotId = "0123456789abcdef".parse().expect("an id");
        let broken = SnapshotError::Broken { id: id.clone(), file: "memory".into(), problem: "does not match".into() };
        let full = || SnapshotError::NoSpace { path: "/s".into(), source: io::ErrorKind::StorageFull.into() };
        let saved = |error: SnapshotError| save(&SaveError::from(error));
        let machine =
            RestoreError::OtherMachine { id: id.clone(), what: "QEMU", saved: "7.2".into(), here: "10.0".into() };
        let hints = [
            line("unknown", snapshot(&SnapshotError::Unknown(id.clone()))),
            line("broken", snapshot(&broken)),
            line("no parent", snapshot(&SnapshotError::MissingLink { of: id.clone(), missing: id.clone() })),
            line("chain too long", saved(SnapshotError::ChainTooLong { id: id.clone(), max: 32 })),
            line("disk full, when a VM is saved", saved(full())),
            line("disk full, when a VM is restored", restore(&full().into())),
            line("another machine", restore(&machine)),
            line("no TAP device", restore(&RestoreError::NoTap { id, index: 0 })),
            line("no QEMU", restore(&LaunchError::VmmMissing { program: "qemu-system-x86_64".into() }.into())),
        ];
        insta::assert_snapshot!(hints.join("\n"));
    }
}

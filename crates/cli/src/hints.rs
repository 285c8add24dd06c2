//! What a user can do about an error of the engine: the commands of this program.

use std::io;

use kiln_engine::snapshot::SnapshotError;
use kiln_engine::{ErrorKind, LaunchError, RestoreError, SaveError, SpecError, Tap, TapError};

/// About a VM that did not start.
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
            Some("start the backend first: it must listen there before the VM starts".into())
        }
        LaunchError::Attachment { tap, source, .. } => attachment(tap, source),
        LaunchError::Backend { .. } => {
            Some("see what the backend says; `kiln vhost probe SOCKET` asks it what it can do".into())
        }
        LaunchError::Directory { source, .. }
            if matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) =>
        {
            Some("set KILN_HOME to a directory that you may write to".into())
        }
        _ => None,
    }
}

/// About a TAP device that was not opened.
fn attachment(tap: &Tap, error: &TapError) -> Option<String> {
    match error {
        TapError::NoDevice => {
            let namespace = tap.namespace.as_ref().map(|path| format!("nsenter --net={path} ")).unwrap_or_default();
            Some(format!("{namespace}ip tuntap add {} mode tap", tap.device))
        }
        TapError::NotTap => {
            Some("take one that was made without `multi_queue`, by `ip tuntap add NAME mode tap`".into())
        }
        TapError::Busy => Some("end the VM or the program that has it, or take another one".into()),
        TapError::NoTun(_) if error.kind() == ErrorKind::HostLacks => Some("modprobe tun".into()),
        _ if error.kind() == ErrorKind::Denied => Some("run it as root, or as the user that owns the device".into()),
        _ => None,
    }
}

/// About a snapshot.
pub fn snapshot(error: &SnapshotError) -> Option<String> {
    match error {
        SnapshotError::Unknown(_) => Some("kiln snapshot ls".into()),
        SnapshotError::Broken { id, .. } | SnapshotError::MissingLink { of: id, .. } => {
            Some(format!("kiln snapshot rm {id}; the ready-made ones of images are made again when needed"))
        }
        SnapshotError::ChainTooLong { id, .. } => Some(format!("kiln snapshot compact {id}")),
        SnapshotError::NoSpace { .. } => {
            Some("kiln snapshot ls shows what takes space, kiln snapshot rm frees it".into())
        }
        _ => None,
    }
}

/// About a VM that was not saved.
pub fn save(error: &SaveError) -> Option<String> {
    match error {
        SaveError::Snapshot(error) => snapshot(error),
        _ => None,
    }
}

/// About a snapshot that was not restored.
pub fn restore(error: &RestoreError) -> Option<String> {
    match error {
        RestoreError::OtherMachine { .. } => Some("boot a VM with --cold, or take the snapshot anew".into()),
        RestoreError::NoTap { .. } => {
            Some("take the snapshot of a VM whose cards are unplugged: it goes onto any network".into())
        }
        RestoreError::Launch(error) => launch(error),
        RestoreError::Snapshot(error) => snapshot(error),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_helps_is_named_however_deep_the_error_lies() {
        let missing = || LaunchError::VmmMissing { program: "qemu-system-x86_64".into() };
        let package = "apt-get install --no-install-recommends qemu-system-x86";
        assert_eq!(launch(&missing()).as_deref(), Some(package));
        assert_eq!(restore(&missing().into()).as_deref(), Some(package));
        let tap = Tap { device: "tap0".into(), namespace: Some("/run/netns/one".into()) };
        let gone = LaunchError::Attachment { index: 0, tap, source: TapError::NoDevice };
        assert_eq!(launch(&gone).as_deref(), Some("nsenter --net=/run/netns/one ip tuntap add tap0 mode tap"));
        let full = SnapshotError::NoSpace { path: "/s".into(), source: io::ErrorKind::StorageFull.into() };
        assert!(save(&SaveError::from(full)).is_some_and(|hint| hint.contains("kiln snapshot rm")));
    }
}

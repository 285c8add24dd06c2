//! Real backends: what they are known to do otherwise is in `tests/expected`.

use std::path::{Path, PathBuf};

use kiln_vdev::check::{Report, Verdict};
use kiln_vdev::virtio::DeviceKind;

use super::{assert_as_expected, check, disk, expected, spawned, verdict};

/// A program that `scripts/install.sh backends` has built: the one that `variable` names, else the one in this tree.
fn tool(variable: &str, name: &str) -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin").join(name);
    let path = std::env::var_os(variable).map_or_else(built, PathBuf::from);
    assert!(path.is_file(), "no {name} at `{}`: scripts/install.sh backends, or set {variable}", path.display());
    path
}

/// Checks a backend of a folder that is shared.
fn check_fs(command: impl FnOnce(&str) -> String, name: &str) -> Report {
    let shared = tempfile::tempdir().expect("a folder");
    let mut options = spawned(&command(&shared.path().display().to_string()));
    options.device = Some(DeviceKind::Fs);
    options.expected = expected(name);
    check(&options)
}

#[test]
fn qemu_storage_daemon_is_as_it_is_known_to_be() {
    let (_directory, disk) = disk();
    let command = format!(
        "qemu-storage-daemon --blockdev driver=file,filename={},node-name=d0 \
         --export type=vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path={{socket}},writable=on,num-queues=4",
        disk.display()
    );
    let mut options = spawned(&command);
    options.expected = expected("qemu-storage-daemon.toml");
    let report = check(&options);
    assert_as_expected(&report);
    let counts = report.counts();
    assert!(counts.cases - counts.skipped > 250, "{}", report.summary());
    assert!(report.to_junit().contains("SIGSEGV (signal 11) after SET_VRING_NUM index 9999"), "{}", report.to_text());
}

#[test]
fn the_virtiofsd_of_qemu_is_as_it_is_known_to_be() {
    let command =
        |shared: &str| format!("/usr/lib/qemu/virtiofsd --socket-path={{socket}} -o source={shared} -o sandbox=chroot");
    let report = check_fs(command, "virtiofsd-c.toml");
    assert_as_expected(&report);
    assert!(matches!(verdict(&report, "hostile.index-set-vring-num"), Verdict::Crash(how) if how.contains("SIGSEGV")));
}

#[test]
fn virtiofsd_is_as_it_is_known_to_be() {
    let program = tool("KILN_TEST_VIRTIOFSD", "virtiofsd");
    let command = |shared: &str| {
        let program = program.display();
        format!("{program} --socket-path={{socket}} --shared-dir={shared} --sandbox=none --seccomp=none")
    };
    assert_as_expected(&check_fs(command, "virtiofsd.toml"));
}

#[test]
fn vhost_device_vsock_is_as_it_is_known_to_be() {
    let program = tool("KILN_TEST_VHOST_DEVICE_VSOCK", "vhost-device-vsock");
    let command = format!("{} --guest-cid=4 --socket={{socket}} --uds-path={{dir}}/vm.vsock", program.display());
    let mut options = spawned(&command);
    options.device = Some(DeviceKind::Vsock);
    options.expected = expected("vhost-device-vsock.toml");
    assert_as_expected(&check(&options));
}

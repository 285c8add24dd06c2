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

/// Checks a device of rust-vmm's `vhost-device` family.
fn check_device(kind: DeviceKind, command: &str, name: &str) -> Report {
    let mut options = spawned(command);
    options.device = Some(kind);
    options.expected = expected(name);
    check(&options)
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
    assert_as_expected(&check_device(DeviceKind::Vsock, &command, "vhost-device-vsock.toml"));
}

#[test]
fn vhost_device_rng_is_as_it_is_known_to_be() {
    let program = tool("KILN_TEST_VHOST_DEVICE_RNG", "vhost-device-rng");
    // It listens at a name with a 0 behind: one of as many sockets as wished.
    let command = format!("sh -c 'ln -s {{dir}}/s0 {{socket}} && exec {} --socket-path {{dir}}/s'", program.display());
    let report = check_device(DeviceKind::Rng, &command, "vhost-device-rng.toml");
    assert_as_expected(&report);
    assert!(matches!(verdict(&report, "requests.chain-of-two"), Verdict::Hang(_)), "{}", report.to_text());
    assert_eq!(verdict(&report, "requests.used"), &Verdict::Pass);
}

#[test]
fn vhost_device_scsi_is_as_it_is_known_to_be() {
    let program = tool("KILN_TEST_VHOST_DEVICE_SCSI", "vhost-device-scsi");
    let image = "truncate -s 16M {dir}/image";
    let command = format!("sh -c '{image} && exec {} --socket-path {{socket}} {{dir}}/image'", program.display());
    let report = check_device(DeviceKind::Scsi, &command, "vhost-device-scsi.toml");
    assert_as_expected(&report);
    assert_eq!(verdict(&report, "requests.chain-of-many"), &Verdict::Pass);
}

#[test]
fn what_is_known_of_backends_names_rules_that_there_are() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/expected");
    let names = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let files: Vec<_> = names.map(|name| expected(name.to_str().expect("text"))).collect();
    assert_eq!(files.len(), 10, "a file for each backend that was judged");
    assert!(files.iter().all(|file| !file.is_empty()));
}

//! Our own backends break no rule of any level, restarted for each case or running already.

use kiln_vdev::check::{Options, Report, Verdict};
use kiln_vdev::virtio::DeviceKind;

use super::{assert_as_expected, backend, check, disk, failed, spawned, verdict};

/// Checks a backend of ours.
fn check_ours(kind: DeviceKind, beside: &str) -> Report {
    let mut options = spawned(&backend::serve(kind, "", beside));
    options.device = Some(kind);
    let report = check(&options);
    let skipped = verdict(&report, "lifecycle.print-capabilities");
    assert!(matches!(skipped, Verdict::Skip(because) if because.contains("`env` starts the backend")), "{skipped:?}");
    report
}

/// How many rules hold.
fn passed(report: &Report) -> usize {
    report.counts().passed
}

#[test]
fn our_disk_breaks_no_rule() {
    let (_directory, disk) = disk();
    let report = check_ours(DeviceKind::Blk, &disk.display().to_string());
    assert_as_expected(&report);
    assert!(passed(&report) > 330, "{}", report.summary());
}

#[test]
fn our_network_card_breaks_no_rule() {
    let report = check_ours(DeviceKind::Net, "");
    assert_as_expected(&report);
    assert!(passed(&report) > 230, "{}", report.summary());
}

#[test]
fn our_vsock_breaks_no_rule() {
    let report = check_ours(DeviceKind::Vsock, "{dir}/vm.vsock");
    assert_as_expected(&report);
    assert!(passed(&report) > 230, "{}", report.summary());
}

#[test]
fn a_backend_that_runs_already_is_checked_by_one_connection_after_the_other() {
    let (directory, disk) = disk();
    let socket = directory.path().join("backend.sock");
    let server = backend::start(&socket, &disk);
    let options = Options {
        socket: Some(socket),
        device: Some(DeviceKind::Blk),
        only: ["!lifecycle.*", "!hostile.*"].map(str::to_owned).to_vec(),
        ..Options::default()
    };
    let report = check(&options);
    drop(server);
    assert!(failed(&report).is_empty(), "{}", report.to_text());
    assert!(matches!(verdict(&report, "inflight.killed-under-load"), Verdict::Skip(_)));
    assert_eq!(verdict(&report, "resources.stray-descriptors"), &Verdict::Pass);
}

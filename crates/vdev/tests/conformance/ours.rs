//! Our own backend breaks no rule, started afresh for each case or running already.

use kiln_vdev::check::{Options, Verdict};
use kiln_vdev::virtio::DeviceKind;

use super::{backend, check, disk, failed, spawned, verdict};

#[test]
fn our_disk_breaks_no_rule() {
    let (_directory, disk) = disk();
    let mut options = spawned(&backend::command("", &disk));
    // It is a test that serves it here, which has no such option; and two rules that may be kept are not.
    options.only = ["!lifecycle.print-capabilities", "!rings.address-before-memory", "!data.log-fd-accepted"]
        .map(str::to_owned)
        .to_vec();
    let report = check(&options);
    assert!(failed(&report).is_empty(), "{}", report.to_text());
    assert!(report.cases.iter().filter(|case| case.verdict == Verdict::Pass).count() > 300, "{}", report.summary());
}

#[test]
fn a_backend_that_runs_already_is_checked_by_one_connection_after_the_other() {
    let (directory, disk) = disk();
    let socket = directory.path().join("backend.sock");
    let mut server = backend::start(&socket, &disk);
    let options = Options {
        socket: Some(socket),
        device: Some(DeviceKind::Blk),
        only: ["!lifecycle.*", "!hostile.*"].map(str::to_owned).to_vec(),
        ..Options::default()
    };
    let report = check(&options);
    server.kill().expect("it runs");
    server.wait().expect("it ends");
    assert!(failed(&report).is_empty(), "{}", report.to_text());
    assert!(matches!(verdict(&report, "inflight.killed-under-load"), Verdict::Skip(_)));
    assert_eq!(verdict(&report, "resources.stray-descriptors"), &Verdict::Pass);
}

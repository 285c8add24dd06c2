//! Our disk under our own conformance suite: no rule that binds is broken.

use std::collections::BTreeSet;

use kiln_vdev::check::{self, Level, Options};
use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
use kiln_vdev::virtio::DeviceKind;

use super::frontend::Served;

#[test]
fn our_disk_breaks_no_rule() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(16 << 20).expect("grows");
    let disk = Blk::open(&BlkOptions::new(Backing::File(file.path().to_owned()))).expect("a disk");
    let served = Served::new(disk);
    let options = Options {
        socket: Some(served.socket()),
        device: Some(DeviceKind::Blk),
        level: Level::May,
        ..Options::default()
    };
    let report = check::run(&options, &mut |_| {}).expect("it can be checked");
    let failed: Vec<_> = report.cases.iter().filter(|case| case.verdict.is_failure()).collect();
    let ids: BTreeSet<_> = failed.iter().map(|case| (case.level, case.id)).collect();
    assert!(ids.is_empty(), "{ids:#?}\n{}", report.to_text());
}

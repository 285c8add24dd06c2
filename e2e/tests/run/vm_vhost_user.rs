//! Guests with devices of other projects' backends: their data arrives, also if the backend is killed under load.

use std::fs;

use kiln_e2e::{Backend, Kiln};

use crate::vhost::{self, Place};

const CID: u32 = 1234;
/// The storage daemon has no `INFLIGHT_SHMFD`, so QEMU assumes after a kill that requests were completed in order. If
/// there are several, a request that was overtaken is lost, and the guest waits for it forever.
const DEPTH: u64 = 1;
/// Guests from Linux 6.12 on send more than 32 KiB in three or more parts, and vhost-device-vsock accepts two.
const PACKET_BYTES: usize = 16 << 10;

#[test]
fn a_disk_of_qemus_storage_daemon_is_read_and_written() {
    let place = Place::new();
    let disk = place.disk();
    vhost::disk_is_read_and_written(&Backend::storage_daemon(&disk, &place.socket()), &disk, "");
}

#[test]
fn a_storage_daemon_killed_under_load_loses_and_tears_no_block() {
    let place = Place::new();
    let disk = place.disk();
    vhost::disk_survives_kills_under_load(&mut Backend::storage_daemon(&disk, &place.socket()), &disk, DEPTH);
}

#[test]
fn a_share_of_virtiofsd_is_mounted_by_its_tag() {
    let place = Place::new();
    let shared = place.path("shared");
    fs::create_dir(&shared).expect("is made");
    fs::write(shared.join("host"), "from the host").expect("is written");
    let backend = Backend::virtiofsd(&shared, &place.socket());
    let flags = ["--vhost-user", &vhost::device("fs", backend.socket(), ",tag=a-share.1")];
    let script = "mount -t virtiofs a-share.1 /mnt && cat /mnt/host && echo from the guest > /mnt/guest && umount /mnt";
    let outcome = Kiln::shell(&flags, script).run();
    assert_eq!((outcome.code, outcome.text().as_str()), (0, "from the host"), "{}", outcome.stderr);
    assert_eq!(fs::read_to_string(shared.join("guest")).expect("is there"), "from the guest\n");
}

#[test]
fn streams_go_both_ways_over_a_vhost_device_vsock() {
    let place = Place::new();
    let streams = place.path("streams");
    let backend = Backend::vsock_device(CID, &streams, &place.socket());
    vhost::streams_go_both_ways(&backend, &streams, PACKET_BYTES);
}

//! Guests on devices that `kiln vhost mock` serves.

use std::io::{BufRead as _, BufReader, Write as _};

use kiln_e2e::{Backend, Kiln};

use crate::vhost::{self, Place};

const CID: u32 = 1234;
/// Requests in flight when the backend is killed.
const DEPTH: u64 = 4;
const PACKET_BYTES: usize = 64 << 10;

#[test]
fn a_disk_is_read_and_written_with_two_queues() {
    let place = Place::new();
    let disk = place.disk();
    vhost::disk_is_read_and_written(&Backend::mock_disk(&disk, &place.socket()), &disk, ",queues=2");
}

#[test]
fn a_disk_backend_killed_under_load_loses_and_tears_no_block() {
    let place = Place::new();
    let disk = place.disk();
    vhost::disk_survives_kills_under_load(&mut Backend::mock_disk(&disk, &place.socket()), &disk, DEPTH);
}

#[test]
fn every_ping_to_a_host_behind_the_card_is_answered() {
    let place = Place::new();
    vhost::every_ping_is_answered(&Backend::mock_host(&place.socket()));
}

#[test]
#[ignore = "needs /dev/net/tun and a network namespace; `make test` runs it where it finds both"]
fn every_ping_to_the_host_of_a_tap_is_answered() {
    let place = Place::new();
    vhost::every_ping_is_answered(&Backend::mock_tap(&place.socket()));
}

#[test]
fn a_card_continues_after_its_backend_was_restarted() {
    let place = Place::new();
    let mut backend = Backend::mock_host(&place.socket());
    // The thread that reads the first reply kills the backend. Later replies come from another backend.
    let script = "ip addr add 10.77.0.2/24 dev eth0 && ip link set eth0 up && ping -c 1 10.77.0.1 >/dev/null && echo first \
                  && read -r _ && until ping -c 1 -W 1 10.77.0.1 >/dev/null; do :; done && echo second";
    let flags = ["-i", "--timeout", "60s", "--vhost-user", &vhost::device("net", backend.socket(), "")];
    let mut running = Kiln::shell(&flags, script).start();
    let mut lines = BufReader::new(running.0.stdout.take().expect("stdout is piped")).lines();
    let mut next = || lines.next().map(|line| line.expect("text")).unwrap_or_default();
    assert_eq!(next(), "first");
    backend.kill_and_restart();
    running.0.stdin.take().expect("stdin is piped").write_all(b"go on\n").expect("the guest reads");
    assert_eq!((next().as_str(), running.wait()), ("second", 0));
}

#[test]
fn packets_of_64_kib_go_both_ways_over_a_vsock_device() {
    let place = Place::new();
    let streams = place.path("streams");
    let backend = Backend::mock_vsock(CID, &streams, &place.socket());
    vhost::streams_go_both_ways(&backend, &streams, PACKET_BYTES);
}

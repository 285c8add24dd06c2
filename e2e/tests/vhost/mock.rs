//! Our own backend: found, measured, and described as backend programs describe themselves.

use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixListener;

use kiln_e2e::{Kiln, until};

use crate::place::{Place, json, vhost};

#[test]
fn a_mock_without_a_file_keeps_what_is_written() {
    let place = Place::new();
    let _mock = Kiln::new(["vhost", "mock", "--socket-path", &place.text("m")]).start();
    until("the mock's socket", || place.path("m").exists().then_some(()));
    let outcome = vhost(&["check", &place.text("m"), "--device", "blk", "--case", "data.*", "--level", "must"]);
    assert_eq!(outcome.code, 0, "{}", outcome.text());
}

#[test]
fn a_mock_is_probed_and_measured() {
    let place = Place::new();
    let _mock = Kiln::new(["vhost", "mock", "--socket", &place.text("m"), "--null", "--size", "1G"]).start();
    until("the mock's socket", || place.path("m").exists().then_some(()));
    let report = json(&vhost(&["probe", &place.text("m"), "--json"]));
    assert_eq!(report["config"]["capacity_bytes"], 1_u64 << 30);
    let bench = ["bench", &place.text("m"), "--qd", "1,4", "--time", "200ms", "--handshakes", "5", "--json"];
    let outcome = vhost(&bench);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let report = json(&outcome);
    assert_eq!(report["loads"].as_array().map(Vec::len), Some(2));
    assert!(report["loads"][1]["iops"].as_f64().is_some_and(|iops| iops > 0.0), "{report}");
    assert!(report["loads"][1]["latency"]["p99_ns"].as_u64().is_some(), "{report}");
}

#[test]
fn capabilities_are_printed_as_backend_programs_print_them() {
    for (device, kind) in [("blk", "block"), ("net", "net")] {
        let outcome = vhost(&["mock", "--device", device, "--print-capabilities"]);
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        let capabilities = json(&outcome);
        assert_eq!(capabilities["type"], kind);
        assert!(capabilities["features"].is_array());
    }
}

#[test]
fn a_socket_that_listens_may_be_inherited() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path("m")).expect("can listen");
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).expect("can be inherited");
    let _mock = Kiln::new(["vhost", "mock", "--fd", &listener.as_raw_fd().to_string()]).start();
    let outcome = vhost(&["probe", &place.text("m"), "--json"]);
    assert_eq!(json(&outcome)["device"]["kind"], "blk", "{}", outcome.stderr);
}

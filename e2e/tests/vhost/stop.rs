//! Ctrl-C and SIGTERM: each has its own exit code, and no socket is left.

use kiln_e2e::{Kiln, until};
use rustix::process::Signal;

use crate::place::Place;

#[test]
fn a_tap_ends_at_ctrl_c_and_leaves_no_socket() {
    let place = Place::new();
    let _daemon = place.storage_daemon();
    let mut tap = place.tap(&[]);
    tap.signal(Signal::INT);
    assert_eq!(tap.wait(), 130);
    assert!(!place.path("a").exists());
    assert!(place.path("f").exists());
}

#[test]
fn a_tap_ends_while_a_session_is_open() {
    let place = Place::new();
    let _daemon = place.storage_daemon();
    let mut tap = place.tap(&[]);
    let _client = std::os::unix::net::UnixStream::connect(place.path("a")).expect("the tap listens");
    until("the session", || {
        let recorded = std::fs::read_to_string(place.path("f")).unwrap_or_default();
        recorded.contains("\"connected\"").then_some(())
    });
    tap.signal(Signal::INT);
    assert_eq!(tap.wait(), 130);
    assert!(!place.path("a").exists());
}

#[test]
fn a_mock_exits_with_0_after_sigterm_and_130_after_ctrl_c() {
    let place = Place::new();
    for (signal, code) in [(Signal::TERM, 0), (Signal::INT, 130)] {
        let mut mock = Kiln::new(["vhost", "mock", "--device", "blk", "--socket", &place.text("m")]).start();
        until("the mock's socket", || place.path("m").exists().then_some(()));
        mock.signal(signal);
        assert_eq!(mock.wait(), code);
        assert!(!place.path("m").exists());
    }
}

#[test]
fn a_bench_that_is_interrupted_reports_what_it_has() {
    let place = Place::new();
    let _daemon = place.storage_daemon();
    let recording = place.tap(&[]);
    let mut bench = Kiln::new(["vhost", "bench", &place.text("a"), "--time", "60s", "--json"]).start();
    until("rings that run", || {
        let recorded = std::fs::read_to_string(place.path("f")).unwrap_or_default();
        recorded.contains("\"SET_VRING_ENABLE\"").then_some(())
    });
    bench.signal(Signal::INT);
    assert_eq!(bench.wait(), 130);
    drop(recording);
}

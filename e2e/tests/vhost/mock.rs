//! Our own backend: probed, measured, and described in the format of backend programs.

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

#[test]
fn a_disk_without_a_name_survives_a_kill_and_is_removed_at_the_end() {
    let place = Place::new();
    let start = || {
        let mock = Kiln::new(["vhost", "mock", "--socket", &place.text("m")]).start();
        until("the mock's socket", || std::os::unix::net::UnixStream::connect(place.path("m")).ok().map(drop));
        mock
    };
    drop(start());
    assert!(place.path("m.disk").exists());
    std::fs::write(place.path("m.disk"), b"kept").expect("can be written");
    let mut mock = start();
    assert!(std::fs::read(place.path("m.disk")).expect("is there").starts_with(b"kept"));
    mock.signal(rustix::process::Signal::TERM);
    assert_eq!(mock.wait(), 0);
    assert!(!place.path("m.disk").exists() && !place.path("m").exists());
}

#[test]
fn a_script_makes_a_mock_break_a_rule_and_a_tap_reports_it() {
    let place = Place::new();
    let script = "[[message]]\nname = \"GET_FEATURES\"\nreply.size = 4\n";
    std::fs::write(place.path("misbehave.toml"), script).expect("can be written");
    let _mock =
        Kiln::new(["vhost", "mock", "--socket", &place.text("m"), "--script", &place.text("misbehave.toml")]).start();
    until("the mock's socket", || place.path("m").exists().then_some(()));
    let outcome = vhost(&["probe", &place.text("m"), "--timeout", "2s"]);
    assert_eq!(outcome.code, 1, "{}", outcome.text());
    assert!(outcome.stderr.contains("GET_FEATURES") && outcome.stderr.contains(&place.text("m")), "{}", outcome.stderr);
}

#[test]
fn a_script_with_a_wrong_word_is_refused_with_the_right_one() {
    let place = Place::new();
    std::fs::write(place.path("bad.toml"), "[[message]]\nname = \"GET_FEATURE\"\n").expect("can be written");
    let outcome = vhost(&["mock", "--socket", &place.text("m"), "--script", &place.text("bad.toml")]);
    assert_eq!(outcome.code, 2, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("bad.toml") && outcome.stderr.contains("GET_FEATURES"), "{}", outcome.stderr);
    assert!(!place.path("m").exists() && !place.path("m.disk").exists());
}

#[test]
fn a_mock_reports_which_rules_a_frontend_kept() {
    let place = Place::new();
    let junit = place.text("vmm.xml");
    let flags = ["--check", "--level", "must", "--json", "--junit", &junit];
    let mut mock = Kiln::new(["vhost", "mock", "--socket", &place.text("m")].iter().chain(&flags)).start();
    until("the mock's socket", || place.path("m").exists().then_some(()));
    let bench = vhost(&["bench", &place.text("m"), "--time", "100ms", "--handshakes", "1"]);
    assert_eq!(bench.code, 0, "{}", bench.stderr);
    mock.signal(rustix::process::Signal::TERM);
    assert_eq!(mock.wait(), 0, "our own frontend keeps the rules");
    let report: serde_json::Value =
        serde_json::from_reader(mock.0.stdout.take().expect("stdout is piped")).expect("JSON");
    assert!(report["counts"]["passed"].as_u64().is_some_and(|passed| passed > 10), "{report}");
    assert!(std::fs::read_to_string(junit).expect("a report").contains("<testcase"));
}

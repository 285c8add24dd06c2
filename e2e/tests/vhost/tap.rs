//! The tap between our frontend and the storage daemon, and its recordings.

use crate::place::{DISK_BYTES, Place, json, vhost};

/// A recording of a bench of the storage daemon.
fn recorded(place: &Place) {
    let mut tap = place.tap(&["--sessions", "2"]);
    let outcome =
        vhost(&["bench", &place.text("a"), "--device", "blk", "--time", "100ms", "--handshakes", "1", "--json"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert_eq!(tap.wait(), 0);
}

#[test]
fn a_bench_through_a_tap_is_recorded_field_by_field() {
    let place = Place::new();
    let _daemon = place.storage_daemon();
    recorded(&place);
    let outcome = vhost(&["show", &place.text("f")]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let text = outcome.text();
    for words in [
        "→ SET_OWNER",
        "GET_FEATURES reply  features 0x",
        "VERSION_1",
        "SET_VRING_KICK",
        "[eventfd]",
        "[memfd of",
        "2 sessions",
        "device blk",
    ] {
        assert!(text.contains(words), "{words} in {text}");
    }
    // Neither our frontend nor the storage daemon breaks a rule here.
    assert!(text.ends_with("no violation of the specification found"), "{text}");
}

#[test]
fn every_line_of_the_json_is_an_object_and_the_last_is_the_summary() {
    let place = Place::new();
    let _daemon = place.storage_daemon();
    recorded(&place);
    let outcome = vhost(&["show", &place.text("f"), "--json"]);
    let lines: Vec<serde_json::Value> =
        outcome.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let (last, entries) = lines.split_last().expect("some lines");
    assert_eq!(last["summary"]["device"], "blk");
    assert!(last["summary"]["requests"].as_array().is_some_and(|rows| rows.iter().any(|row| row["p99_us"].is_u64())));
    let config = entries.iter().find(|entry| entry["name"] == "GET_CONFIG" && entry["what"] == "reply");
    let capacity = config.expect("a configuration")["fields"]["capacity"].clone();
    assert!(capacity.to_string().contains(&(DISK_BYTES / 512).to_string()), "{capacity}");
}

#[test]
fn a_replay_to_the_same_backend_finds_no_difference() {
    let place = Place::new();
    let _daemon = place.storage_daemon();
    recorded(&place);
    let outcome = vhost(&["replay", &place.text("f"), "--connect", &place.text("b"), "--json"]);
    assert_eq!(outcome.code, 0, "{}", outcome.text());
    let report = json(&outcome);
    assert_eq!(report["sessions"], 2);
    assert!(report["same"].as_u64().is_some_and(|same| same > 10), "{report}");
}

#[test]
fn a_replay_to_another_backend_names_what_differs() {
    let place = Place::new();
    let _daemon = place.storage_daemon();
    recorded(&place);
    let _mock = kiln_e2e::Kiln::new(["vhost", "mock", "--socket", &place.text("m"), "--size", "32M"]).start();
    kiln_e2e::until("the mock's socket", || place.path("m").exists().then_some(()));
    let replay = ["replay", &place.text("f"), "--connect", &place.text("m"), "--timeout", "1s", "--json"];
    let outcome = vhost(&replay);
    assert_eq!(outcome.code, 100, "{}", outcome.text());
    let differences = json(&outcome)["differences"].clone();
    let features = differences.as_array().expect("a list").iter().find(|one| one["request"] == "GET_FEATURES");
    assert!(features.is_some_and(|one| one["replayed"].to_string().contains("RING_PACKED")), "{differences}");
}

#[test]
fn a_missing_backend_is_recorded_and_the_tap_continues() {
    let place = Place::new();
    let mut tap = place.tap(&["--sessions", "1"]);
    let outcome = vhost(&["probe", &place.text("a"), "--timeout", "2s"]);
    assert_eq!(outcome.code, 1, "{}", outcome.text());
    assert_eq!(tap.wait(), 0);
    let shown = vhost(&["show", &place.text("f")]).text();
    assert!(shown.contains("failed to connect to the backend"), "{shown}");
}

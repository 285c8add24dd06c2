//! A real backend says who it is.

use crate::place::{DISK_BYTES, Place, json, vhost};

#[test]
fn the_storage_daemon_is_known_by_its_features_and_its_disk() {
    let place = Place::new();
    let _daemon = place.storage_daemon();
    let outcome = vhost(&["probe", &place.text("b"), "--json"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let report = json(&outcome);
    assert_eq!(report["device"]["kind"], "blk");
    assert_eq!(report["device"]["is_guess"], true);
    let names = report["protocol_features"]["names"].as_array().expect("a list");
    for name in ["MQ", "REPLY_ACK", "CONFIG", "CONFIGURE_MEM_SLOTS"] {
        assert!(names.iter().any(|known| known == name), "{name} in {names:?}");
    }
    assert_eq!(report["config"]["capacity"], DISK_BYTES / 512);
    assert_eq!(report["config"]["capacity_bytes"], DISK_BYTES);
    assert_eq!(report["config"]["blk_size"], 512);
    assert_eq!(report["queues"], 1);
    assert_eq!(report["max_mem_slots"], 32);
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(0));
}

#[test]
fn how_the_storage_daemon_behaves_at_the_edges_is_found_without_harming_it() {
    let place = Place::new();
    let mut daemon = place.storage_daemon();
    let report = json(&vhost(&["probe", &place.text("b"), "--json"]));
    let quirk = |id: &str| {
        let quirks = report["quirks"].as_array().expect("a list");
        let found = quirks.iter().find(|quirk| quirk["id"] == id).unwrap_or_else(|| panic!("{id} in {quirks:?}"));
        found["behaviour"].as_str().expect("words").to_owned()
    };
    assert_eq!(quirk("second_connection"), "queued until the first ends");
    assert_eq!(quirk("after_client_left"), "keeps listening");
    assert!(quirk("early_need_reply").starts_with("answers 0"));
    assert!(quirk("unknown_request").ends_with("then closes"));
    // Fails where it has ended.
    daemon.kill_and_restart();
}

#[test]
fn a_ring_that_kills_the_storage_daemon_is_found_where_harm_is_asked_for() {
    let place = Place::new();
    let _daemon = place.storage_daemon();
    let report = json(&vhost(&["probe", &place.text("b"), "--quirks", "--timeout", "20s", "--json"]));
    let quirks = report["quirks"].as_array().expect("a list");
    let behaviour = |id: &str| {
        let quirk = quirks.iter().find(|quirk| quirk["id"] == id).unwrap_or_else(|| panic!("{id} in {quirks:?}"));
        quirk["behaviour"].as_str().expect("words")
    };
    assert!(behaviour("stray_descriptors").ends_with("leaks them"));
    assert!(behaviour("far_ring").ends_with("the backend is gone"));
}

#[test]
fn people_read_names_and_sizes() {
    let place = Place::new();
    let _daemon = place.storage_daemon();
    let outcome = vhost(&["probe", &place.text("b"), "--device", "blk"]);
    let text = outcome.text();
    for words in ["REPLY_ACK", "VERSION_1", "capacity 131072 (64 MiB)", "queued until the first ends"] {
        assert!(text.contains(words), "{words} in {text}");
    }
    assert_eq!(outcome.stderr, "");
}

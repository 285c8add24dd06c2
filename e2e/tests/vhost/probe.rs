//! Probes of real backends.

use kiln_e2e::Backend;

use crate::place::{DISK_BYTES, Place, json, vhost};

#[test]
fn the_storage_daemon_is_recognised_by_its_features_and_its_disk() {
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
fn quirks_of_the_storage_daemon_are_found_without_harm() {
    let place = Place::new();
    let mut daemon = place.storage_daemon();
    let report = json(&vhost(&["probe", &place.text("b"), "--json"]));
    let quirk = |id| behaviour(&report, id);
    assert_eq!(quirk("second_connection"), "queued until the first ends");
    assert_eq!(quirk("after_client_left"), "keeps listening");
    assert!(quirk("early_need_reply").starts_with("replies 0"));
    assert!(quirk("unknown_request").ends_with("then closes"));
    // Fails if it has ended.
    daemon.kill_and_restart();
}

#[test]
fn a_ring_that_kills_the_storage_daemon_is_found_if_harm_is_allowed() {
    let place = Place::new();
    let _daemon = place.storage_daemon();
    let report = json(&vhost(&["probe", &place.text("b"), "--quirks", "--timeout", "20s", "--json"]));
    assert!(behaviour(&report, "stray_descriptors").ends_with("leaks them"));
    assert!(behaviour(&report, "far_ring").ends_with("the backend is gone"));
}

#[test]
fn virtiofsd_is_probed_and_ends_with_its_first_client() {
    let place = Place::new();
    std::fs::create_dir(place.path("shared")).expect("can be made");
    let _daemon = Backend::virtiofsd(&place.path("shared"), &place.path("v"));
    let outcome = vhost(&["probe", &place.text("v"), "--device", "fs", "--json"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let report = json(&outcome);
    assert_eq!((&report["queues"], &report["max_mem_slots"]), (&2.into(), &509.into()));
    assert_eq!(behaviour(&report, "after_client_left"), "accepts no more connections");
}

#[test]
fn a_vsock_device_is_recognised_by_its_cid() {
    let place = Place::new();
    let _device = Backend::vsock_device(42, &place.path("u"), &place.path("w"));
    let outcome = vhost(&["probe", &place.text("w"), "--json"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let report = json(&outcome);
    assert_eq!((&report["device"]["kind"], &report["config"]["guest_cid"]), (&"vsock".into(), &42.into()));
    assert_eq!(behaviour(&report, "second_connection"), "refused");
    assert_eq!(behaviour(&report, "unknown_request"), "closes");
}

/// A report's text about one quirk.
fn behaviour(report: &serde_json::Value, id: &str) -> String {
    let quirks = report["quirks"].as_array().expect("a list");
    let found = quirks.iter().find(|quirk| quirk["id"] == id).unwrap_or_else(|| panic!("{id} in {quirks:?}"));
    found["behaviour"].as_str().expect("words").to_owned()
}

#[test]
fn a_report_for_people_has_names_and_sizes() {
    let place = Place::new();
    let _daemon = place.storage_daemon();
    let outcome = vhost(&["probe", &place.text("b"), "--device", "blk"]);
    let text = outcome.text();
    for words in ["REPLY_ACK", "VERSION_1", "capacity 131072 (64 MiB)", "queued until the first ends"] {
        assert!(text.contains(words), "{words} in {text}");
    }
    assert_eq!(outcome.stderr, "");
}

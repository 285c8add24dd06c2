//! Many clients of a real backend, and its state after them.

use crate::place::{Place, json, vhost};

#[test]
fn the_storage_daemon_survives_many_clients() {
    let place = Place::new();
    let _daemon = place.storage_daemon();
    let outcome = vhost(&["stress", &place.text("b"), "--clients", "4", "--cycles", "20", "--seed", "7", "--json"]);
    assert!(matches!(outcome.code, 0 | 100), "{}", outcome.stderr);
    let report = json(&outcome);
    assert_eq!((&report["seed"], &report["dead"]), (&7.into(), &serde_json::Value::Null), "{report}");
    assert_eq!(report["concurrency"], "one_others_wait");
}

#[test]
fn our_own_backend_serves_every_client_that_keeps_the_rules() {
    let place = Place::new();
    let _mock = kiln_e2e::Kiln::new(["vhost", "mock", "--socket", &place.text("m")]).start();
    kiln_e2e::until("the mock's socket", || place.path("m").exists().then_some(()));
    let outcome = vhost(&["stress", &place.text("m"), "--clients", "10", "--cycles", "20"]);
    assert_eq!(outcome.code, 0, "{}{}", outcome.text(), outcome.stderr);
    assert!(outcome.text().contains("handshake p50"), "{}", outcome.text());
}

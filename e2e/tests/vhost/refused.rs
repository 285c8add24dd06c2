//! Peers that do not exist or do not answer, and wrong arguments: an error in time that names them.

use std::time::Duration;

use crate::place::{Place, vhost};

fn refused(args: &[&str], code: i32, words: &[&str]) -> Duration {
    let outcome = vhost(args);
    assert_eq!(outcome.code, code, "{args:?}: {}", outcome.stderr);
    for word in words {
        assert!(outcome.stderr.contains(word), "{args:?}: no `{word}` in: {}", outcome.stderr);
    }
    assert_eq!(outcome.text(), "", "{args:?}");
    outcome.took
}

#[test]
fn every_command_names_a_missing_socket() {
    let place = Place::new();
    let nothing = place.text("nothing");
    refused(&["probe", &nothing], 1, &[&nothing, "hint: "]);
    refused(&["bench", &nothing], 1, &[&nothing, "hint: "]);
    refused(&["check", &nothing, "--device", "blk", "--timeout", "500ms"], 1, &[&nothing, "hint: "]);
    refused(&["show", &nothing], 1, &[&nothing]);
}

#[test]
fn a_silent_peer_is_named_at_the_deadline() {
    let place = Place::new();
    let _mute = place.mute();
    let mute = place.text("mute");
    let took = refused(&["probe", &mute, "--timeout", "500ms"], 1, &[&mute, "GET_FEATURES", "sent no reply"]);
    assert!(took >= Duration::from_millis(500), "{took:?}");
    refused(&["bench", &mute, "--timeout", "500ms"], 1, &[&mute]);
    refused(&["check", &mute, "--timeout", "500ms"], 1, &[&mute]);
}

#[test]
fn a_file_that_is_not_a_recording_is_refused_and_not_changed() {
    let place = Place::new();
    std::fs::write(place.path("f"), "precious\n").expect("can be written");
    let (a, b, f) = (place.text("a"), place.text("b"), place.text("f"));
    refused(&["show", &f], 1, &[&f, "not a recording"]);
    refused(&["replay", &f, "--connect", &b], 1, &[&f]);
    refused(&["tap", "--listen", &a, "--connect", &b, "--record", &f], 1, &[&f]);
    assert_eq!(std::fs::read(place.path("f")).expect("is there"), b"precious\n");
}

#[test]
fn wrong_words_are_usage_errors() {
    refused(&["probe"], 2, &["SOCKET"]);
    refused(&["probe", "s", "--device", "disk"], 2, &["`disk` is not a kind of device"]);
    refused(&["probe", "s", "--timeout", "soon"], 2, &["soon"]);
    refused(&["bench", "s", "--rw", "sideways"], 2, &["sideways"]);
    refused(&["bench", "s", "--bs", "100"], 2, &["512"]);
    refused(&["check"], 2, &["SOCKET"]);
    refused(&["check", "s", "--level", "perhaps"], 2, &["perhaps"]);
    refused(&["check", "s", "--case", "no.such-case"], 2, &["--list"]);
    refused(&["mock", "--device", "blk"], 2, &["--socket"]);
    refused(&["mock", "--device", "blk", "--socket", "s", "--null", "--file", "f"], 2, &["--null"]);
    refused(&["mock", "--fd", "77"], 2, &["77"]);
}

#[test]
fn a_socket_with_a_listener_is_not_replaced() {
    let place = Place::new();
    let _mute = place.mute();
    let mute = place.text("mute");
    refused(&["mock", "--socket", &mute], 1, &[&mute, "hint: "]);
    refused(&["tap", "--listen", &mute, "--connect", "b", "--record", &place.text("f")], 1, &[&mute]);
}

//! How the suite runs its cases: which backend each case uses, which case caused a crash, and the report on the device.

use std::os::unix::fs::PermissionsExt as _;

use kiln_e2e::{Kiln, Outcome, Running, kiln_binary, until};
use serde_json::Value;

use crate::place::{Place, json, vhost};

/// The command that starts our own disk with this fault.
fn mock(place: &Place, script: &str) -> String {
    let path = place.text("script.toml");
    std::fs::write(&path, script).expect("can be written");
    format!("{} vhost mock --device blk --size 16M --socket {{socket}} --script {path}", kiln_binary().display())
}

fn check_command(command: &str, flags: &[&str]) -> Outcome {
    vhost(&[&["check", "--spawn", command], flags].concat())
}

/// Checks the disk with this fault.
fn check(place: &Place, script: &str, flags: &[&str]) -> Outcome {
    check_command(&mock(place, script), &[&["--json"], flags].concat())
}

/// Starts the disk with this fault at `b`.
fn running(place: &Place, script: &str) -> Running {
    let command = mock(place, script).replace("{socket}", &place.text("b"));
    let words: Vec<_> = command.split(' ').skip(1).collect();
    let backend = Kiln::new(words).start();
    until("the mock's socket", || place.path("b").exists().then_some(()));
    backend
}

/// The cases with one of these verdicts.
fn cases(outcome: &Outcome, verdicts: &[&str]) -> Vec<String> {
    let report = json(outcome);
    let cases = report["cases"].as_array().expect("a list");
    let is_wanted = |case: &&Value| verdicts.contains(&case["verdict"].as_str().unwrap_or_default());
    cases.iter().filter(is_wanted).map(|case| case["id"].as_str().unwrap_or_default().to_owned()).collect()
}

const FAILURES: [&str; 3] = ["fail", "crash", "hang"];
const NONE: [&str; 0] = [];

#[test]
fn a_restarted_backend_keeps_its_folder() {
    let kiln = kiln_binary().display().to_string();
    let command = format!(
        "sh -c \"truncate -s 64M {{dir}}/disk && exec {kiln} vhost mock --file {{dir}}/disk --socket {{socket}}\""
    );
    let only = ["--case", "lifecycle.flushed-survives-kill", "--case", "inflight.killed-under-load"];
    let outcome = check_command(&command, &[&["--json", "--level", "must"], &only[..]].concat());
    assert_eq!(cases(&outcome, &["pass"]).len(), 2, "{}", outcome.text());
}

#[test]
fn a_device_of_an_unknown_kind_must_be_named_and_the_report_has_the_reason() {
    // The configuration of a console with 0 columns, 0 rows and one port. Read as a disk it would have 2 TiB.
    let console = "[offer]\nfeatures.remove = [\"SEG_MAX\", \"BLK_SIZE\", \"FLUSH\", \"TOPOLOGY\", \"CONFIG_WCE\", \"MQ\", \
                   \"DISCARD\", \"WRITE_ZEROES\"]\n[[config]]\nat = 0\nbytes = \"00 00 00 00 01 00 00 00 00 00 00 00\"\n";
    let place = Place::new();
    let outcome = check(&place, console, &["--case", "features.*"]);
    assert_eq!(outcome.code, 2, "{}", outcome.text());
    for words in ["the kind of device behind", "it may be blk", "give the kind of device with --device"] {
        assert!(outcome.text().contains(words), "no `{words}` in {}", outcome.text());
    }
    let junit = place.text("report.xml");
    let given = check(&place, console, &["--case", "features.version-1", "--device", "console", "--junit", &junit]);
    assert_eq!(json(&given)["device"], serde_json::json!({ "kind": "console", "known": "given" }));
    let xml = std::fs::read_to_string(junit).expect("a report");
    assert!(xml.contains("<property name=\"device\" value=\"console (given)\"/>"), "{xml}");
    let guessed = check_command(&mock(&place, ""), &["--case", "features.version-1"]);
    assert!(guessed.text().starts_with("device: blk (guessed: its features are a disk's"), "{}", guessed.text());
}

#[test]
fn no_verdict_depends_on_the_time_until_a_connection_is_accepted() {
    let place = Place::new();
    let script = "[serve]\naccept_delay_ms = 1000\n";
    let only = ["handshake.header-in-pieces", "handshake.payload-apart", "lifecycle.half-closed", "hostile.noise"];
    let only: Vec<_> = only.iter().flat_map(|id| ["--case", id]).collect();
    let outcome = check(&place, script, &[&["--timeout", "1200ms"], &only[..]].concat());
    assert_eq!(cases(&outcome, &["pass"]).len(), 4, "{}", outcome.text());
    // It took long, so progress was printed, and not too often.
    let lines = outcome.stderr.lines().filter(|line| line.contains(" of 4 cases")).count() as u64;
    assert!((1..=outcome.took.as_secs() / 2 + 1).contains(&lines), "{lines} in {:?}: {}", outcome.took, outcome.stderr);
}

#[test]
fn no_verdict_depends_on_the_time_that_a_backend_needs_between_clients() {
    let place = Place::new();
    let script = "[serve]\npause_ms = 150\n";
    let only = ["--level", "may", "--case", "handshake.*", "--case", "features.*", "--case", "lifecycle.next-client"];
    let spawned = check(&place, script, &only);
    assert_eq!(cases(&spawned, &FAILURES), NONE, "{}", spawned.text());
    let _backend = running(&place, script);
    let live = vhost(&[&["check", &place.text("b"), "--json"], &only[..]].concat());
    assert_eq!(cases(&live, &FAILURES), NONE, "{}", live.text());
    assert_eq!(cases(&live, &["pass"]), cases(&spawned, &["pass"]));
}

#[test]
fn a_backend_that_serves_one_client_has_the_verdicts_of_one_that_serves_many() {
    let place = Place::new();
    let only = ["--level", "may", "--case", "handshake.*", "--case", "features.*", "--case", "data.*"];
    let one = check(&place, "[serve]\nclients = 1\n", &only);
    assert_eq!(json(&one)["backend"]["ends_with_client"], true, "{}", one.text());
    assert_eq!(cases(&one, &FAILURES), NONE, "{}", one.text());
    let many = check(&place, "", &only);
    assert_eq!(cases(&one, &["pass", "skip"]), cases(&many, &["pass", "skip"]));
    // Only cases that need two clients are left out, with that reason.
    let left_out = |outcome: &Outcome| outcome.text().matches("the backend serves only one client").count();
    let (skipped, skipped_of_many) = (cases(&one, &["skip"]).len(), cases(&many, &["skip"]).len());
    assert_eq!((left_out(&one), left_out(&many)), (skipped - skipped_of_many, 0));
}

/// Exits some time after a message that two cases send.
const DIES_LATER: &str = "[[message]]\nname = \"RESET_OWNER\"\ncrash_after_ms = 40\n";
const SEND_IT: [&str; 2] = ["handshake.ack-reset-owner", "handshake.reset-owner-harmless"];

#[test]
fn a_late_crash_belongs_to_the_case_that_caused_it() {
    let place = Place::new();
    let only = ["--level", "may", "--case", "handshake.*", "--case", "features.*", "--case", "rings.*"];
    let outcome = check(&place, DIES_LATER, &only);
    assert_eq!(cases(&outcome, &FAILURES), SEND_IT, "{}", outcome.text());
    assert_eq!(cases(&outcome, &["crash"]), SEND_IT, "{}", outcome.text());
}

#[test]
fn a_late_crash_of_a_running_backend_belongs_to_the_hostile_case_before() {
    let place = Place::new();
    let _backend = running(&place, "[[message]]\nname = 200\ncrash_after_ms = 20\n");
    let only = ["--case", "hostile.unknown-request", "--case", "hostile.version-zero"];
    let outcome = vhost(&[&["check", &place.text("b"), "--json"], &only[..]].concat());
    assert_eq!(cases(&outcome, &["crash"]), ["hostile.unknown-request"], "{}", outcome.text());
    assert_eq!(cases(&outcome, &["skip"]), ["hostile.version-zero"], "{}", outcome.text());
}

#[test]
fn a_ring_that_stops_after_a_hostile_message_is_found() {
    let place = Place::new();
    let script = "[[ring]]\non = \"completion\"\nafter = 200\ntimes = 0\n";
    let flags = ["--timeout", "1s", "--case", "hostile.unknown-request", "--case", "hostile.zeros"];
    let outcome = check(&place, script, &flags);
    assert_eq!(cases(&outcome, &FAILURES), ["hostile.unknown-request"], "{}", outcome.text());
    assert!(outcome.text().contains("afterwards, on a ring of a new client: "), "{}", outcome.text());
}

#[test]
fn capabilities_are_not_requested_from_a_shell() {
    let place = Place::new();
    let only = ["--json", "--case", "lifecycle.print-capabilities"];
    let direct = mock(&place, "");
    assert_eq!(cases(&check_command(&direct, &only), &["pass"]).len(), 1);
    let outcome = check_command(&format!("sh -c 'exec {direct}'"), &only);
    assert_eq!(cases(&outcome, &["skip"]).len(), 1, "{}", outcome.text());
    assert!(outcome.text().contains("`sh` starts the backend"), "{}", outcome.text());
}

#[test]
fn a_flaky_verdict_is_named_and_may_fail() {
    let place = Place::new();
    // One of many replies has another version.
    let script = "[[message]]\nname = \"GET_FEATURES\"\nnth = 40\nreply.flags = 6\n";
    let known = place.text("known.toml");
    let flags = ["--repeat", "60", "--case", "handshake.reply-version", "--json"];
    let live = |more: &[&str]| {
        let _backend = running(&place, script);
        vhost(&[&["check", &place.text("b")], &flags[..], more].concat())
    };
    let outcome = live(&["--write-failures", &known]);
    assert_eq!(outcome.code, 100, "{}", outcome.text());
    let report = json(&outcome);
    assert_eq!(report["flaky"], serde_json::json!(["handshake.reply-version"]), "{report}");
    assert_eq!(report["cases"][0]["flaky"], serde_json::json!({ "pass": 59, "fail": 1 }));
    assert!(std::fs::read_to_string(&known).expect("a list").contains("reply-version = { may-fail = "));
    let outcome = live(&["--expect-failures", &known, "--strict"]);
    assert_eq!(outcome.code, 0, "{}", outcome.text());
    // It always passes here, which is allowed.
    let passes = ["--expect-failures", &known, "--strict", "--case", "handshake.reply-version"];
    assert_eq!(check(&place, "", &passes).code, 0);
}

#[test]
fn cases_run_side_by_side_only_if_their_backends_do_not_disturb_each_other() {
    let place = Place::new();
    let only = ["--jobs", "3", "--case", "features.*"];
    let outcome = check(&place, "", &only);
    assert_eq!((outcome.code, &json(&outcome)["jobs"]), (0, &3.into()), "{}", outcome.text());
    let disk = place.path("disk");
    std::fs::File::create(&disk).and_then(|file| file.set_len(16 << 20)).expect("a disk");
    let disk = disk.display();
    let unlocked = format!(
        "qemu-storage-daemon --blockdev driver=file,filename={disk},node-name=d0,locking=off \
         --export type=vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path={{socket}},writable=on"
    );
    let locked = format!("{} vhost mock --file {disk} --socket {{socket}}", kiln_binary().display());
    for (command, because) in [(unlocked, "would use the same disk"), (locked, "does not work beside the first")] {
        let outcome = check_command(&command, &[&["--json", "--level", "must"], &only[..]].concat());
        let report = json(&outcome);
        assert_eq!(report["jobs"], 1, "{report}");
        assert!(report["notes"][0].as_str().is_some_and(|note| note.contains(because)), "{}", report["notes"]);
    }
}

#[test]
fn an_unreachable_backend_is_reported_at_once() {
    let place = Place::new();
    let long = place.text(&"x".repeat(120));
    let closed = place.path("closed");
    std::fs::create_dir(&closed).expect("a folder");
    let socket = closed.join("s");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("listens");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).expect("a mode");
    let socket = socket.display().to_string();
    for command in ["check", "bench", "stress", "probe"] {
        // The timeout is longer than that of the test, so a command that ends did not wait for it.
        for (path, words) in [(&long, "at most 107 bytes"), (&place.text("no"), "start the backend first")] {
            let outcome = vhost(&[command, path, "--timeout", "1h"]);
            assert_eq!(outcome.code, 1, "{command}: {}", outcome.stderr);
            assert!(outcome.stderr.contains(words) && outcome.stderr.contains(path.as_str()), "{}", outcome.stderr);
        }
        // Root may use any socket, so another user tries.
        let kiln = kiln_binary().display().to_string();
        let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let is_root = rustix::process::geteuid().is_root();
        let mut denied = std::process::Command::new(if is_root { "setpriv" } else { &kiln });
        if is_root {
            denied.args(user).arg(&kiln);
        }
        let denied = denied.args(["vhost", command, &socket, "--timeout", "1h"]).output().expect("runs");
        let stderr = String::from_utf8_lossy(&denied.stderr);
        assert_eq!(denied.status.code(), Some(1), "{command}: {stderr}");
        assert!(stderr.contains("hint: this user may not write to the socket"), "{command}: {stderr}");
    }
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).expect("a mode");
    let outcome = vhost(&["check", &long, "--spawn", "true", "--timeout", "1h"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("at most 107 bytes"), "{}", outcome.stderr);
}

#[test]
fn progress_is_not_printed_between_lines_of_json() {
    let place = Place::new();
    let (command, out) = (mock(&place, "[serve]\naccept_delay_ms = 700\n"), place.text("out"));
    let only = "--case features.version-1 --case features.mq --case features.stable";
    let line = format!("'{}' vhost check --json {only} --spawn '{command}' > {out} 2>&1", kiln_binary().display());
    let status = std::process::Command::new("sh").args(["-c", &line]).status().expect("runs");
    let text = std::fs::read_to_string(&out).expect("is there");
    assert_eq!(status.code(), Some(0), "{text}");
    assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text}");
}

#[test]
fn bench_names_the_devices_it_supports_and_refuses_others() {
    let place = Place::new();
    let fs = place.text("n");
    let _backend = Kiln::new(["vhost", "mock", "--device", "net", "--queues", "3", "--socket", &fs]).start();
    until("the mock's socket", || place.path("n").exists().then_some(()));
    let outcome = vhost(&["bench", &fs]);
    assert_eq!(outcome.code, 2, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("drives blk devices only"), "{}", outcome.stderr);
    let outcome = vhost(&["bench", &fs, "--device", "net"]);
    assert_eq!(outcome.code, 2, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("is a net device, but the bench drives blk devices only"), "{}", outcome.stderr);
    // The card has the requested number of queue pairs.
    let probed = json(&vhost(&["probe", &fs, "--device", "net", "--json"]));
    assert_eq!(probed["queues"], 6, "{probed}");
    assert!(probed["config"].to_string().contains("max_virtqueue_pairs") && probed["config"].to_string().contains('3'));
    let names = probed["features"]["names"].to_string();
    assert!(names.contains("MQ"), "{names}");
}

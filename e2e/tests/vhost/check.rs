//! `kiln vhost check` as authors of backends use it: a command for each case, reports, exit codes.

use kiln_e2e::kiln_binary;

use crate::place::{Place, json, vhost};

fn own(place: &Place) -> Vec<String> {
    let spawn = format!("{} vhost mock --device blk --socket {{socket}}", kiln_binary().display());
    ["check", &place.text("s"), "--device", "blk", "--spawn", &spawn].map(str::to_owned).to_vec()
}

fn check(place: &Place, flags: &[&str]) -> kiln_e2e::Outcome {
    let mut args = own(place);
    args.extend(flags.iter().map(|flag| (*flag).to_owned()));
    vhost(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn our_own_backend_passes_and_reports_are_written() {
    let place = Place::new();
    let junit = place.text("report.xml");
    let outcome =
        check(&place, &["--case", "handshake.*", "--case", "lifecycle.flushed*", "--junit", &junit, "--json"]);
    assert_eq!(outcome.code, 0, "{}", outcome.text());
    let report = json(&outcome);
    assert_eq!(report["counts"]["failed"], 0);
    assert!(report["counts"]["passed"].as_u64().is_some_and(|passed| passed > 1), "{report}");
    assert!(std::fs::read_to_string(junit).expect("a report").contains("<testcase"));
    assert!(!place.path("s").exists(), "nothing is left of a backend");
}

#[test]
fn an_expected_failure_passes_and_strict_refuses_one_that_does_not_fail() {
    let place = Place::new();
    let script = place.text("wrong.toml");
    std::fs::write(&script, "[[message]]\nname = \"SET_FEATURES\"\ndo = \"ack\"\n").expect("can be written");
    let spawn = format!("{} vhost mock --socket {{socket}} --script {script}", kiln_binary().display());
    let (s, known) = (place.text("s"), place.text("known.toml"));
    let base = ["check", &s, "--device", "blk", "--spawn", &spawn, "--case", "handshake.*", "--case", "features.*"];
    let run = |more: &[&str]| vhost(&[&base[..], more].concat());
    assert_eq!(run(&["--write-failures", &known]).code, 100);
    let outcome = run(&["--expect-failures", &known]);
    assert_eq!(outcome.code, 0, "{}", outcome.text());
    let outcome = check(&place, &["--case", "handshake.*", "--case", "features.*", "--expect-failures", &known]);
    assert_eq!(outcome.code, 0, "{}", outcome.text());
    let strict = ["--case", "handshake.*", "--case", "features.*", "--expect-failures", &known, "--strict"];
    assert_eq!(check(&place, &strict).code, 100);
}

#[test]
fn every_case_is_listed_with_its_level_and_reason() {
    let outcome = vhost(&["check", "--list", "--level", "may", "--json"]);
    let cases: Vec<serde_json::Value> =
        outcome.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(cases.len() >= 120, "{}", cases.len());
    assert!(cases.iter().all(|case| case["reason"].is_string() && case["section"].is_string()));
}

//! Docker's flags in a real VM, and the fields of `--json` if a step other than the command fails.

use kiln_e2e::Kiln;
use serde_json::{Value, json};

fn report(kiln: Kiln, code: i32) -> Value {
    let outcome = kiln.run();
    assert_eq!(outcome.code, code, "{}", outcome.stderr);
    serde_json::from_slice(&outcome.stdout).expect("one JSON object")
}

#[test]
fn names_labels_and_files_of_variables_reach_the_guest_or_the_report() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("env");
    std::fs::write(&path, "# comment\nA=of the file\nB=of the file\nFROM_SHELL\n").expect("written");
    let file = path.to_str().expect("UTF-8");
    let flags = [
        &["--rm", "--name", "web", "--label", "team=a", "-l", "bare", "--hostname", "web-1.example.org"][..],
        &["--env-file", file, "-e", "B=of the flag", "--json"],
    ];
    let script = "uname -n; cat /etc/hostname; echo $A, $B, $FROM_SHELL";
    let report = report(Kiln::shell(&flags.concat(), script).env("FROM_SHELL", "of the shell"), 0);
    let expected = "web-1.example.org\nweb-1.example.org\nof the file, of the flag, of the shell\n";
    assert_eq!(report["stdout"], expected, "{report}");
    assert_eq!((&report["name"], &report["labels"]), (&json!("web"), &json!({ "team": "a", "bare": "" })));
}

#[test]
fn a_booted_machine_takes_the_name_too() {
    let outcome = Kiln::new(["run", "--cold", "--hostname", "web-1", "--", "hostname"]).run();
    assert_eq!((outcome.code, outcome.text().as_str()), (0, "web-1"), "{}", outcome.stderr);
}

#[test]
fn an_unknown_command_may_be_the_name_of_an_image() {
    let outcome = Kiln::new(["run", "alpine", "sh"]).run();
    assert_eq!(outcome.code, 127, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("`alpine` was not found in the guest"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("hint: if `alpine` is an image: kiln run --image alpine"), "{}", outcome.stderr);
    let report = report(Kiln::new(["run", "--json", "--", "/no/such/program"]), 127);
    assert_eq!(report["error"], "`/no/such/program` was not found in the guest");
    assert!(report["hint"].as_str().is_some_and(|hint| hint.contains("--in")), "{report}");
}

#[test]
fn json_has_the_commands_code_and_the_reason_of_a_missing_result() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = format!("/tmp/missing:{}", folder.path().join("x").display());
    for (script, code) in [("exit 3", 3), ("exit 0", 125), ("kill -9 $$", 137)] {
        let report = report(Kiln::shell(&["--json", "--out", &out], script), code);
        let own = if code == 125 { 0 } else { code };
        assert_eq!((&report["exit_code"], &report["command_exit_code"]), (&json!(code), &json!(own)), "{report}");
        assert!(report["error"].as_str().is_some_and(|error| error.contains("/tmp/missing")), "{report}");
        assert!(report["accel"].is_string(), "{report}");
    }
}

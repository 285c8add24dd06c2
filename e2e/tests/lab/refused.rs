//! Plans that are refused before a VM starts.

use std::fs;

use kiln_e2e::{Kiln, Outcome};

const TYPO: &str = "[plan]\nname = 'x'\n[vm]\nimagee = 'mini'\ncpus = 0\n";

fn lab(plan: &str, args: &[&str]) -> Outcome {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("plan.toml"), plan).expect("is written");
    let args = ["lab"].iter().chain(args);
    Kiln::new(args).env("KILN_HOME", directory.path().join("home")).in_directory(directory.path()).run()
}

#[test]
fn all_problems_of_a_plan_are_reported_at_once_with_their_places() {
    let checked = lab(TYPO, &["check", "plan.toml"]);
    assert_eq!(checked.code, 2, "{}", checked.stderr);
    let lines: Vec<_> = checked.text().lines().map(str::to_owned).collect();
    assert_eq!(lines[0], "plan.toml:4:1: vm: unknown key `imagee` (did you mean `image`?)");
    assert!(lines[1].starts_with("plan.toml:5:8: vm.cpus: "), "{lines:?}");
    let json = lab(TYPO, &["check", "--json", "plan.toml"]);
    let problems: serde_json::Value = serde_json::from_slice(&json.stdout).expect("a list");
    assert_eq!((&problems[0]["file"], &problems[0]["line"], json.code), (&"plan.toml".into(), &4.into(), 2));
    let run = lab(TYPO, &["run", "plan.toml"]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("plan.toml:4:1") && run.stderr.contains("hint: "), "{}", run.stderr);
}

#[test]
fn a_plan_that_is_right_is_listed_and_a_part_of_it_that_is_empty_is_not_run() {
    let plan =
        "[plan]\nname = 'x'\n[matrix]\nfs = ['a', 'b']\n[[suite]]\nkind = 'command'\nname = 'one'\nrun = 'true'\n";
    let checked = lab(plan, &["check", "plan.toml"]);
    assert_eq!((checked.code, checked.text().as_str()), (0, "plan.toml: 1 suite in 2 cells"));
    let list = lab(plan, &["list", "--json", "plan.toml", "--shard", "2/2"]);
    let rows: serde_json::Value = serde_json::from_slice(&list.stdout).expect("a list");
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "{rows}");
    assert_eq!(rows[0]["cell"]["fs"], "b", "{rows}");
    let nothing = lab(plan, &["run", "plan.toml", "--filter", "no*"]);
    assert_eq!(nothing.code, 2, "{}", nothing.stderr);
    assert!(nothing.stderr.contains("nothing to run"), "{}", nothing.stderr);
    let schema: serde_json::Value = serde_json::from_slice(&lab(plan, &["schema"]).stdout).expect("JSON");
    assert_eq!(schema["properties"]["suite"]["type"], "array");
}

#[test]
fn a_plan_that_is_not_there_or_is_no_text_is_named() {
    let absent = lab("", &["run", "absent.toml"]);
    assert_eq!(absent.code, 2, "{}", absent.stderr);
    assert!(absent.stderr.contains("absent.toml"), "{}", absent.stderr);
    let json = lab(TYPO, &["run", "--json", "plan.toml"]);
    let object: serde_json::Value = serde_json::from_slice(&json.stdout).expect("an object");
    assert_eq!(object["exit_code"], 2, "{object}");
}

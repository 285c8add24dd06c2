//! Plans as people write them, right and wrong.

use super::*;

/// Every key of a plan.
const WHOLE: &str = r#"
[plan]
name = "ext4 on a scratch disk"
about = "what a newcomer reads"
level = 2
budget = "30m"

[vm]
image = "debian"
kernel = "debian:6.1"
cpus = 2
memory = "1G"
disks = [{ name = "scratch", size = "2G" }]
modules = ["ext4"]
boot_timeout = "90s"
env = { LANG = "C" }

[matrix]
kernel = ["debian:6.1", "debian:6.12"]
mount = ["data=ordered", "data=journal"]
depth = [1, 32]

[prepare]
run = ["mkfs.ext4 -q $KILN_DISK_scratch", "mount -o $mount $KILN_DISK_scratch /mnt"]
copy = [{ from = "tests", to = "/tests" }]
timeout = "60s"

[[suite]]
kind = "command"
name = "fio verify"
run = "fio /tests/verify.fio"
timeout = "2m"
level = 2
env = { DEPTH = 3 }
expect = { exit = 1, finding = "BUG: *", stdout = "verify" }
quarantine = { reason = "a known defect", until = 2027-01-31, cases = ["a*"] }
only = { mount = ["data=journal"] }

[[suite]]
kind = "ktap"
name = "kselftest"
run = "/tests/run"
results = "/tmp/results"

[isolate]
per = "suite"

[detect]
fail_on = "error"
ignore = [{ title = "INFO: *", reason = "slow host", until = "2027-01-01" }]
taint = false

[retry]
attempts = 3
flaky = "fail"

[alert]
when = ["new-finding", "host-short"]
failure_rate_percent = 20
webhook = "https://example.org/hook"
command = "cat"
mail = "root@example.org"
silence = ["new-finding:*"]
"#;

fn problems(text: &str) -> Vec<String> {
    Plan::parse(text).expect_err("has problems").iter().map(ToString::to_string).collect()
}

#[test]
fn every_key_is_read() {
    insta::assert_debug_snapshot!(Plan::parse(WHOLE).expect("is right"));
}

#[test]
fn a_plan_needs_a_name_and_a_suite_and_the_rest_has_defaults() {
    let plan = "[plan]\nname = 'one'\n[[suite]]\nkind = 'command'\nname = 'true'\nrun = 'true'\n";
    insta::assert_debug_snapshot!(Plan::parse(plan).expect("is right"));
}

#[test]
fn all_wrong_keys_are_reported_at_once_with_their_places_and_nearest_keys() {
    let plan = "[plan]\nnam = 'x'\nlevel = 4\nbudget = 'soon'\n[vm]\nimagee = 'mini'\nmemory = 'much'\ncpus = 'two'\n\
                disks = [{ size = '1G' }]\n[[suite]]\nkind = 'comand'\nname = ''\nexpect = 1\n[detect]\nfail_on = 'errors'\n\
                [matrix]\n'a b' = [1]\nmount = 'x'\n[zebra]\n";
    insta::assert_snapshot!(problems(plan).join("\n"));
}

#[test]
fn what_only_several_keys_show_is_reported_at_the_key_that_is_wrong() {
    let plan = "[plan]\nname = 'x'\nlevel = 2\n[vm]\ndisks = [{ name = 'a b', size = '1G' }, { name = 'c', size = '1G' }, \
                { name = 'c', size = '1G' }]\n[matrix]\nkernel = []\nmount = ['a', 'a']\ncpus = ['none']\n\
                memory = ['x']\n[prepare]\ncopy = [{ from = 'a', to = 'b' }]\n[[suite]]\nkind = 'tap'\nname = 'one'\n\
                run = 'x'\nlevel = 1\nonly = { fs = ['x'], mount = ['b'] }\n[[suite]]\nkind = 'tap'\nname = 'one'\nrun = 'x'\n";
    insta::assert_snapshot!(problems(plan).join("\n"));
}

#[test]
fn text_that_is_no_toml_is_reported_with_all_its_places() {
    insta::assert_snapshot!(problems("[plan\nname = \n[vm]\ncpus = = 2\n").join("\n"));
}

#[test]
fn a_plan_without_a_suite_and_a_plan_with_too_many_cells_are_refused() {
    assert_eq!(problems("[plan]\nname = 'x'\n"), ["1:1: suite: the plan has no suite, so it tests nothing"]);
    let axis =
        |name: char| format!("{name} = [{}]\n", (0..50).map(|value| value.to_string()).collect::<Vec<_>>().join(","));
    let plan = format!(
        "[plan]\nname = 'x'\n[[suite]]\nkind = 'tap'\nname = 'x'\nrun = 'x'\n[matrix]\n{}{}",
        axis('a'),
        axis('b')
    );
    assert_eq!(problems(&plan), ["7:1: matrix: makes 2500 cells, more than 1000"]);
}

#[test]
fn a_plan_that_is_too_large_is_not_read() {
    let plan = format!("[plan]\nname = 'x'\n#{}", "x".repeat(PLAN_BYTES_MAX));
    assert_eq!(problems(&plan), ["1:1: has more than 4194304 bytes"]);
}

#[test]
fn the_schema_has_every_key_with_its_words_and_bounds() {
    let schema = schema();
    assert_eq!(schema["properties"]["plan"]["required"], serde_json::json!(["name"]));
    assert_eq!(schema["properties"]["suite"]["items"]["properties"]["kind"]["enum"][0], "command");
    assert_eq!(schema["properties"]["plan"]["properties"]["level"]["maximum"], 3);
    insta::assert_json_snapshot!(schema);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(?s).{0,400}", cut in 0..2000_usize) {
        let _ = Plan::parse(&text);
        // A plan that is right, cut anywhere and continued with garbage.
        let cut = (0..=cut.min(WHOLE.len())).rev().find(|at| WHOLE.is_char_boundary(*at)).unwrap_or(0);
        let _ = Plan::parse(&format!("{}{text}", &WHOLE[..cut]));
    }
}

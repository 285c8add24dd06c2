//! `kiln snapshot create` and `kiln run --from`: prepare once, fork from there.

use std::collections::BTreeSet;
use std::fs;

use kiln_e2e::TestHome;

#[test]
fn a_prepared_vm_is_forked_by_its_name_and_each_fork_has_an_identity() {
    let home = TestHome::with_ready_made();
    let host = tempfile::tempdir().expect("a directory");
    fs::write(host.path().join("job"), "prepared once\n").expect("is written");
    let copy = format!("{}:/job", host.path().join("job").display());
    let prepare = "cat /job > /root/result; echo 1234 > /proc/sys/kernel/pid_max; mkdir /m; mount -t tmpfs none /m";
    let made = home.kiln(["snapshot", "create", "prepared", "--in", &copy, "--", "sh", "-c", prepare]).run();
    assert_eq!(made.code, 0, "{}", made.stderr);
    let id = made.text().trim().to_owned();

    let script =
        "cat /root/result /proc/sys/kernel/pid_max; grep -c ' /m tmpfs' /proc/mounts; echo x > /root/result; hostname";
    let runs: Vec<_> = [&*id, "prepared"]
        .into_iter()
        .map(|name| home.kiln(["run", "--from", name, "--", "sh", "-c", script]).run())
        .collect();
    for run in &runs {
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(run.text().starts_with("prepared once\n1234\n1\n"), "{}", run.text());
    }
    let names: BTreeSet<_> = runs.iter().map(|run| run.text().lines().last().map(str::to_owned)).collect();
    assert_eq!(names.len(), 2, "each fork has a host name of its own: {names:?}");

    let further = ["snapshot", "create", "further", "--json", "--from", "prepared", "--", "sh", "-c", "echo y >> /job"];
    let further = home.kiln(further).run();
    assert_eq!(further.code, 0, "{}", further.stderr);
    let report: serde_json::Value = serde_json::from_str(&further.text()).expect("one JSON object");
    assert_eq!((&report["from"], &report["image"]), (&id.as_str().into(), &serde_json::Value::Null));
    let saved = report["snapshot"].as_str().expect("an id");
    let read = home.kiln(["run", "--from", saved, "--", "cat", "/job"]).run();
    assert_eq!(read.text(), "prepared once\ny", "{}", read.stderr);

    let taken = home.kiln(["snapshot", "create", "prepared", "--", "true"]).run();
    assert_eq!(taken.code, 1);
    assert!(
        taken.stderr.contains("exists already") && taken.stderr.contains("kiln snapshot rm prepared"),
        "{}",
        taken.stderr
    );

    let removed = home.kiln(["snapshot", "rm", "further", "prepared"]).run();
    assert_eq!(removed.code, 0, "{}", removed.stderr);
    let gone = home.kiln(["run", "--from", "prepared", "--", "true"]).run();
    assert_eq!(gone.code, 1);
    assert!(gone.stderr.contains("there is no snapshot `prepared`"), "{}", gone.stderr);
}

#[test]
fn a_command_that_fails_saves_nothing() {
    let home = TestHome::with_ready_made();
    let before = home.snapshot_names();
    let failed = home.kiln(["snapshot", "create", "broken", "--", "sh", "-c", "exit 3"]).run();
    assert_eq!((failed.code, failed.text()), (3, String::new()), "{}", failed.stderr);
    assert!(failed.stderr.contains("`broken` was not saved"), "{}", failed.stderr);
    let late = home.kiln(["snapshot", "create", "late", "--timeout", "1s", "--", "sleep", "60"]).run();
    assert_eq!(late.code, 124, "{}", late.stderr);
    assert_eq!(home.snapshot_names(), before);
    assert_eq!(home.vms(), Vec::<String>::new());
}

#[test]
fn wrong_requests_for_a_snapshot_are_refused_before_a_vm_starts() {
    let home = TestHome::with_image();
    for (args, words) in [
        (&["snapshot", "create", "abcdef01", "--", "true"][..], "must not look like the first digits of an id"),
        (&["snapshot", "create", "../x", "--", "true"], "must have only lower case letters"),
        (&["snapshot", "create", "x", "--vhost-user", "blk:/s", "--", "true"], "can't be saved"),
        (&["run", "--from", "x", "-m", "512", "--", "true"], "cannot be used with"),
        (&["run", "--from", "x", "--cold", "--", "true"], "cannot be used with"),
    ] {
        let refused = home.kiln(args.iter().copied()).run();
        assert_eq!(refused.code, 2, "{args:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(words), "{args:?}: {}", refused.stderr);
    }
    assert_eq!(home.vms(), Vec::<String>::new());
}

//! `kiln snapshot`.

use camino::Utf8PathBuf;
use kiln_e2e::TestHome;
use kiln_e2e::guest::in_vm;
use kiln_engine::home::Home;
use kiln_engine::snapshot::{AfterSave, SnapshotRequest, SnapshotStore};
use kiln_engine::{Engine as _, Fork, ForkSpec, QemuEngine};
use kiln_wire::{ExecRequest, Text};

/// Forks a snapshot, writes a file in the fork, and saves it.
fn diff_on(home: &TestHome, parent: &str) -> String {
    let path = Utf8PathBuf::from_path_buf(home.path().into()).expect("UTF-8");
    let store = SnapshotStore::new(&Home::at(&path));
    let snapshot = store.open(&parent.parse().expect("an id")).expect("is whole");
    in_vm(async {
        let engine = QemuEngine::find(path).expect("QEMU is there");
        let mut forks = engine.restore(&snapshot, ForkSpec::default()).await.expect("restores");
        let Fork { vm, link } = forks.pop().expect("one fork");
        let argv = ["sh", "-c", "echo kept > /tmp/kept"].map(Text::from).to_vec();
        link.run(ExecRequest { argv, ..ExecRequest::default() }, b"", 0).await.expect("runs");
        let request = SnapshotRequest { link: Some(&link), then: AfterSave::End, label: "with a file".into() };
        let diff = vm.snapshot(request).await.expect("is saved");
        let sealed = diff.clone();
        tokio::task::spawn_blocking(move || sealed.seal()).await.expect("no panic").expect("seals");
        diff.id().to_string()
    })
}

#[test]
fn a_chain_is_listed_verified_compacted_and_removed_from_its_end() {
    let home = TestHome::with_ready_made();
    let root = home.only_snapshot();
    let diff = diff_on(&home, &root);

    let listed = home.kiln(["snapshot", "ls"]).run();
    for words in [&*root, "full", "sealed, ready-made", &*diff, "with a file", &*format!("diff on {root}"), "256 MiB"] {
        assert!(listed.text().contains(words), "no `{words}` in:\n{}", listed.text());
    }
    let verified = home.kiln(["snapshot", "verify", "--all"]).run();
    assert_eq!((verified.code, verified.text().matches("  whole  ").count()), (0, 2), "{}", verified.stderr);

    let refused = home.kiln(["snapshot", "rm", &root]).run();
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains(&format!("in use as the parent of `{diff}`")), "{}", refused.stderr);

    let compacted = home.kiln(["snapshot", "compact", &diff[..8]]).run();
    assert_eq!(compacted.code, 0, "{}", compacted.stderr);
    let full = home.snapshots().into_iter().find(|one| one["id"] == *diff).expect("keeps its name");
    assert_eq!((&full["kind"], &full["parent"]), (&"full".into(), &serde_json::Value::Null));

    let removed = home.kiln(["snapshot", "rm", &root]).run();
    assert_eq!(removed.code, 0, "{}", removed.stderr);
    assert_eq!(home.kiln(["snapshot", "verify", &diff]).run().code, 0);
    assert_eq!(home.kiln(["snapshot", "rm", &diff]).run().code, 0);
    assert_eq!(home.snapshot_names().len(), 0);
}

#[test]
fn a_snapshot_in_use_is_not_removed() {
    use std::io::Read as _;
    let home = TestHome::with_ready_made();
    let id = home.only_snapshot();
    let mut running = home.kiln(["run", "-i", "--", "sh", "-c", "echo up; cat"]).start();
    running.0.stdout.as_mut().expect("stdout is piped").read_exact(&mut [0; 3]).expect("the command starts");
    let refused = home.kiln(["snapshot", "rm", &id]).run();
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains(&id) && refused.stderr.contains("in use"), "{}", refused.stderr);
    let kept = home.kiln(["snapshot", "rm", "--ready"]).run();
    assert_eq!(kept.code, 0, "{}", kept.stderr);
    assert!(kept.stderr.contains("not removed"), "{}", kept.stderr);
    drop(running.0.stdin.take());
    assert_eq!(running.wait(), 0);
    assert_eq!(home.kiln(["snapshot", "rm", "--ready"]).run().code, 0);
    assert_eq!(home.snapshot_names().len(), 0);
}

#[test]
fn unknown_and_wrong_ids_are_refused() {
    let home = TestHome::with_image();
    for (args, code, words) in [
        (["verify", "0123456789abcdef"], 1, "there is no snapshot `0123456789abcdef`"),
        (["compact", "0123"], 2, "is not a name"),
        (["rm", "../../x"], 2, "is not a name"),
    ] {
        let outcome = home.kiln(["snapshot"].into_iter().chain(args)).run();
        assert_eq!(outcome.code, code, "{args:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(words) && outcome.stderr.contains("hint: "), "{}", outcome.stderr);
    }
    assert_eq!(home.kiln(["snapshot", "rm"]).run().code, 2);
    assert_eq!(home.kiln(["snapshot", "verify"]).run().code, 2);
}

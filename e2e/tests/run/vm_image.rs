//! Images with a root filesystem: imported from an archive, run, listed, removed.
//!
//! All tests that only run an image share one, since its content decides its digest and its ready-made snapshot.

use kiln_e2e::image::{Entry, MODIFIED, busybox, docker_archive, layer};
use kiln_e2e::{Kiln, Outcome, TestHome};
use serde_json::{Value, json};

/// The name of the shared image.
const NAME: &str = "e2e/userland:1";

fn config() -> Value {
    json!({
        "Env": ["COLOR=blue", "PATH=/bin"], "WorkingDir": "/opt/work", "Labels": { "a": "b" },
        "Entrypoint": ["/bin/busybox", "echo"], "Cmd": ["from", "cmd"], "StopSignal": "SIGQUIT",
    })
}

/// Two layers: busybox and some files, then marks that remove some of them.
fn layers() -> [Vec<u8>; 2] {
    let busybox = busybox();
    let base = layer(&[
        ("bin", Entry::Directory, 0o755),
        ("bin/busybox", Entry::File(&busybox), 0o755),
        ("bin/sh", Entry::Symlink("busybox"), 0o777),
        ("etc", Entry::Directory, 0o755),
        ("etc/passwd", Entry::File(b"root:x:0:0::/root:/bin/sh\njob:x:1000:1000::/home/job:/bin/sh\n"), 0o644),
        ("etc/group", Entry::File(b"root:x:0:\nteam:x:77:\n"), 0o644),
        ("etc/gone", Entry::File(b"x"), 0o644),
        ("opt", Entry::Directory, 0o755),
        ("opt/keep", Entry::File(b"old"), 0o644),
        ("opt/set", Entry::File(b"s"), 0o4755),
        ("opt/hard", Entry::HardLink("opt/keep"), 0o644),
        ("opt/dir", Entry::Directory, 0o755),
        ("opt/dir/a", Entry::File(b"a"), 0o644),
    ]);
    let top = layer(&[
        ("etc/.wh.gone", Entry::File(b""), 0o644),
        ("opt/dir/b", Entry::File(b"b"), 0o644),
        ("opt/dir/.wh..wh..opq", Entry::File(b""), 0o644),
    ]);
    [base, top]
}

fn import() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image.tar");
    docker_archive(&path, "other:1", &layers(), &config());
    let outcome = Kiln::new(["image", "import", path.to_str().expect("UTF-8"), "--name", NAME]).run();
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
}

fn shell(flags: &[&str], script: &str) -> Outcome {
    let flags = [&["run", "--image", NAME, "--entrypoint", "/bin/sh"], flags, &["--", "-c", script]].concat();
    Kiln::new(flags).run()
}

#[test]
fn the_configuration_decides_what_runs_and_arguments_win() {
    import();
    let text = |args: &[&str]| {
        let outcome = Kiln::new(args).run();
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        outcome.text()
    };
    assert_eq!(text(&["run", "--image", NAME]), "from cmd");
    assert_eq!(text(&["run", NAME, "other", "words"]), "other words");
    let seen = shell(&[], "echo $COLOR $(busybox pwd) $(busybox id -u)");
    assert_eq!(seen.text(), "blue /opt/work 0", "{}", seen.stderr);
    let seen = shell(&["-e", "COLOR=red", "-w", "/opt", "-u", "job:team"], "echo $COLOR $(busybox pwd) $(busybox id)");
    assert_eq!(seen.text(), "red /opt uid=1000(job) gid=77(team)", "{}", seen.stderr);
}

#[test]
fn the_stop_signal_of_an_image_ends_its_command() {
    import();
    let script = "trap 'echo quit; exit 7' QUIT; trap 'exit 9' TERM; while :; do busybox sleep 0.1; done";
    let seen = shell(&["--timeout", "1s"], script);
    assert_eq!((seen.code, seen.text().as_str()), (124, "quit"), "{}", seen.stderr);
    assert!(seen.stderr.contains("exited with 7 after SIGQUIT"), "{}", seen.stderr);
    let seen = shell(&["--timeout", "1s", "--stop-signal", "TERM"], script);
    assert!(seen.stderr.contains("exited with 9 after SIGTERM"), "{}", seen.stderr);
}

#[test]
fn the_layers_are_one_root_with_all_attributes() {
    import();
    let script = "busybox test ! -e /etc/gone && busybox ls /opt/dir && busybox cat /opt/hard && \
         busybox stat -c ' %h %a %Y' /opt/keep /opt/set";
    let seen = shell(&[], script);
    let expected = format!("b\nold 2 644 {MODIFIED}\n 1 4755 {MODIFIED}");
    assert_eq!(seen.text(), expected, "{}", seen.stderr);
}

#[test]
fn each_run_has_a_fresh_root_whose_directories_can_be_renamed() {
    import();
    let script = "busybox test ! -e /opt/new && echo x > /opt/new && busybox mv /opt/dir /opt/moved && \
         busybox ls /opt/moved && busybox stat -c %a /";
    for _ in 0..2 {
        let seen = shell(&[], script);
        assert_eq!((seen.code, seen.text().as_str()), (0, "b\n755"), "{}", seen.stderr);
    }
}

#[test]
fn an_image_boots_too() {
    import();
    let outcome = Kiln::new(["run", "--cold", "--image", NAME]).run();
    assert_eq!((outcome.code, outcome.text().as_str()), (0, "from cmd"), "{}", outcome.stderr);
}

#[test]
fn an_image_is_listed_inspected_verified_and_removed() {
    let home = TestHome::with_image();
    let path = home.path().join("image.tar");
    docker_archive(&path, "tool:2", &[layers(), layers()].concat(), &config());
    let kiln = |args: &[&str], code: i32| {
        let outcome = home.kiln(args.iter().copied()).run();
        assert_eq!(outcome.code, code, "{args:?}: {}", outcome.stderr);
        outcome
    };
    let digest = kiln(&["image", "import", path.to_str().expect("UTF-8")], 0).text();
    let listed: Value = serde_json::from_slice(&kiln(&["image", "ls", "--json"], 0).stdout).expect("JSON");
    let is_new = |one: &&Value| one["name"] == "tool:2";
    let root = listed.as_array().and_then(|list| list.iter().find(is_new)).expect("the archive has its name");
    assert_eq!((&root["kind"], &root["digest"]), (&json!("root"), &json!(digest)));
    let inspected: Value = serde_json::from_slice(&kiln(&["image", "inspect", "tool:2"], 0).stdout).expect("JSON");
    assert_eq!(inspected["config"]["config"]["Labels"], json!({ "a": "b" }), "{inspected}");
    assert!(kiln(&["image", "history", "tool:2"], 0).text().contains("a test"));
    kiln(&["image", "verify", &digest[..12]], 0);

    // Another image takes the name, so this one has none and is pruned.
    docker_archive(&path, "tool:2", &layers()[..1], &config());
    kiln(&["image", "import", path.to_str().expect("UTF-8")], 0);
    assert_eq!(kiln(&["image", "prune", "--dry-run"], 0).text(), digest);
    assert_eq!(kiln(&["image", "prune"], 0).text(), digest);
    assert_eq!(kiln(&["image", "prune"], 0).text(), "");
    kiln(&["image", "rm", "tool:2"], 0);
    let failure = kiln(&["run", "--pull", "never", "--image", "tool:2"], 69);
    assert!(failure.stderr.contains("`tool:2`"), "{}", failure.stderr);
}

#[test]
fn an_image_that_a_snapshot_needs_is_not_removed() {
    let home = TestHome::with_image();
    let path = home.path().join("image.tar");
    // Not the image of other tests, which has another name in this home.
    docker_archive(&path, "tool", &layers()[..1], &config());
    let kiln = |args: &[&str], code: i32| {
        let outcome = home.kiln(args.iter().copied()).run();
        assert_eq!(outcome.code, code, "{args:?}: {}", outcome.stderr);
        outcome
    };
    kiln(&["image", "import", path.to_str().expect("UTF-8")], 0);
    let prepare = ["snapshot", "create", "ready", "--image", "tool", "--entrypoint", "", "--", "/bin/sh", "-c"];
    kiln(&[&prepare[..], &["echo saved > /opt/state"]].concat(), 0);
    let refused = kiln(&["image", "rm", "tool"], 69);
    assert!(refused.stderr.contains("kiln snapshot rm"), "{}", refused.stderr);
    let seen = kiln(&["run", "--from", "ready", "--entrypoint", "/bin/busybox", "--", "cat", "/opt/state"], 0);
    assert_eq!(seen.text(), "saved");
    // What the image runs, and how, is true for its snapshots and for snapshots of their forks.
    let shell = ["--entrypoint", "/bin/sh", "--", "-c"];
    let further = ["snapshot", "create", "further", "--from", "ready"];
    kiln(&[&further[..], &shell, &["echo more >> /opt/state"]].concat(), 0);
    for name in ["ready", "further"] {
        assert_eq!(kiln(&["run", "--from", name], 0).text(), "from cmd");
        assert_eq!(kiln(&["run", "--from", name, "--", "other", "words"], 0).text(), "other words");
    }
    let script = "echo $COLOR; busybox pwd; busybox cat /opt/state";
    let seen = kiln(&[&["run", "--from", "further"], &shell[..], &[script]].concat(), 0);
    assert_eq!(seen.text(), "blue\n/opt/work\nsaved\nmore");
    // Another root under the digest of the snapshot's image: its memory does not fit it.
    let listed: Value = serde_json::from_slice(&kiln(&["snapshot", "ls", "--json"], 0).stdout).expect("JSON");
    let is_ready = |one: &&Value| one["label"] == "ready";
    let digest = listed.as_array().and_then(|list| list.iter().find(is_ready)).expect("is listed")["image"].clone();
    let root = home.path().join("images").join(digest.as_str().expect("a digest")).join("root.erofs");
    let whole = std::fs::read(&root).expect("reads");
    std::fs::remove_file(&root).expect("removed");
    std::fs::write(&root, [&whole[..whole.len() - 1], b"x"].concat()).expect("written");
    let refused = kiln(&["run", "--from", "ready"], 69);
    assert!(refused.stderr.contains("the image of the snapshot"), "{}", refused.stderr);
    assert!(refused.stderr.contains("`root.erofs` is not what was built"), "{}", refused.stderr);
    kiln(&["snapshot", "rm", "further"], 0);
    kiln(&["snapshot", "rm", "ready"], 0);
    kiln(&["image", "rm", "tool"], 0);
}

#[test]
fn with_a_disk_the_changes_of_the_root_are_not_in_memory_and_end_with_the_vm() {
    import();
    // More than the guest has memory, of which an upper layer in memory gets half.
    let script = "busybox test ! -e /opt/new && busybox dd if=/dev/zero of=/opt/new bs=1M count=300 2>/dev/null && \
         busybox sync && busybox stat -c %s /opt/new && busybox rm -r /opt/dir && busybox mv /opt/keep /opt/moved && \
         busybox cat /opt/moved && busybox stat -c ' %a' / && busybox df -k / | busybox tail -n 1 | busybox awk '{print ($2 > 900000)}'";
    for flags in [&["--json"][..], &["--json"], &["--json", "--cold"]] {
        let seen = shell(&[&["--disk", "1G", "--memory", "256"], flags].concat(), script);
        assert_eq!(seen.code, 0, "{} {}", seen.text(), seen.stderr);
        let report: Value = serde_json::from_slice(&seen.stdout).expect("an object");
        assert_eq!(report["stdout"], "314572800\nold 755\n1\n", "{report}");
        assert_eq!(report["start"], if flags.len() == 1 { "fork" } else { "boot" }, "{report}");
    }
    let report = shell(&["--disk", "1G", "--memory", "256", "--json"], "busybox true");
    let report: Value = serde_json::from_slice(&report.stdout).expect("an object");
    assert!(report["ready_ms"].is_null(), "one ready-made snapshot serves all disks of a size: {report}");
    let refused = Kiln::new(["run", "--disk", "1G", "--", "true"]).run();
    assert!(refused.code == 2 && refused.stderr.contains("root filesystem"), "{}", refused.stderr);
}

#[test]
fn a_snapshot_has_the_disk_of_its_root() {
    import();
    let name = format!("e2e-disk-{}", std::process::id());
    let flags = ["snapshot", "create", &name, "--image", NAME, "--disk", "1G", "--memory", "256"];
    let script = "busybox dd if=/dev/zero of=/opt/big bs=1M count=200 2>/dev/null; echo saved > /opt/new";
    let made = Kiln::new(flags.into_iter().chain(["--entrypoint", "/bin/sh", "--", "-c", script])).run();
    assert_eq!(made.code, 0, "{}", made.stderr);
    let script =
        "busybox cat /opt/new && busybox stat -c %s /opt/big && echo changed > /opt/new && busybox rm /opt/big";
    let seen =
        [(); 2].map(|()| Kiln::new(["run", "--from", &name, "--entrypoint", "/bin/sh", "--", "-c", script]).run());
    let removed = Kiln::new(["snapshot", "rm", &name]).run();
    for seen in seen {
        assert_eq!((seen.code, seen.text().as_str()), (0, "saved\n209715200"), "{}", seen.stderr);
    }
    assert_eq!(removed.code, 0, "{}", removed.stderr);
}

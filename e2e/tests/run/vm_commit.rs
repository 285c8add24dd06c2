//! `kiln commit`: what a VM changed in its files becomes an image.

use kiln_e2e::image::{Entry, busybox, docker_archive, layer};
use kiln_e2e::{Outcome, TestHome};
use serde_json::{Value, json};

/// Changes of all kinds: new, changed, removed, moved and replaced files and directories.
const CHANGES: &str = "
    busybox mkdir -p /opt/new/deep && echo made > /opt/new/deep/file && busybox ln /opt/new/deep/file /opt/new/hard &&
    busybox ln -s deep/file /opt/new/link && busybox mkfifo /opt/new/fifo && busybox chmod 4755 /opt/new/deep/file &&
    busybox rm /etc/gone && busybox rm -r /opt/lost && busybox chmod 600 /opt/keep && busybox chown 1000:77 /opt/owned &&
    busybox mv /opt/dir /opt/moved && echo more > /opt/moved/c && busybox rm /opt/moved/b &&
    busybox rm -r /opt/fresh && busybox mkdir /opt/fresh && echo again > /opt/fresh/only &&
    busybox rm /opt/kind && busybox mkdir /opt/kind && echo x > /opt/kind/file && busybox touch -d @1500000000 /opt/kind/file &&
    echo lost > /tmp/lost && echo 10.0.0.1 elsewhere >> /etc/hosts && echo lost > /run/lost";

/// All of a root as lines, and contents of files.
const LIST: &str = "
    cd / && busybox find bin etc opt -xdev ! -path etc/hosts ! -path etc/hostname ! -path etc/machine-id \
        ! -path etc/resolv.conf | busybox sort | while read -r path; do
            busybox stat -c '%n %F %a %u:%g %h %s' \"$path\"; done | busybox sed '/ directory /s/ [0-9]* [0-9]*$//' &&
    busybox find etc/passwd opt -xdev -type f | busybox sort | busybox xargs busybox md5sum &&
    busybox stat -c %Y /opt/kind/file /opt/keep";

fn import(home: &TestHome) {
    let path = home.path().join("image.tar");
    let busybox = busybox();
    let files = layer(&[
        ("bin", Entry::Directory, 0o755),
        ("bin/busybox", Entry::File(&busybox), 0o755),
        ("bin/sh", Entry::Symlink("busybox"), 0o777),
        ("etc", Entry::Directory, 0o755),
        ("etc/passwd", Entry::File(b"root:x:0:0::/root:/bin/sh\njob:x:1000:1000::/:/bin/sh\n"), 0o644),
        ("etc/gone", Entry::File(b"x"), 0o644),
        ("opt", Entry::Directory, 0o755),
        ("opt/keep", Entry::File(b"kept"), 0o644),
        ("opt/owned", Entry::File(b"owned"), 0o644),
        ("opt/kind", Entry::File(b"a file"), 0o644),
        ("opt/dir", Entry::Directory, 0o750),
        ("opt/dir/a", Entry::File(b"a"), 0o640),
        ("opt/dir/b", Entry::File(b"b"), 0o640),
        ("opt/dir/below", Entry::Directory, 0o755),
        ("opt/dir/below/d", Entry::File(b"d"), 0o644),
        ("opt/lost", Entry::Directory, 0o755),
        ("opt/lost/x", Entry::File(b"x"), 0o644),
        ("opt/fresh", Entry::Directory, 0o755),
        ("opt/fresh/old", Entry::File(b"old"), 0o644),
    ]);
    let config = json!({ "Env": ["COLOR=blue", "PATH=/bin"], "Cmd": ["/bin/busybox", "cat", "/opt/new/deep/file"] });
    docker_archive(&path, "tool", &[files], &config);
    let imported = home.kiln(["image", "import", path.to_str().expect("UTF-8")]).run();
    assert_eq!(imported.code, 0, "{}", imported.stderr);
}

#[test]
fn an_image_of_a_snapshot_has_exactly_its_files_and_the_changed_configuration() {
    let home = TestHome::with_image();
    import(&home);
    let kiln = |args: &[&str], code: i32| -> Outcome {
        let outcome = home.kiln(args.iter().copied()).run();
        assert_eq!(outcome.code, code, "{args:?}: {}", outcome.stderr);
        outcome
    };
    let shell = ["--", "/bin/sh", "-c"];
    kiln(&[&["snapshot", "create", "work", "--image", "tool"], &shell[..], &[CHANGES]].concat(), 0);
    let before = kiln(&[&["run", "--from", "work"], &shell[..], &[LIST]].concat(), 0).text();
    assert!(before.contains("opt/moved/below/d regular file 644 0:0 1 1"), "{before}");

    let change = ["--change", "ENV MORE two words", "--change", "USER job", "--change", "WORKDIR /srv/app"];
    let digest = kiln(&[&["commit", "work", "--name", "made", "-M", "a note"], &change[..]].concat(), 0).text();
    let after = kiln(&[&["run", "--image", "made", "-u", "root", "-w", "/"], &shell[..], &[LIST]].concat(), 0).text();
    assert_eq!(after, before);
    let script = "echo $COLOR $MORE $(busybox pwd) $(busybox id -un); busybox ls /tmp /run; busybox cat /etc/hosts";
    let seen = kiln(&[&["run", "--image", "made"], &shell[..], &[script]].concat(), 0).text();
    assert!(seen.starts_with("blue two words /srv/app job\n"), "{seen}");
    assert!(!seen.contains("lost") && !seen.contains("elsewhere"), "{seen}");
    assert_eq!(kiln(&["run", "made"], 0).text(), "made");
    assert!(kiln(&["image", "history", "made"], 0).text().contains("a note"));

    // The same changes are the same image; without changes only the history is new.
    let again = kiln(&[&["commit", "work", "--name", "again", "-M", "a note"], &change[..], &["--json"]].concat(), 0);
    let again: Value = serde_json::from_slice(&again.stdout).expect("JSON");
    assert_eq!(again["digest"], digest.as_str());

    // Refused before a VM starts.
    for (args, words) in [
        (&["commit", "work", "--name", "x", "--change", "RUN make"][..], "`RUN make` is not a change"),
        (&["commit", "work", "--name", "a b"], "`a b`"),
    ] {
        let refused = kiln(args, 2);
        assert!(refused.stderr.contains(words), "{args:?}: {}", refused.stderr);
    }
    kiln(&["commit", "no-such-snapshot", "--name", "x"], 1);
}

#[test]
fn a_vm_without_an_image_has_nothing_to_commit() {
    let home = TestHome::with_image();
    let made = home.kiln(["snapshot", "create", "plain", "--", "true"]).run();
    assert_eq!(made.code, 0, "{}", made.stderr);
    let refused = home.kiln(["commit", "plain", "--name", "x"]).run();
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("kiln snapshot create NAME --image"), "{}", refused.stderr);
}

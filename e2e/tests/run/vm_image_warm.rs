//! `kiln image warm --run`: lines that run before the save are kept with the image.

use kiln_e2e::image::{Entry, busybox, docker_archive, layer};
use kiln_e2e::{Outcome, TestHome};
use serde_json::{Value, json};

#[test]
fn lines_of_warm_are_kept_with_the_image_and_used_for_all_sizes() {
    let home = TestHome::with_image();
    let path = home.path().join("image.tar");
    let busybox = busybox();
    let files = layer(&[
        ("bin", Entry::Directory, 0o755),
        ("bin/busybox", Entry::File(&busybox), 0o755),
        ("bin/sh", Entry::Symlink("busybox"), 0o777),
        ("etc", Entry::Directory, 0o755),
        ("etc/passwd", Entry::File(b"root:x:0:0::/root:/bin/sh\njob:x:1000:1000::/:/bin/sh\n"), 0o644),
        ("work", Entry::Directory, 0o777),
    ]);
    let config = json!({ "Env": ["COLOR=blue", "PATH=/bin"], "WorkingDir": "/work", "User": "job",
        "Cmd": ["/bin/busybox", "cat", "/work/made"] });
    docker_archive(&path, "tool", &[files], &config);
    let kiln = |args: &[&str], code: i32| -> Outcome {
        let outcome = home.kiln(args.iter().copied()).run();
        assert_eq!(outcome.code, code, "{args:?}: {}", outcome.stderr);
        outcome
    };
    let lines = || {
        let inspected: Value = serde_json::from_slice(&kiln(&["image", "inspect", "tool"], 0).stdout).expect("JSON");
        inspected["warm"].clone()
    };
    kiln(&["image", "import", path.to_str().expect("UTF-8")], 0);
    assert_eq!(lines(), json!([]));

    // A line that fails is told with what to do, and is not kept.
    let failed = kiln(&["image", "warm", "tool", "--run", "echo why >&2; exit 3"], 1);
    assert!(failed.stderr.contains("exited with 3 before the save: why"), "{}", failed.stderr);
    assert!(failed.stderr.contains("kiln image warm tool --no-run"), "{}", failed.stderr);
    let failed = kiln(&["image", "warm", "tool", "--run", "surely-not-here"], 1);
    assert!(failed.stderr.contains("not in the image"), "{}", failed.stderr);
    assert_eq!(lines(), json!([]));

    // The line runs as the image's own command does. Its changes are in all forks, of other sizes too, and after the
    // snapshots were removed.
    let line = "echo $COLOR $(busybox pwd) $(busybox id -un) > made";
    kiln(&["image", "warm", "tool", "--run", line], 0);
    assert_eq!(lines(), json!([line]));
    let warm = "blue /work job";
    assert_eq!(kiln(&["run", "tool"], 0).text(), warm);
    kiln(&["snapshot", "rm", "--ready"], 0);
    assert_eq!(kiln(&["run", "-m", "320", "tool"], 0).text(), warm);
    let again = kiln(&["image", "warm", "tool", "--json"], 0);
    let again: Value = serde_json::from_slice(&again.stdout).expect("JSON");
    assert_eq!(again["run"], json!([line]));

    kiln(&["image", "warm", "tool", "--no-run"], 0);
    assert_eq!(lines(), json!([]));
    let cold = kiln(&["run", "tool"], 1);
    assert!(cold.stderr.contains("No such file"), "{}", cold.stderr);
}

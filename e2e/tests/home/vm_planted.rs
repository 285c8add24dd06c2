//! A home of this user with files that another user made up: nothing of it is run, killed or truncated.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Child, Command};

use kiln_e2e::TestHome;

const CONTENT: &str = "precious";

/// A process that has nothing to do with Kiln.
struct Innocent(Child);

impl Innocent {
    fn start() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().expect("starts"))
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().expect("is a child").is_none()
    }
}

impl Drop for Innocent {
    fn drop(&mut self) {
        // It may have been killed already; the test checks that before.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().expect("is below the home")).expect("made");
    fs::write(path, content).expect("written");
}

#[test]
fn nothing_planted_is_run_killed_or_truncated() {
    let home = TestHome::with_image();
    let elsewhere = tempfile::tempdir().expect("a directory");
    let (victim, marker) = (elsewhere.path().join("victim"), elsewhere.path().join("marker"));
    write(&victim, CONTENT);

    // A VM whose pid file names a running process, with the name and start time of that process.
    let mut innocent = Innocent::start();
    let vm = home.path().join("vms/0123456789ab");
    write(&vm.join("spec.json"), "{}");
    write(&vm.join("journal"), "");
    let stat = fs::read_to_string(format!("/proc/{}/stat", innocent.0.id())).expect("runs");
    write(&vm.join("pid"), &stat);
    // Programs at paths from which an older Kiln would have run them.
    let script = format!("#!/bin/sh\necho ran > {}\n", marker.display());
    for program in ["cache/busybox", "images/busybox", "images/busybox-0.partial/busybox"] {
        let program = home.path().join(program);
        write(&program, &script);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("set");
    }
    write(&home.path().join("cache/busybox-static_9_amd64.deb"), &script);
    // Locks, notes and logs that lead elsewhere.
    let _ = fs::remove_file(home.path().join("images/locks/mini"));
    for link in ["images/locks/mini", "probe.lock", "cache/x.partial", "vms/0123456789ab/console.log"] {
        let link = home.path().join(link);
        fs::create_dir_all(link.parent().expect("is below the home")).expect("made");
        symlink(&victim, link).expect("made");
    }

    let outcome = home.kiln(["run", "--", "true"]).run();
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let build = home.kiln(["image", "build", "mini"]).run();
    assert_ne!(build.code, 0, "its lock is a link");
    assert!(build.stderr.contains("images/locks/mini` is not an ordinary file"), "{}", build.stderr);

    assert!(innocent.is_alive(), "a process that a pid file names was killed");
    assert_eq!(fs::read_to_string(&victim).expect("is there"), CONTENT);
    assert!(!marker.exists(), "a program of the home was run");
    assert!(vm.exists(), "a VM whose VMM is not proved to be its own is left as it is");
}

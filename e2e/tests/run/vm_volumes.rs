//! Volumes in real VMs: they outlive their VMs, also if kiln is killed, and one VM writes to each or many read it.
//!
//! Each test has a volume of its own name in the shared home, so that all of them use one ready-made snapshot. The volume
//! is removed at the end of the test.

use std::fs;
use std::io::Read as _;

use kiln_e2e::{Kiln, Outcome, Running, TestHome, is_running, until, until_booted};
use rustix::process::Signal;
use serde_json::Value;

/// The size of all volumes here: each size has a ready-made snapshot of its own.
const SIZE: &str = "64M";

/// A volume that is removed when dropped.
struct Volume(String);

impl Volume {
    fn new(name: &str) -> Self {
        let this = Self(format!("e2e-{name}-{}", std::process::id()));
        let made = kiln(&["volume", "create", &this.0, "--size", SIZE]);
        assert_eq!(made.text(), this.0);
        this
    }

    /// `-v` for it.
    fn at(&self, target: &str) -> String {
        format!("{}:{target}", self.0)
    }

    fn run(&self, target: &str, script: &str) -> Outcome {
        Kiln::shell(&["-v", &self.at(target)], script).run()
    }

    fn inspect(&self) -> Value {
        let found = kiln(&["volume", "inspect", &self.0, "--json"]);
        serde_json::from_slice(&found.stdout).expect("an object")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // A VM of a test that panicked may still end.
        let _ = Kiln::new(["volume", "rm", &self.0]).run();
    }
}

/// Runs kiln, which must succeed.
fn kiln(args: &[&str]) -> Outcome {
    let outcome = Kiln::new(args).run();
    assert_eq!(outcome.code, 0, "{args:?}: {}", outcome.stderr);
    outcome
}

/// A run that has done the first part of its script.
fn started(flags: &[&str], first: &str, then: &str) -> (Running, i32) {
    let mut running = Kiln::shell(flags, &format!("{first}; echo up; {then}")).start();
    let mut up = [0; 3];
    running.0.stdout.as_mut().expect("stdout is piped").read_exact(&mut up).expect("the command starts");
    let vmms = running.vmms();
    assert_eq!((&up, vmms.len()), (b"up\n", 1));
    (running, vmms[0])
}

#[test]
fn a_volume_outlives_its_vm_and_its_end_is_clean_in_forks_and_boots() {
    let volume = Volume::new("outlives");
    for (flags, word) in [(&["--json"][..], "fork"), (&["--cold", "--json"], "boot")] {
        let at = volume.at("/var/lib/x");
        let flags = [flags, &["-v", &at]].concat();
        let report = Kiln::shell(&flags, &format!("cat /var/lib/x/f; echo {word} > /var/lib/x/f")).run();
        assert_eq!(report.code, 0, "{}", report.stderr);
        let report: Value = serde_json::from_slice(&report.stdout).expect("an object");
        assert_eq!(report["start"], word, "{report}");
        assert_eq!(volume.inspect()["state"], "clean");
    }
    let read = volume.run("/other/place:ro", "cat /other/place/f; mount | grep -c 'vda.*/other/place.*ro'");
    assert_eq!((read.code, read.text().as_str(), read.stderr.as_str()), (0, "boot\n1", ""));
}

#[test]
fn a_read_only_volume_can_not_be_written_in_any_way() {
    let volume = Volume::new("read-only");
    kiln(&["run", "-v", &volume.at("/data"), "--", "sh", "-c", "echo kept > /data/f"]);
    let script = "echo x > /data/g && exit 90; mount -o remount,rw /data && exit 91; echo x > /dev/vda && exit 92; \
                  cat /data/f";
    let outcome = volume.run("/data:ro", script);
    assert_eq!((outcome.code, outcome.text().as_str()), (0, "kept"), "{}", outcome.stderr);
    let outcome = volume.run("/data:ro", "echo x > /data/g");
    assert_ne!(outcome.code, 0);
}

#[test]
fn two_vms_read_a_volume_and_no_other_vm_writes_meanwhile() {
    let volume = Volume::new("shared");
    kiln(&["run", "-v", &volume.at("/data"), "--", "sh", "-c", "echo kept > /data/f"]);
    let at = volume.at("/data:ro");
    let (mut reader, _) = started(&["-v", &at], "cat /data/f > /dev/null", "exec sleep 120");
    assert_eq!(volume.run("/x:ro", "cat /x/f").text(), "kept");
    for args in [
        &["run", "-v", &volume.at("/data"), "--", "true"][..],
        &["volume", "rm", &volume.0],
        &["volume", "grow", &volume.0, "128M"],
    ] {
        let refused = Kiln::new(args).run();
        assert!(refused.code == 1 && refused.stderr.contains("is in use by the process"), "{}", refused.stderr);
        assert!(refused.stderr.contains("hint: "), "{}", refused.stderr);
    }
    reader.signal(Signal::INT);
    assert_eq!(reader.wait(), 130);
    let at = volume.at("/data");
    let (mut writer, _) = started(&["-v", &at], "echo new > /data/f", "exec sleep 120");
    for target in ["/data", "/data:ro"] {
        let refused = volume.run(target, "true");
        assert!(refused.code == 1 && refused.stderr.contains("is in use"), "{}", refused.stderr);
    }
    assert_eq!(volume.inspect()["state"], "writing");
    writer.signal(Signal::INT);
    assert_eq!(writer.wait(), 130);
    assert_eq!(volume.inspect()["state"], "clean");
    assert_eq!(volume.run("/data:ro", "cat /data/f").text(), "new");
}

#[test]
fn whatever_ends_a_run_the_volume_has_what_was_written() {
    let volume = Volume::new("ends");
    let at = volume.at("/data");
    let timed_out = Kiln::shell(&["-v", &at, "--timeout", "3s"], "echo timeout > /data/f; exec sleep 120").run();
    assert_eq!(timed_out.code, 124, "{}", timed_out.stderr);
    assert_eq!(volume.inspect()["state"], "clean", "{}", timed_out.stderr);
    assert_eq!(volume.run("/data:ro", "cat /data/f").text(), "timeout");
    // Processes that hold files open are ended before the unmount.
    let failed = volume.run("/data", "(exec 3> /data/open; sleep 120) & echo failed > /data/f; exit 7");
    assert_eq!(failed.code, 7, "{}", failed.stderr);
    assert_eq!(volume.inspect()["state"], "clean", "{}", failed.stderr);
    let (mut running, _) = started(&["-v", &at], "echo term > /data/f", "exec sleep 120");
    running.signal(Signal::TERM);
    assert_eq!(running.wait(), 143);
    assert_eq!(volume.inspect()["state"], "clean");
    assert_eq!(volume.run("/data:ro", "cat /data/f").text(), "term");
    // A guest that ends on its own has not unmounted it.
    let crashed = volume.run("/data", "echo synced > /data/f; sync; echo c > /proc/sysrq-trigger; sleep 120");
    assert_eq!(crashed.code, 125, "{}", crashed.stderr);
    assert_eq!(volume.inspect()["state"], "dirty");
    let after = volume.run("/data:ro", "cat /data/f");
    assert_eq!(after.text(), "synced", "{}", after.stderr);
}

#[test]
fn kill_9_while_the_guest_writes_loses_nothing_that_was_synced() {
    let volume = Volume::new("killed");
    let at = volume.at("/data");
    for round in 0..2 {
        let write = format!("echo {round} > /data/synced; sync");
        let more = "i=0; while :; do i=$((i + 1)); echo $i > /data/$i; echo $i > /data/last; done";
        let (mut running, vmm) = started(&["-v", &at], &write, more);
        running.signal(Signal::KILL);
        assert_eq!(running.wait(), 137);
        let read = volume.run("/data:ro", "cat /data/synced; echo more > /data/x && exit 90; true");
        assert!(!is_running(vmm), "the next use waits for the VMM of the last one");
        assert_eq!((read.code, read.text()), (0, round.to_string()), "{}", read.stderr);
        assert!(read.stderr.contains("was not unmounted by its last VM"), "{}", read.stderr);
        assert_eq!(volume.inspect()["state"], "clean");
        let again = volume.run("/data", "cat /data/synced; echo x > /data/x; rm -rf /data/x /data/[0-9]*");
        assert_eq!((again.code, again.text()), (0, round.to_string()), "{}", again.stderr);
        assert_eq!(again.stderr, "");
    }
}

#[test]
fn a_grown_volume_has_more_space_and_a_clone_differs_afterwards() {
    let volume = Volume::new("grows");
    let clone = Volume(format!("{}-clone", volume.0));
    let space = "df -k /data | tail -n 1 | awk '{print $2}'";
    let before: u64 = volume.run("/data", &format!("echo one > /data/f; {space}")).text().parse().expect("a number");
    kiln(&["volume", "clone", &volume.0, &clone.0]);
    assert!(kiln(&["volume", "grow", &volume.0, "128M"]).text().contains("128.0 MiB now"));
    let after = volume.run("/data", &format!("cat /data/f; echo two > /data/f; {space}"));
    let (word, space) =
        after.text().split_once('\n').map(|(word, space)| (word.to_owned(), space.to_owned())).expect("two lines");
    assert!(word == "one" && space.parse::<u64>().expect("a number") > before * 18 / 10, "{before} {space}");
    assert_eq!(clone.run("/data:ro", "cat /data/f").text(), "one");
    assert_eq!(volume.run("/data:ro", "cat /data/f").text(), "two");
}

#[test]
fn a_volume_grows_while_its_vm_writes_and_keeps_its_files() {
    let volume = Volume::new("online");
    let disk = Volume(format!("{}-disk", volume.0));
    kiln(&["volume", "create", &disk.0, "--size", SIZE, "--raw"]);
    let (at, raw) = (volume.at("/data"), disk.at("disk"));
    for flags in [&["-v", at.as_str(), "-v", raw.as_str()][..], &["--cold", "-v", at.as_str()]] {
        // It writes until the disk is larger, waits for the end of its input, and fails if there is no space for 80 MiB.
        let more = "i=0; while [ $(df -k /data | tail -n 1 | awk '{print $2}') -lt 90000 ]; do i=$((i + 1)); \
                    echo $i > /data/x; done; cat > /dev/null; dd if=/dev/zero of=/data/big bs=1M count=80 2> /dev/null && cat /data/f && \
                    cat /sys/class/block/vd?/size && rm /data/big";
        let (mut running, _) = started(&[flags, &["-i"]].concat(), "echo kept > /data/f", more);
        assert!(kiln(&["volume", "grow", &volume.0, "128M"]).text().contains("128.0 MiB now"));
        if flags.len() > 3 {
            assert!(kiln(&["volume", "grow", &disk.0, "96M"]).text().contains("96.0 MiB now"));
        }
        let shrink = Kiln::new(["volume", "grow", &volume.0, "64M"]).run();
        assert!(shrink.code == 1 && shrink.stderr.contains("can't shrink"), "{}", shrink.stderr);
        drop(running.0.stdin.take());
        let mut rest = String::new();
        running.0.stdout.as_mut().expect("stdout is piped").read_to_string(&mut rest).expect("reads");
        assert_eq!(running.wait(), 0, "{rest}");
        assert!(rest.starts_with("kept\n262144\n"), "{rest}");
        let found = volume.inspect();
        assert!(found["state"] == "clean" && found["bytes"] == 128 << 20, "{found}");
        kiln(&["volume", "rm", &volume.0]);
        kiln(&["volume", "create", &volume.0, "--size", SIZE]);
    }
    assert_eq!(disk.inspect()["bytes"], 96 << 20);
}

#[test]
fn a_volume_that_does_not_exist_is_created_to_write_but_not_to_read() {
    let volume = Volume(format!("e2e-created-{}", std::process::id()));
    let refused = volume.run("/data:ro", "true");
    assert!(refused.code == 1 && refused.stderr.contains("does not exist"), "{}", refused.stderr);
    let created = volume.run("/data", "echo kept > /data/f");
    assert!(created.stderr.contains(&format!("created the volume `{}`", volume.0)), "{}", created.stderr);
    let read = volume.run("/data:ro", "cat /data/f");
    assert_eq!((read.text().as_str(), read.stderr.as_str()), ("kept", ""));
    let found = volume.inspect();
    assert!(found["bytes"].as_u64() == Some(10 << 30) && found["bytes_on_disk"].as_u64() < Some(64 << 20), "{found}");
}

#[test]
fn a_raw_disk_and_a_filesystem_are_two_disks_of_one_guest() {
    let volume = Volume::new("two");
    let disk = Volume(format!("{}-disk", volume.0));
    kiln(&["volume", "create", &disk.0, "--size", SIZE, "--raw"]);
    let (at, raw) = (volume.at("/data"), disk.at("disk"));
    let script = "echo on-the-disk > /dev/vda; echo file > /data/f; sync; cat /proc/mounts | grep -c /dev/vd";
    let outcome = Kiln::shell(&["-v", &raw, "-v", &at], script).run();
    assert_eq!((outcome.code, outcome.text().as_str()), (0, "1"), "{}", outcome.stderr);
    let read =
        Kiln::shell(&["-v", &disk.at("disk:ro")], "head -n 1 /dev/vda; echo x > /dev/vda && exit 90; true").run();
    assert_eq!((read.code, read.text().as_str()), (0, "on-the-disk"), "{}", read.stderr);
    let refused = disk.run("/data", "true");
    assert!(refused.code == 1 && refused.stderr.contains("it is a raw disk"), "{}", refused.stderr);
}

#[test]
fn forks_of_one_snapshot_have_their_own_volumes_at_the_same_time() {
    let volumes = ["one", "two"].map(Volume::new);
    let mut running = Vec::new();
    for volume in &volumes {
        let write = format!("echo {} > /data/f", volume.0);
        running.push(started(&["-v", &volume.at("/data")], &write, "exec sleep 120").0);
    }
    for mut one in running {
        one.signal(Signal::INT);
        assert_eq!(one.wait(), 130);
    }
    for volume in &volumes {
        assert_eq!(volume.run("/data:ro", "cat /data/f").text(), volume.0);
    }
}

#[test]
fn an_imported_disk_is_used_and_exported_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let volume = Volume::new("source");
    let copy = Volume(format!("{}-copy", volume.0));
    volume.run("/data", "echo kept > /data/f");
    let file = directory.path().join("disk.img");
    let file = file.to_str().expect("UTF-8");
    kiln(&["volume", "export", &volume.0, file]);
    let again = Kiln::new(["volume", "export", &volume.0, file]).run();
    assert!(again.code == 1 && again.stderr.contains("already exists"), "{}", again.stderr);
    kiln(&["volume", "import", file, "--name", &copy.0]);
    assert_eq!(copy.run("/data", "cat /data/f").text(), "kept");
    let stream = kiln(&["volume", "export", &copy.0, "-"]);
    assert_eq!(stream.stdout.len(), 64 << 20);
}

#[test]
fn the_marks_of_a_run_that_is_still_booting_are_left_by_kill_9() {
    let volume = Volume::new("booting");
    let mut running = Kiln::new(["run", "--cold", "-v", &volume.at("/data"), "--", "true"]).start();
    let vmm = until_booted("a VMM", || running.vmms().first().copied());
    running.signal(Signal::KILL);
    assert_eq!(running.wait(), 137);
    until("the end of the VMM", || (!is_running(vmm)).then_some(()));
    assert_eq!(volume.inspect()["state"], "dirty");
    assert_eq!(volume.run("/data", "true").code, 0);
    assert_eq!(volume.inspect()["state"], "clean");
}

#[test]
#[ignore = "needs root, to mount a small filesystem; `make test` runs it where it is root"]
fn as_root_a_full_disk_of_the_host_is_an_error_in_the_guest_and_named() {
    let home = TestHome::with_image();
    fs::create_dir(home.path().join("volumes")).expect("is made");
    // The volume has 64 MiB, and its place 24.
    let mount = r#"mount -t tmpfs -o size=24m,mode=700 none "$KILN_HOME/volumes" && exec "$0" "$@""#;
    let writes =
        "dd if=/dev/urandom of=/data/file bs=1M count=50 2>/dev/null; sync; dmesg | grep -c 'I/O error, dev vda'";
    let run = ["run", "-v", "data:/data", "--", "sh", "-c", writes];
    let outcome = home.kiln(run).under("unshare", &["--mount", "sh", "-c", mount]).run();
    assert!(outcome.text().parse::<u32>().is_ok_and(|errors| errors > 0), "{}", outcome.text());
    assert!(outcome.stderr.contains("this host had no space left"), "{}", outcome.stderr);
}

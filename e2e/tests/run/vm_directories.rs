//! Directories of the host in real VMs: read-only disks with the state of one moment.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use kiln_e2e::{Kiln, Outcome};
use serde_json::Value;

/// `kiln run -v DIRECTORY:/src:ro` with a shell command.
fn run(directory: &Path, flags: &[&str], script: &str) -> Outcome {
    let at = format!("{}:/src:ro", directory.display());
    Kiln::shell(&[&["-v", &at], flags].concat(), script).run()
}

#[test]
fn a_directory_is_in_the_guest_as_it_is_on_the_host_and_can_not_be_written() {
    let source = tempfile::tempdir().expect("a directory");
    let at = |name: &str| source.path().join(name);
    fs::create_dir(at("sub")).expect("made");
    fs::write(at("sub/file"), "one\n").expect("written");
    fs::write(at("run.sh"), "#!/bin/sh\necho ran\n").expect("written");
    fs::set_permissions(at("run.sh"), fs::Permissions::from_mode(0o751)).expect("set");
    fs::hard_link(at("sub/file"), at("same")).expect("linked");
    symlink("sub/file", at("link")).expect("linked");
    // A link is only its text: in the guest it leads to a file of the guest.
    symlink("/etc/hostname", at("out")).expect("linked");
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("a socket");
    let meta = fs::metadata(at("run.sh")).expect("is there");
    let script = "cd /src && ls && cat link same && ./run.sh && readlink out && cmp out /etc/hostname && \
                  stat -c '%a %u %g %h %Y' run.sh && stat -c %h same && \
                  { echo x > new && exit 90; mount -o remount,rw /src && exit 91; echo x > /dev/vda && exit 92; true; }";
    let seen = run(source.path(), &[], script);
    let stat = format!("751 {} {} 1 {}", meta.uid(), meta.gid(), meta.mtime());
    let expected = format!("link\nout\nrun.sh\nsame\nsub\none\none\nran\n/etc/hostname\n{stat}\n2");
    assert_eq!((seen.code, seen.text()), (0, expected), "{}", seen.stderr);
    assert!(seen.stderr.contains("1 socket left out"), "{}", seen.stderr);
    assert!(!at("new").exists());
}

#[test]
fn what_changes_on_the_host_is_seen_by_the_next_run_which_is_a_fork_of_the_same_snapshot() {
    let source = tempfile::tempdir().expect("a directory");
    let file = source.path().join("file");
    let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&file, &bytes).expect("written");
    let seen = run(source.path(), &[], "cat /src/file");
    assert!(seen.code == 0 && seen.stdout == bytes, "{} bytes: {}", seen.stdout.len(), seen.stderr);
    // A change in place that keeps the size, and then a directory of another size.
    for now in [[vec![9; 4], bytes[4..].to_vec()].concat(), vec![7; 5_000_000]] {
        fs::write(&file, &now).expect("written");
        let seen = run(source.path(), &["--json"], "head -c 4 /src/file; wc -c < /src/file");
        let report: Value = serde_json::from_slice(&seen.stdout).expect("an object");
        let expected = format!("{}{}\n", String::from_utf8_lossy(&now[..4]), now.len());
        assert_eq!(report["stdout"], expected, "{report}");
        assert!(report["start"] == "fork" && report["ready_ms"].is_null(), "{report}");
    }
}

#[test]
fn two_directories_and_a_volume_are_mounted_also_in_a_vm_that_boots() {
    let (one, two) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    fs::write(one.path().join("f"), "one ").expect("written");
    fs::write(two.path().join("f"), "two ").expect("written");
    let name = format!("e2e-beside-{}", std::process::id());
    let (volume, two) = (format!("{name}:/data"), format!("{}:/data/two:ro", two.path().display()));
    let script = "cat /src/f /data/two/f > /data/both && cat /data/both";
    let seen = run(one.path(), &["--cold", "-v", &volume, "-v", &two], script);
    let removed = Kiln::new(["volume", "rm", &name]).run();
    assert_eq!((seen.code, seen.text().as_str()), (0, "one two"), "{}", seen.stderr);
    assert_eq!(removed.code, 0, "{}", removed.stderr);
}

#[test]
fn a_directory_that_can_not_be_shared_is_refused_before_a_vm_starts() {
    let source = tempfile::tempdir().expect("a directory");
    let path = source.path().display().to_string();
    fs::write(source.path().join("file"), "").expect("written");
    for (value, problem, hint) in [
        (format!("{path}:/src"), "can't write to a directory of this host", ":ro"),
        (format!("{path}:/src:rw"), "can't write to a directory of this host", "--in"),
        (format!("{path}/none:/src:ro"), "failed to read", "No such file or directory"),
        (format!("{path}/file:/src:ro"), "is not a directory", "hint: a single file is copied: --in"),
    ] {
        let refused = Kiln::new(["run", "-v", &value, "--", "true"]).run();
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        let found = refused.stderr.contains(problem) && refused.stderr.to_lowercase().contains(&hint.to_lowercase());
        assert!(found, "{problem}, {hint}: {}", refused.stderr);
    }
}

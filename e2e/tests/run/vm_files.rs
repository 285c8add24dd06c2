//! `--in` and `--out`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use kiln_e2e::Kiln;

#[test]
fn a_folder_goes_in_and_comes_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, result) = (folder.path().join("src"), folder.path().join("result"));
    fs::create_dir_all(source.join("sub")).expect("a folder");
    for index in 0..50 {
        fs::write(source.join(format!("sub/ü {index}")), index.to_string()).expect("a file");
    }
    symlink("sub", source.join("link")).expect("a link");
    let script = "#!/bin/sh\nmkdir -p /job/result; ls /job/link | wc -l > /job/result/count; cp -a /job/sub /job/link /job/result/\n";
    fs::write(source.join("run.sh"), script).expect("a file");
    fs::set_permissions(source.join("run.sh"), fs::Permissions::from_mode(0o755)).expect("a mode");
    let copy_in = format!("{}:/job", source.display());
    let copy_out = format!("/job/result:{}", result.display());
    let outcome = Kiln::new(["run", "--in", &copy_in, "--out", &copy_out, "--", "/job/run.sh"]).run();
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let read = |path: &str| fs::read_to_string(result.join(path)).expect(path);
    assert_eq!(read("count").trim(), "50");
    assert_eq!(read("sub/ü 7"), "7");
    assert_eq!(fs::read_link(result.join("link")).expect("a link"), std::path::Path::new("sub"));
    assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 2, "nothing else is left");
}

#[test]
fn a_file_goes_in_and_comes_out_also_after_a_failure() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, result) = (folder.path().join("a"), folder.path().join("b"));
    fs::write(&source, "text").expect("a file");
    let copy_in = format!("{}:/tmp/new/name", source.display());
    let copy_out = format!("/tmp/out:{}", result.display());
    let outcome = Kiln::shell(&["--in", &copy_in, "--out", &copy_out], "rev /tmp/new/name > /tmp/out; exit 9").run();
    assert_eq!(outcome.code, 9, "{}", outcome.stderr);
    assert_eq!(fs::read_to_string(result).expect("it came out").trim(), "txet");
}

#[test]
fn a_result_that_is_missing_is_an_error_and_the_commands_own_failure_comes_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let copy_out = format!("/no/such/result:{}", folder.path().join("x").display());
    let missing = Kiln::shell(&["--out", &copy_out], "true").run();
    assert_eq!(missing.code, 125);
    assert!(missing.stderr.contains("/no/such/result"), "{}", missing.stderr);
    assert_eq!(Kiln::shell(&["--out", &copy_out], "exit 3").run().code, 3);
    assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 0);
}

#[test]
fn links_that_lead_out_and_set_user_id_bits_stay_in_the_guest() {
    let folder = tempfile::tempdir().expect("a folder");
    let (tool, linked) = (folder.path().join("tool"), folder.path().join("linked"));
    let flags = [format!("/tmp/tool:{}", tool.display()), format!("/tmp/d:{}", linked.display())];
    let script =
        "echo x > /tmp/tool; chmod 6755 /tmp/tool; mkdir /tmp/d; echo x > /tmp/d/f; ln -s /etc/passwd /tmp/d/l";
    let outcome = Kiln::shell(&["--out", &flags[0], "--out", &flags[1]], script).run();
    assert_eq!(outcome.code, 125, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("d/l") && outcome.stderr.contains("/etc/passwd"), "{}", outcome.stderr);
    assert_eq!(fs::metadata(tool).expect("it came out").permissions().mode() & 0o7777, 0o755);
    // The other files were copied.
    assert_eq!(fs::read_to_string(linked.join("f")).expect("it came out"), "x\n");
    assert_eq!(
        (fs::read_dir(&linked).expect("readable").count(), fs::read_dir(folder.path()).expect("ours").count()),
        (1, 2)
    );
}

#[test]
fn a_result_over_the_limit_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let copy_out = format!("/tmp/big:{}", folder.path().join("x").display());
    let flags = ["--out", &copy_out, "--out-limit", "1M"];
    let outcome = Kiln::shell(&flags, "head -c 5000000 /dev/zero > /tmp/big").run();
    assert_eq!(outcome.code, 125);
    assert!(outcome.stderr.contains("--out-limit"), "{}", outcome.stderr);
    assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 0);
}

#[test]
fn missing_results_are_named_and_the_others_are_copied() {
    let folder = tempfile::tempdir().expect("a folder");
    let host = |name: &str| folder.path().join(name).display().to_string();
    let flags = [format!("/no/a:{}", host("a")), format!("/tmp/b:{}", host("b")), format!("/no/c:{}", host("c"))];
    let flags: Vec<&str> = flags.iter().flat_map(|flag| ["--out", flag]).collect();
    let outcome = Kiln::shell(&flags, "echo b > /tmp/b").run();
    assert_eq!(outcome.code, 125, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("/no/a") && outcome.stderr.contains("/no/c"), "{}", outcome.stderr);
    assert_eq!(fs::read_to_string(folder.path().join("b")).expect("it came out"), "b\n");
}

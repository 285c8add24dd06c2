//! Requests that are refused before a VM starts, with a message that names the mistake.

use kiln_e2e::Kiln;
use serde_json::Value;

fn refused(args: &[&str], code: i32, words: &[&str]) {
    let outcome = Kiln::new(args).run();
    assert_eq!(outcome.code, code, "{args:?}: {}", outcome.stderr);
    for word in words {
        assert!(outcome.stderr.contains(word), "{args:?}: no `{word}` in: {}", outcome.stderr);
    }
    assert!(outcome.stdout.is_empty());
}

#[test]
fn unknown_flags_and_no_command_are_usage_errors() {
    refused(&["run", "--no-such-flag"], 2, &["--no-such-flag"]);
    refused(&["run"], 2, &["no command", "kiln run -- "]);
    refused(&["fly"], 2, &["fly"]);
}

#[test]
fn a_variable_without_a_name_is_refused() {
    refused(&["run", "-e", "=x", "--", "true"], 2, &["=x", "name"]);
}

#[test]
fn invalid_times_and_sizes_are_refused() {
    refused(&["run", "--timeout", "0", "--", "true"], 2, &["--timeout"]);
    refused(&["run", "--timeout", "-1s", "--", "true"], 2, &["-1s"]);
    refused(&["run", "--boot-timeout", "soon", "--", "true"], 2, &["soon"]);
    refused(&["run", "-m", "lots", "--", "true"], 2, &["lots"]);
    refused(&["run", "-c", "two", "--", "true"], 2, &["two"]);
}

#[test]
fn copies_need_two_sides_and_a_source_that_exists() {
    refused(&["run", "--in", "/surely/not/here:/x", "--", "true"], 2, &["/surely/not/here"]);
    refused(&["run", "--in", "/etc/hostname", "--", "true"], 2, &["HOST:GUEST"]);
    refused(&["run", "--out", "/x:/surely/not/here/x", "--", "true"], 2, &["/surely/not/here"]);
}

#[test]
fn a_command_without_a_name_or_too_long_for_a_request_is_refused() {
    refused(&["run", "--", ""], 2, &["empty"]);
    let long = "x".repeat(100_000);
    let command: Vec<&str> = ["run", "--", "echo"].into_iter().chain([long.as_str(); 12]).collect();
    refused(&command, 2, &["limit", "hint: "]);
}

#[test]
fn a_module_that_the_image_does_not_have_is_refused() {
    refused(&["run", "--module", "no_such_module", "--", "true"], 2, &["no_such_module", "mini"]);
    refused(&["run", "--module", "a b", "--", "true"], 2, &["a b"]);
}

#[test]
fn an_unknown_device_is_refused_with_the_right_form() {
    refused(&["run", "--vhost-user", "gpu:/x", "--", "true"], 2, &["`gpu`", "fs:SOCKET,tag=NAME"]);
    refused(&["run", "--vhost-user", "fs:/x", "--", "true"], 2, &["tag=NAME"]);
    refused(&["run", "--vhost-user", "vsock:/x,cid=5", "--", "true"], 2, &["CID", "backend"]);
    refused(&["run", "--vhost-user", "blk:/x,queues=9999", "--", "true"], 2, &["1 to 64 queues", "9999"]);
}

#[test]
fn a_backend_that_does_not_listen_is_named_with_its_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let gone = folder.path().join("gone.sock");
    drop(std::os::unix::net::UnixListener::bind(&gone).expect("is bound"));
    let gone = gone.to_str().expect("UTF-8");
    refused(
        &["run", "--vhost-user", "blk:/nowhere.sock", "--", "true"],
        2,
        &["/nowhere.sock", "does not exist", "hint: "],
    );
    refused(&["run", "--vhost-user", "net:/etc/passwd", "--", "true"], 2, &["/etc/passwd", "not a socket"]);
    for kind in ["blk", "net", "vsock"] {
        let device = format!("{kind}:{gone}");
        refused(&["run", "--vhost-user", &device, "--", "true"], 2, &[gone, "no backend listens", "hint: "]);
    }
}

#[test]
fn a_backend_that_hangs_up_is_named_with_the_error_of_qemu() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("rude.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("listens");
    // Each client is closed as soon as it connects. The thread ends with the test's process.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let socket = socket.to_str().expect("UTF-8");
    for kind in ["blk", "vsock"] {
        let device = format!("{kind}:{socket}");
        refused(&["run", "--vhost-user", &device, "--", "true"], 69, &[socket, "kept the VM from starting", "hint: "]);
    }
}

#[test]
fn a_silent_backend_is_abandoned_at_its_deadline() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("mute.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("listens");
    let socket = socket.to_str().expect("UTF-8");
    let device = format!("blk:{socket}");
    refused(&["run", "--vhost-user", &device, "--", "true"], 69, &[socket, "handshake in time", "hint: "]);
}

#[test]
fn an_unknown_image_is_named_with_what_to_do() {
    refused(&["run", "--image", "no-such-image", "--", "true"], 69, &["no-such-image", "hint:"]);
}

#[test]
fn impossible_sizes_are_refused_with_their_bounds() {
    let images: Value = serde_json::from_slice(&Kiln::new(["image", "ls", "--json"]).run().stdout).expect("a list");
    let mini = images.as_array().and_then(|images| images.iter().find(|image| image["name"] == "mini"));
    let least = format!("{} MiB", mini.expect("the image is built")["memory_mib_min"]);
    refused(&["run", "-m", "0", "--", "true"], 2, &["memory", &least]);
    refused(&["run", "-m", "80", "--", "true"], 2, &["memory", &least]);
    refused(&["run", "-m", "1T", "--", "true"], 2, &["memory", "1048576 MiB"]);
    refused(&["run", "-m", "9999999999", "--", "true"], 2, &["9999999999"]);
    refused(&["run", "-c", "0", "--", "true"], 2, &["cpus", "not 0"]);
    refused(&["run", "-c", "100000", "--", "true"], 2, &["cpus"]);
}

#[test]
fn flags_that_a_snapshot_decides_are_refused_only_with_from() {
    for flags in [["--image", "mini"], ["--memory", "256"], ["--cpus", "1"], ["--module", "tun"], ["--accel", "auto"]] {
        let args = ["run", "--from", "no-such-snapshot", flags[0], flags[1], "--", "true"];
        refused(&args, 2, &["cannot be used with", flags[0], "hint: "]);
    }
    let report = failure_object(&["run", "--json", "--from", "no-such-snapshot", "--image", "mini", "--", "true"], 2);
    assert!(report["hint"].as_str().is_some_and(|hint| hint.contains("the snapshot decides")), "{report}");
    // A variable for all runs does not conflict with this one's flag, so the error is that the snapshot does not exist.
    let outcome = Kiln::new(["run", "--from", "no-such-snapshot", "--", "true"])
        .env("KILN_IMAGE", "no-such-image")
        .env("KILN_ACCEL", "tcg")
        .run();
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("no-such-snapshot"), "{}", outcome.stderr);
}

#[test]
fn a_missing_vmm_is_named_with_the_command_that_installs_it() {
    let outcome = Kiln::new(["run", "--", "true"]).env("KILN_QEMU", "/surely/not/qemu-system-x86_64").run();
    assert_eq!(outcome.code, 69, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("/surely/not/qemu"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("apt-get install"), "{}", outcome.stderr);
}

#[test]
fn a_wrong_vmm_is_reported_with_its_output() {
    let outcome = Kiln::new(["run", "--accel", "tcg", "--", "true"]).env("KILN_QEMU", "/bin/false").run();
    assert_eq!(outcome.code, 69, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("/bin/false"), "{}", outcome.stderr);
}

/// The output of a failed command with `--json`: one object, and nothing else.
fn failure_object(args: &[&str], code: i32) -> Value {
    let outcome = Kiln::new(args).run();
    assert_eq!(outcome.code, code, "{args:?}: {}", outcome.stderr);
    let report: Value =
        serde_json::from_slice(&outcome.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {}", outcome.text()));
    assert_eq!(report["exit_code"], code, "{args:?}: {report}");
    assert!(report["error"].as_str().is_some_and(|words| !words.is_empty()), "{args:?}: {report}");
    report
}

#[test]
fn errors_are_json_too() {
    let report = failure_object(&["run", "--json", "-m", "0", "--", "true"], 2);
    assert!(report["error"].as_str().is_some_and(|words| words.contains("memory")), "{report}");
    assert!(report["accel"].is_null() && report["command_exit_code"].is_null(), "{report}");
    let report = failure_object(&["run", "--json", "--image", "no-such-image", "--", "true"], 69);
    assert!(report["hint"].is_string(), "{report}");
}

#[test]
fn every_command_that_has_json_answers_a_wrong_line_with_an_object() {
    for args in [
        &["run", "--json", "--no-such-flag", "--", "true"][..],
        &["run", "--json"],
        &["run", "--json", "-t", "--", "true"],
        &["run", "--json", "--timeout", "soon", "--", "true"],
        &["fly", "--json"],
        &["doctor", "--json", "x"],
        &["image", "ls", "--json", "x"],
        &["image", "build", "--json"],
        &["image", "warm", "--json"],
        &["snapshot", "ls", "--json", "x"],
        &["lab", "run", "--json"],
        &["lab", "runs", "--json", "x"],
        &["scan", "--json"],
        &["verify", "fork", "--json", "--forks", "1"],
        &["bench", "--json", "no-such-group"],
        &["version", "--json", "x"],
        &["vhost", "probe", "--json"],
        &["vhost", "check", "--json", "--level", "no-such-level"],
        &["vhost", "bench", "--json"],
        &["vhost", "stress", "--json"],
        &["vhost", "mock", "--json"],
        &["vhost", "show", "--json"],
        &["vhost", "replay", "--json"],
    ] {
        failure_object(args, 2);
    }
}

#[test]
fn a_command_that_fails_answers_with_an_object() {
    failure_object(&["scan", "--json", "/surely/not/here"], 1);
    failure_object(&["lab", "run", "--json", "/surely/not/here"], 2);
    failure_object(&["lab", "resume", "--json", "no-such-run"], 1);
    failure_object(&["image", "build", "--json", "no-such-recipe"], 2);
    failure_object(&["image", "warm", "--json", "no-such-image"], 69);
    failure_object(&["verify", "fork", "--json", "--image", "no-such-image"], 69);
    failure_object(&["vhost", "probe", "--json", "/surely/not/here.sock"], 1);
    failure_object(&["vhost", "show", "--json", "/surely/not/here"], 1);
    let plain = Kiln::new(["run", "--image", "no-such-image", "--", "echo", "--json"]).run();
    assert!(plain.stdout.is_empty() && plain.stderr.contains("no-such-image"), "{}", plain.stderr);
}

#[test]
fn flags_of_docker_are_refused_with_a_hint() {
    for (args, words) in [
        (&["run", "--mount", "type=bind", "--", "sh"][..], "-v NAME:/DIR"),
        (&["run", "-P", "--", "sh"], "-p 8080:80"),
        (&["run", "-d", "--", "sh"], "&"),
        (&["run", "--restart", "always", "--", "sh"], "until kiln run"),
        (&["ps"], "kiln image ls"),
        (&["list"], "kiln image ls"),
        (&["images"], "kiln image ls"),
        (&["exec", "x", "sh"], "kiln run -- COMMAND"),
    ] {
        refused(args, 2, &["hint: ", words]);
    }
}

#[test]
fn lists_and_the_version_have_the_names_that_people_try() {
    for args in [&["image", "list"][..], &["snapshot", "list"], &["version"], &["completion", "bash"], &["man"]] {
        let outcome = Kiln::new(args).run();
        assert_eq!(outcome.code, 0, "{args:?}: {}", outcome.stderr);
        assert!(!outcome.stdout.is_empty(), "{args:?}");
    }
    assert_eq!(Kiln::new(["version"]).run().text(), Kiln::new(["--version"]).run().text());
}

#[test]
fn a_file_of_variables_that_is_wrong_is_named() {
    refused(&["run", "--env-file", "/surely/not/here", "--", "true"], 2, &["--env-file", "/surely/not/here"]);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("env");
    std::fs::write(&path, "A=1\n=2\n").expect("written");
    refused(&["run", "--env-file", path.to_str().expect("UTF-8"), "--", "true"], 2, &["line 2", "NAME=VALUE"]);
    refused(&["run", "--hostname", "a_b", "--", "true"], 2, &["`a_b` is not a host name"]);
}

#[test]
fn a_packed_syslog_is_scanned_and_its_text_can_not_steer_the_terminal() {
    let log = "Nov  1 12:00:00 web-1 kernel: kernel BUG at fs/\u{202e}evil\u{9b}.c:12!\n\
               Nov  1 12:00:00 web-1 kernel: RIP: 0010:f\u{2066}oo+0x1/0x2\n\
               Nov  1 12:00:00 web-1 kernel: Call Trace:\nNov  1 12:00:00 web-1 kernel:  bar+0x1/0x2\n";
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("kern.log");
    std::fs::write(&path, log).expect("written");
    let packed = std::process::Command::new("gzip").arg(&path).status().expect("gzip is there");
    assert!(packed.success());
    for json in [&[][..], &["--json"]] {
        let packed = path.with_extension("log.gz");
        let args = [&["scan", packed.to_str().expect("UTF-8")][..], json].concat();
        let outcome = Kiln::new(args).run();
        assert_eq!(outcome.code, 100, "{}", outcome.stderr);
        let text = outcome.text();
        assert!(text.contains("kernel BUG in") && text.contains("202e"), "{text}");
        assert!(!text.contains(['\u{202e}', '\u{9b}', '\u{2066}']), "{text}");
    }
}

#[test]
fn a_file_that_is_not_a_kernel_log_is_refused() {
    for (log, words) in [
        (&b""[..], "`stdin` is empty"),
        (b"# A page\n\nof words\n", "is not a kernel log"),
        (b"\0\x01\x02\x03\xff\xfe", "not text"),
        (b"BZh91AY&SY", "bzcat stdin | kiln scan -"),
    ] {
        let outcome = Kiln::new(["scan", "-"]).run_with(log);
        assert_eq!(outcome.code, 2, "{words}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(words) && outcome.stderr.contains("hint: "), "{words}: {}", outcome.stderr);
        assert!(outcome.stdout.is_empty());
    }
    let outcome = Kiln::new(["scan", "-"]).run_with(b"[    1.000000] usb 1-1: new device\n");
    assert_eq!((outcome.code, outcome.text().as_str()), (0, "nothing found"));
}

//! Input, output, environment.

use std::io::{BufRead as _, BufReader, Read as _};

use kiln_e2e::Kiln;

#[test]
fn stdin_environment_and_working_directory_arrive() {
    let flags = ["-e", "NAME=ä b", "-w", "/tmp", "-i"];
    let outcome = Kiln::shell(&flags, "cat; echo \"$NAME\"; pwd; exit 3").run_with(b"line\n");
    assert_eq!(outcome.text(), "line\nä b\n/tmp");
    assert_eq!(outcome.code, 3);
}

#[test]
fn a_variable_without_a_value_is_passed_on() {
    let outcome = Kiln::shell(&["-e", "KILN_TEST_PASSED"], "echo $KILN_TEST_PASSED").env("KILN_TEST_PASSED", "7").run();
    assert_eq!(outcome.text(), "7");
}

#[test]
fn stdout_and_stderr_stay_apart() {
    let outcome = Kiln::shell(&[], "echo out; echo err >&2").run();
    assert_eq!((outcome.text().as_str(), outcome.stderr.as_str()), ("out", "err\n"));
}

#[test]
fn without_i_stdin_is_empty() {
    let outcome = Kiln::new(["run", "--", "wc", "-c"]).run_with(b"not for the guest");
    assert_eq!(outcome.text(), "0");
}

#[test]
fn binary_input_is_passed_on_unchanged() {
    let data: Vec<u8> = (0..4u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let outcome = Kiln::new(["run", "-i", "--", "cat"]).run_with(&data);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(outcome.stdout == data, "{} bytes came back of {}", outcome.stdout.len(), data.len());
}

#[test]
fn a_command_that_ends_without_reading_its_input_does_not_hang() {
    let outcome = Kiln::shell(&["-i"], "exec <&-; exit 5").run_with(&vec![0; 8 << 20]);
    assert_eq!(outcome.code, 5);
}

#[test]
fn a_hundred_megabytes_pass_in_bounded_memory() {
    let mut running = Kiln::new(["run", "--", "head", "-c", "100000000", "/dev/zero"]).start();
    let mut output = running.0.stdout.take().expect("stdout is piped");
    let (mut buffer, mut total, mut peak_kib) = (vec![0; 1 << 20], 0, 0);
    loop {
        let count = output.read(&mut buffer).expect("stdout can be read");
        if count == 0 {
            break;
        }
        total += count;
        peak_kib = peak_kib.max(resident_kib(running.0.id()));
    }
    assert_eq!((running.wait(), total), (0, 100_000_000));
    assert!(peak_kib > 0 && peak_kib < 64 << 10, "kiln grew to {peak_kib} KiB");
}

#[test]
fn a_reader_that_leaves_ends_the_run() {
    let mut running = Kiln::new(["run", "--", "yes"]).start();
    let mut output = running.0.stdout.take().expect("stdout is piped");
    output.read_exact(&mut [0; 4096]).expect("some output comes");
    drop(output);
    assert_eq!(running.wait(), 141);
}

#[test]
fn a_full_output_is_an_error_with_the_reason() {
    let full = || std::fs::File::options().write(true).open("/dev/full").expect("it is there");
    for flags in [&[][..], &["--json"]] {
        let outcome = Kiln::shell(flags, "echo x").run_into(full());
        assert_eq!(outcome.code, 1, "{}", outcome.stderr);
        assert!(outcome.stderr.contains("No space left"), "{}", outcome.stderr);
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    }
}

#[test]
fn an_interrupted_run_still_reports_its_output() {
    // The console and the command's output arrive on different paths, so the command waits for the console first.
    let script = "echo out; sleep 1; echo came > /dev/console; sleep 100";
    let mut running = Kiln::shell(&["--json", "--console"], script).start();
    let console = BufReader::new(running.0.stderr.take().expect("stderr is piped"));
    assert!(console.lines().any(|line| line.expect("text") == "console| came"), "the command comes that far");
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.wait(), 143);
    let mut text = String::new();
    running.0.stdout.take().expect("stdout is piped").read_to_string(&mut text).expect("text");
    let report: serde_json::Value = serde_json::from_str(&text).expect("one JSON object");
    assert_eq!((&report["exit_code"], &report["stdout"]), (&143.into(), &"out\n".into()));
}

/// Peak resident memory in KiB; 0 if the process has ended.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
}

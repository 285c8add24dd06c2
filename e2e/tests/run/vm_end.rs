//! Runs that end early: by a timeout, by a signal, or because the guest hangs.

use std::fs;
use std::io::Read as _;
use std::time::{Duration, Instant};

use kiln_e2e::{Kiln, Running, is_running, until, vm_dir};
use rustix::process::Signal;
use serde_json::Value;

/// How long kiln may run after a signal if its guest does not answer: 2 s, and the time to end the VM.
const SIGNAL_BOUND: Duration = Duration::from_secs(3);

/// A run whose command has done the first part of its script, and its VMM.
fn started(flags: &[&str], first: &str, then: &str) -> (Running, i32) {
    let mut running = Kiln::shell(flags, &format!("{first}; echo up; {then}")).start();
    running.0.stdout.as_mut().expect("stdout is piped").read_exact(&mut [0; 3]).expect("the command starts");
    let vmms = running.vmms();
    assert_eq!(vmms.len(), 1);
    (running, vmms[0])
}

/// Sends a signal and returns the exit code and the rest of stdout.
fn end_by(flags: &[&str], first: &str, then: &str, signal: Signal) -> (i32, String, Duration) {
    let (mut running, vmm) = started(flags, first, then);
    let from = Instant::now();
    running.signal(signal);
    let code = running.wait();
    let took = from.elapsed();
    assert!(!is_running(vmm), "its VM is gone");
    let mut rest = String::new();
    running.0.stdout.take().expect("stdout is piped").read_to_string(&mut rest).expect("text");
    (code, rest, took)
}

#[test]
fn a_command_that_handles_sigterm_gives_its_own_code() {
    let wait = "while :; do sleep 0.1; done";
    let (code, rest, _) = end_by(&[], "trap 'echo bye; exit 7' TERM", wait, Signal::TERM);
    assert_eq!((code, rest.as_str()), (7, "bye\n"));
    let (code, rest, _) = end_by(&[], "trap 'echo bye; exit 9' HUP", wait, Signal::HUP);
    assert_eq!((code, rest.as_str()), (9, "bye\n"));
}

#[test]
fn a_command_that_ignores_sigterm_is_killed_after_the_grace() {
    let script = ("trap '' TERM", "while :; do sleep 0.1; done");
    let (code, _, took) = end_by(&["--grace", "500ms"], script.0, script.1, Signal::TERM);
    assert_eq!(code, 143);
    assert!(took >= Duration::from_millis(500), "{took:?}");
    let (code, _, took) = end_by(&["--grace", "0"], script.0, script.1, Signal::TERM);
    assert_eq!(code, 143);
    assert!(took < SIGNAL_BOUND, "{took:?}");
}

#[test]
fn a_stop_signal_replaces_the_one_that_kiln_got() {
    let wait = "while :; do sleep 0.1; done";
    let traps = "trap 'echo quit; exit 7' QUIT; trap 'exit 9' TERM INT";
    let (code, rest, _) = end_by(&["--stop-signal", "SIGQUIT"], traps, wait, Signal::TERM);
    assert_eq!((code, rest.as_str()), (7, "quit\n"));
    // After Ctrl-C kiln exits like a shell, whatever the command did.
    let (code, rest, _) = end_by(&["--stop-signal", "quit"], traps, wait, Signal::INT);
    assert_eq!((code, rest.as_str()), (130, "quit\n"));
    let (code, _, took) = end_by(
        &["--stop-signal", "USR1", "--stop-timeout", "1"],
        "trap '' USR1; trap 'exit 9' TERM INT",
        wait,
        Signal::TERM,
    );
    assert_eq!(code, 143);
    assert!(took >= Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_timeout_sends_sigterm_first_and_copies_the_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let (part, script) =
        (folder.path().join("part"), "trap 'echo done > /tmp/part; exit 7' TERM; while :; do sleep 0.1; done");
    let out = format!("/tmp/part:{}", part.display());
    let outcome = Kiln::shell(&["--timeout", "1s", "--out", &out], script).run();
    assert_eq!(outcome.code, 124, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("exited with 7"), "{}", outcome.stderr);
    assert_eq!(fs::read_to_string(part).expect("it was copied"), "done\n");
}

#[test]
fn a_timeout_starts_when_the_agent_answers() {
    let out = "/tmp/p:/tmp/surely-not-there-either";
    let outcome = Kiln::shell(&["--timeout", "3s", "--out", out], "trap '' TERM; while :; do sleep 1; done").run();
    assert_eq!(outcome.code, 124, "{}", outcome.stderr);
    assert!(outcome.took < Duration::from_secs(12), "{:?}", outcome.took);
}

/// Scripts that stop the guest, with a part of the message about it.
const ENDS: [(&[&str], &str, &str); 3] = [
    (&[], "echo 0 > /proc/sys/kernel/panic; echo c > /proc/sysrq-trigger; sleep 1000", "the guest crashed: "),
    (&[], "halt -f; sleep 1000", "halted"),
    (&["-c", "2"], "halt -f; sleep 1000", "halted"),
];

/// Waits for the last line of a kernel.
fn stood_still(vmm: i32) {
    let console = vm_dir(vmm).join("console.log");
    let last = ["System halted", "end Kernel panic"];
    until("the end of the guest", || {
        let said = fs::read(&console).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        last.iter().any(|words| said.contains(words)).then_some(())
    });
}

#[test]
fn a_guest_that_has_crashed_or_halted_ends_the_run() {
    for (flags, script, words) in ENDS {
        let outcome = Kiln::shell(flags, script).run();
        assert_eq!(outcome.code, 125, "{script}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(words), "{script}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("    "), "{script}: its log is shown: {}", outcome.stderr);
    }
}

#[test]
fn a_guest_whose_agent_is_stopped_ends_the_run() {
    let outcome = Kiln::shell(&[], "echo 1 > /sys/fs/cgroup/agent/cgroup.freeze; sleep 1000").run();
    assert_eq!(outcome.code, 125, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("not answered"), "{}", outcome.stderr);
}

/// The one finding of a run whose guest's kernel printed nothing about its end.
fn the_finding(script: &str) -> Value {
    let outcome = Kiln::shell(&["--json"], script).run();
    assert_eq!(outcome.code, 125, "{}", outcome.text());
    let report: Value = serde_json::from_slice(&outcome.stdout).expect("an object");
    assert_eq!(report["exit_code"], 125, "{report}");
    let findings = report["findings"].as_array().expect("a list");
    assert_eq!(findings.len(), 1, "{report}");
    assert_eq!(findings[0]["severity"], "fatal", "{report}");
    findings[0].clone()
}

#[test]
fn a_guest_that_has_halted_is_a_finding() {
    let finding = the_finding("echo 0 > /proc/sys/kernel/panic; echo 7 > /proc/sys/kernel/printk; halt -f; sleep 1000");
    assert_eq!(finding["kind"], "halted", "{finding}");
    assert_eq!(finding["title"], "guest halted: all its CPUs are halted with interrupts off");
    let log = finding["log"].as_array().expect("rows");
    assert!(log.iter().any(|row| row.as_str().is_some_and(|row| row.contains("System halted"))), "{finding}");
}

#[test]
fn a_guest_whose_agent_is_stopped_is_a_finding() {
    let finding = the_finding("echo 1 > /sys/fs/cgroup/agent/cgroup.freeze; sleep 1000");
    assert_eq!(finding["kind"], "silent", "{finding}");
    assert_eq!(finding["title"], "guest silent: its agent does not answer");
}

#[test]
fn a_guest_that_is_busy_for_a_minute_is_not_ended() {
    // More loops than CPUs, most of its memory again and again, and many short processes.
    let script = "i=0; while [ $i -lt 16 ]; do (while :; do :; done) & i=$((i+1)); done; \
        (while :; do /bin/true; done) & (while :; do head -c 30000000 /dev/zero | tail -c 30000000 > /dev/null; done) & \
        sleep 60; exit 5";
    let outcome = Kiln::shell(&["-m", "128"], script).run();
    assert_eq!(outcome.code, 5, "{}", outcome.stderr);
}

#[test]
fn ctrl_c_ends_a_guest_that_does_not_answer() {
    for (flags, script, _) in ENDS {
        let (mut running, vmm) = started(flags, ":", script);
        stood_still(vmm);
        let from = Instant::now();
        running.signal(Signal::INT);
        assert_eq!(running.wait(), 130, "{script}");
        assert!(from.elapsed() < SIGNAL_BOUND, "{script}: {:?}", from.elapsed());
        assert!(!is_running(vmm), "{script}: its VM is gone");
    }
}

#[test]
fn a_second_ctrl_c_ends_a_guest_at_once() {
    let (mut running, vmm) = started(&[], ":", "halt -f; sleep 1000");
    stood_still(vmm);
    running.signal(Signal::INT);
    // Two signals at the same moment are one.
    std::thread::sleep(Duration::from_millis(300));
    let from = Instant::now();
    running.signal(Signal::INT);
    assert_eq!(running.wait(), 130);
    assert!(from.elapsed() < Duration::from_secs(1), "{:?}", from.elapsed());
    assert!(!is_running(vmm));
}

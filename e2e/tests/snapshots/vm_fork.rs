//! `kiln run` forks.

use kiln_e2e::{Kiln, is_running, vm_dir};
use serde_json::Value;

fn report(flags: &[&str], script: &str) -> Value {
    let flags: Vec<&str> = ["--json"].iter().chain(flags).copied().collect();
    let outcome = Kiln::shell(&flags, script).run();
    serde_json::from_slice(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {}", outcome.stderr))
}

#[test]
fn a_run_is_a_fork_and_a_cold_one_boots() {
    let (fork, boot) = (report(&[], "exit 3"), report(&["--cold"], "exit 3"));
    assert_eq!((&fork["exit_code"], &boot["exit_code"]), (&3.into(), &3.into()));
    assert_eq!((&fork["start"], &boot["start"]), (&"fork".into(), &"boot".into()));
    assert!(fork["fork_ms"].as_f64().is_some_and(|ms| ms > 0.0) && fork["boot_ms"].is_null(), "{fork}");
    assert!(boot["boot_ms"].as_f64().is_some_and(|ms| ms > 0.0) && boot["fork_ms"].is_null(), "{boot}");
    assert_eq!(boot["ready_ms"], Value::Null);
}

#[test]
fn forks_do_not_share_files_names_or_randomness() {
    let script = "test ! -e /tmp/mine || exit 9; echo x > /tmp/mine; hostname; cat /etc/machine-id; \
                  cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1";
    let (one, other) = (Kiln::shell(&[], script).run(), Kiln::shell(&[], script).run());
    assert_eq!((one.code, other.code), (0, 0), "{}{}", one.stderr, other.stderr);
    let (one, other) = (one.text(), other.text());
    assert_eq!(one.lines().count(), 4, "{one}");
    for (mine, yours) in one.lines().zip(other.lines()) {
        assert_ne!(mine, yours);
    }
}

#[test]
fn a_fork_leaves_nothing() {
    use std::io::Read as _;
    let mut running = Kiln::shell(&["-i"], "echo up; cat").start();
    running.0.stdout.as_mut().expect("stdout is piped").read_exact(&mut [0; 3]).expect("the command starts");
    let vmms = running.vmms();
    let dir = vm_dir(vmms[0]);
    drop(running.0.stdin.take());
    assert_eq!(running.wait(), 0);
    assert!(!is_running(vmms[0]) && !dir.exists(), "{}", dir.display());
}

#[test]
fn a_crash_in_a_fork_has_its_title_and_its_console_begins_with_the_fork() {
    let outcome = Kiln::shell(&["--console"], "echo c > /proc/sysrq-trigger; sleep 60").run();
    assert_eq!(outcome.code, 125, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("the guest crashed: kernel panic"), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("Linux version"), "what was said before the snapshot: {}", outcome.stderr);
}

//! The end of kiln ends its VM.

use std::process::Stdio;
use std::time::{Duration, Instant};

use kiln_e2e::{Kiln, Running, is_running, kiln_binary, until, vm_dir};
use rustix::process::Signal;

/// The VMM of a run whose command has done the first part of its script.
fn started(first: &str, then: &str) -> (Running, i32) {
    use std::io::Read as _;
    let mut running = Kiln::shell(&[], &format!("{first}; echo up; {then}")).start();
    let mut up = [0; 3];
    running.0.stdout.as_mut().expect("stdout is piped").read_exact(&mut up).expect("the command starts");
    let vmms = running.vmms();
    assert_eq!((&up, vmms.len()), (b"up\n", 1));
    (running, vmms[0])
}

fn gone_within(vmm: i32, limit: Duration) {
    let from = Instant::now();
    until("the end of the VMM", || (!is_running(vmm)).then_some(()));
    assert!(from.elapsed() < limit, "the VMM outlived kiln by {:?}", from.elapsed());
}

#[test]
fn kill_9_leaves_no_vmm() {
    let (mut running, vmm) = started(":", "sleep 120");
    running.signal(Signal::KILL);
    assert_eq!(running.wait(), 137);
    gone_within(vmm, Duration::from_secs(2));
}

#[test]
fn kill_9_while_booting_leaves_no_vmm() {
    let mut running = Kiln::new(["run", "--cold", "--", "sleep", "120"]).start();
    let vmm = until("a VMM", || running.vmms().first().copied());
    running.signal(Signal::KILL);
    assert_eq!(running.wait(), 137);
    gone_within(vmm, Duration::from_secs(2));
}

#[test]
fn what_kill_9_left_is_removed_by_the_next_run() {
    let (mut running, vmm) = started(":", "sleep 120");
    let dir = vm_dir(vmm);
    running.signal(Signal::KILL);
    running.wait();
    assert_eq!(Kiln::new(["run", "--", "true"]).run().code, 0);
    assert!(!dir.exists(), "{}", dir.display());
}

#[test]
fn ctrl_c_ends_the_command() {
    let (mut running, vmm) = started(":", "exec sleep 120");
    let dir = vm_dir(vmm);
    running.signal(Signal::INT);
    assert_eq!(running.wait(), 130);
    assert!(!is_running(vmm) && !dir.exists());
}

#[test]
fn a_signal_while_booting_leaves_nothing() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut running = Kiln::new(["run", "--cold", "--", "sleep", "120"]).start();
        let vmm = until("a VMM", || running.vmms().first().copied());
        let dir = vm_dir(vmm);
        running.signal(signal);
        assert_eq!(running.wait(), code);
        assert!(!is_running(vmm) && !dir.exists());
    }
}

#[test]
fn ctrl_c_lets_the_command_clean_up_first() {
    use std::io::Read as _;
    let (mut running, _) = started("trap 'echo cleaned; exit 0' INT", "while :; do sleep 0.1; done");
    running.signal(Signal::INT);
    let mut rest = String::new();
    running.0.stdout.take().expect("stdout is piped").read_to_string(&mut rest).expect("text");
    assert_eq!((running.wait(), rest.as_str()), (130, "cleaned\n"));
}

#[test]
fn ctrl_c_twice_ends_the_vm_of_a_command_that_ignores_it() {
    use std::io::Read as _;
    let (mut running, vmm) = started("trap 'echo heard' INT", "while :; do sleep 0.1; done");
    running.signal(Signal::INT);
    // Two signals at the same moment are one.
    let mut heard = [0; 6];
    running.0.stdout.as_mut().expect("stdout is piped").read_exact(&mut heard).expect("the first one arrives");
    running.signal(Signal::INT);
    assert_eq!(running.wait(), 130);
    assert!(!is_running(vmm));
}

#[test]
fn nohup_is_obeyed() {
    use std::io::Read as _;
    let script = format!("trap '' HUP; exec '{}' run -i -- sh -c 'echo up; cat; exit 7'", kiln_binary().display());
    let command =
        std::process::Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut running = Running(command.expect("a shell starts"));
    running.0.stdout.as_mut().expect("stdout is piped").read_exact(&mut [0; 3]).expect("the command starts");
    running.signal(Signal::HUP);
    drop(running.0.stdin.take());
    assert_eq!(running.wait(), 7);
}

#[test]
fn sigterm_cleans_up_too() {
    let (mut running, vmm) = started(":", "sleep 120");
    let dir = vm_dir(vmm);
    running.signal(Signal::TERM);
    assert_eq!(running.wait(), 143);
    assert!(!is_running(vmm) && !dir.exists());
}

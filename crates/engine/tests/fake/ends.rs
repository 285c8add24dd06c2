//! Guests of the fake engine that end silently. What only the host can see is a finding.

use std::sync::Arc;

use kiln_detect::{Finding, Kind, Severity};
use kiln_engine::guest::{Events, Gone, GuestEvent, Watch};
use kiln_engine::kept::{Ended, KeepPolicy, KeptVm, Temperature};
use kiln_engine::{Engine, Guest};

use super::saves::{one, prepared};
use super::{DEADLINE, Lab, spec};

/// Stops a guest's agent from outside, which is to the fake engine what a halt is to a VM.
fn halt(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("is stopped");
}

fn kinds(watch: &Watch) -> Vec<(Kind, Severity)> {
    watch.findings().iter().map(|finding| (finding.kind, finding.severity)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_has_halted_is_over_and_a_finding() {
    let lab = Lab::new();
    let engine = lab.engine();
    let guest = Guest::start(&engine, spec(), DEADLINE, Watch::default()).await.expect("starts");
    let events = guest.watch().events();
    halt(guest.vm.pid());
    let gone = tokio::time::timeout(DEADLINE, guest.gone()).await.expect("is found in time");
    assert_eq!(gone, Gone::Halted);
    assert_eq!(kinds(guest.watch()), [(Kind::Halted, Severity::Fatal)]);
    let told = found(events).await;
    assert_eq!([told], guest.findings()[..]);
    guest.vm.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_guest_that_has_halted_ends_with_a_finding() {
    let lab = Lab::new();
    let engine = Arc::new(lab.engine());
    let fork = one(&engine, &prepared(&engine).await).await;
    let kept = KeptVm::keep(Arc::clone(&engine) as Arc<dyn Engine>, fork, KeepPolicy::default());
    // Again after a pause and a save, so that its state is distinguished from what they did.
    for temperature in [Temperature::Warm, Temperature::Cold] {
        kept.cool(temperature).await.expect("cools");
        kept.ensure_hot().await.expect("wakes");
    }
    assert!(kept.watch().findings().is_empty());
    let mut events = kept.watch().events_kept();
    let pid = loop {
        let entry = events.next().await.expect("it lives").expect("nothing was missed");
        if let GuestEvent::Started { pid } = entry.event
            && rustix::process::test_kill_process(rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid"))
                .is_ok()
        {
            break pid;
        }
    };
    halt(pid);
    let told = found(events).await;
    assert_eq!((told.kind, told.severity), (Kind::Halted, Severity::Fatal));
    assert_eq!(tokio::time::timeout(DEADLINE, kept.ended()).await.expect("ends in time"), Ended::Halted);
    assert_eq!(kept.watch().findings(), [told]);
}

/// The next finding in these events.
async fn found(mut events: Events) -> Finding {
    let next = async {
        loop {
            if let GuestEvent::Finding(finding) =
                events.next().await.expect("more comes").expect("nothing was missed").event
            {
                return Finding::clone(&finding);
            }
        }
    };
    tokio::time::timeout(DEADLINE, next).await.expect("comes in time")
}

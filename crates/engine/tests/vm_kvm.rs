//! The acceleration of a VM on a host whose `/dev/kvm` may be missing, work, or open without running guests.

mod support;

use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use kiln_engine::host::{KvmState, open_kvm};
use kiln_engine::{Acceleration, AccelerationRequest, Engine as _, VmSpec};
use kiln_engine::{PROBE_DEADLINE, kvm_works};

use support::{Lab, console_until};

/// Starting and ending the probe guest, beside its own deadline.
const AROUND_THE_PROBE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn vm_with_automatic_acceleration_boots_and_the_result_of_the_probe_is_remembered() {
    let lab = Lab::new();
    let engine = lab.engine();
    let spec = VmSpec { acceleration: AccelerationRequest::Auto, ..lab.spec("idle") };
    let started = Instant::now();
    // Two at once: one probes, the other waits for its answer.
    let (state, same) = tokio::join!(kvm_works(&engine, &spec), kvm_works(&engine, &spec));
    let probed = started.elapsed();
    eprintln!("{state:?} within {probed:?}");
    assert_eq!(state, same);
    assert!(probed < PROBE_DEADLINE + AROUND_THE_PROBE, "{probed:?}");
    assert_ne!(state, KvmState::Opens, "a probe decides");
    assert_eq!(open_kvm().is_ok(), matches!(state, KvmState::Works | KvmState::Lies { .. }));

    // A probe remembers its answer. Without `/dev/kvm` there is none.
    let answers =
        || std::fs::metadata(lab.home().join("probe.json")).map(|file| (file.ino(), file.modified().ok())).ok();
    let written = answers();
    assert_eq!(kvm_works(&engine, &spec).await, state);
    assert_eq!(answers(), written, "it is remembered");

    let mut vm = engine.launch(spec).await.expect("starts");
    let expected = if state.works() { Acceleration::Kvm } else { Acceleration::Tcg };
    assert_eq!(vm.acceleration(), expected);
    let mut events = vm.take_events().expect("not taken");
    console_until(&mut events, "kiln-agent: init").await;
}

//! Real VMs under TCG: how they start, what they print, how they end.

mod support;

use std::time::Duration;

use kiln_engine::{
    Disk, DiskFormat, DiskRole, Engine as _, ExitReason, LaunchError, QemuEngine, SpecError, VmEvent, VmSpec,
};

use support::{Lab, console_until, end, is_alive};

/// A guest that counts prints ten times meanwhile.
const TEN_COUNTS: Duration = Duration::from_millis(500);

#[tokio::test]
async fn vm_that_powers_off_reports_it_and_leaves_nothing() {
    let lab = Lab::new();
    let mut vm = lab.engine().launch(lab.spec("poweroff")).await.expect("starts");
    let mut events = vm.take_events().expect("not taken");
    assert_eq!(events.next().await, Some(VmEvent::Started { pid: vm.pid() }));
    assert_eq!(lab.vms(), [vm.id().as_str()]);
    let console = console_until(&mut events, "reboot: Power down").await;
    assert!(console.contains("Linux version") && console.contains("kiln-agent: init"), "{console}");
    assert!(!console.contains('\x1b'), "the console is the guest's alone: {console:?}");
    let exit = end(&vm).await;
    assert_eq!(exit.reason, ExitReason::GuestPoweredOff);
    assert_eq!(lab.vms(), [""; 0]);
    assert!(!is_alive(vm.pid()));
    let mut last = None;
    while let Some(event) = events.next().await {
        last = Some(event);
    }
    assert_eq!(last, Some(VmEvent::Exited(exit)));
}

#[tokio::test]
async fn vm_that_panics_reports_it_and_keeps_its_last_lines() {
    let lab = Lab::new();
    let vm = lab.engine().launch(lab.spec("panic")).await.expect("starts");
    assert_eq!(end(&vm).await.reason, ExitReason::GuestPanicked);
    let tail = vm.console_tail(100).join("\n");
    assert!(tail.contains("Attempted to kill init"), "{tail}");
}

#[tokio::test]
async fn vm_that_reboots_ends() {
    let lab = Lab::new();
    let vm = lab.engine().launch(lab.spec("reboot")).await.expect("starts");
    assert_eq!(end(&vm).await.reason, ExitReason::GuestReset);
}

#[tokio::test]
async fn vm_that_is_killed_leaves_nothing() {
    let lab = Lab::new();
    let mut vm = lab.engine().launch(lab.spec("idle")).await.expect("starts");
    let mut events = vm.take_events().expect("not taken");
    console_until(&mut events, "kiln-agent: init").await;
    assert!(is_alive(vm.pid()));
    assert_eq!(vm.kill().await.reason, ExitReason::Killed);
    assert!(!is_alive(vm.pid()));
    assert_eq!(lab.vms(), [""; 0]);
    vm.dial().await.expect_err("its sockets are gone");
}

#[tokio::test]
async fn vm_whose_handle_is_dropped_ends() {
    let lab = Lab::new();
    let mut vm = lab.engine().launch(lab.spec("idle")).await.expect("starts");
    let mut events = vm.take_events().expect("not taken");
    let pid = vm.pid();
    drop(vm);
    let last = async {
        let mut last = None;
        while let Some(event) = events.next().await {
            last = Some(event);
        }
        last
    };
    let last = tokio::time::timeout(support::STEP_DEADLINE, last).await.expect("ends in time");
    assert!(matches!(last, Some(VmEvent::Exited(exit)) if exit.reason == ExitReason::Killed));
    assert!(!is_alive(pid));
    assert_eq!(lab.vms(), [""; 0]);
}

#[test]
fn vm_ends_with_its_runtime() {
    let lab = Lab::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let vm = runtime.block_on(lab.engine().launch(lab.spec("idle"))).expect("starts");
    drop(runtime);
    assert!(!is_alive(vm.pid()));
    assert_eq!(lab.vms(), [""; 0]);
}

#[tokio::test]
async fn vm_prints_nothing_while_it_is_paused_and_continues_afterwards() {
    let lab = Lab::new();
    let mut vm = lab.engine().launch(lab.spec("count")).await.expect("starts");
    let mut events = vm.take_events().expect("not taken");
    console_until(&mut events, "count 3").await;
    vm.pause().await.expect("pauses");
    let paused = async { while events.next().await.expect("it runs") != VmEvent::Paused {} };
    tokio::time::timeout(support::STEP_DEADLINE, paused).await.expect("the event comes");
    // When `stop` returns, the guest's earlier output was written, but it arrives by another path than the event. After
    // it comes silence.
    let silence = async {
        while let Ok(event) = tokio::time::timeout(TEN_COUNTS, events.next()).await {
            assert!(matches!(event, Some(VmEvent::Console { .. })), "{event:?}");
        }
    };
    tokio::time::timeout(support::STEP_DEADLINE, silence).await.expect("it falls silent");
    vm.resume().await.expect("resumes");
    console_until(&mut events, "count ").await;
}

#[tokio::test]
async fn vm_that_ignores_its_power_button_is_killed_at_the_deadline() {
    let lab = Lab::new();
    let vm = lab.engine().launch(lab.spec("idle")).await.expect("starts");
    assert_eq!(vm.shutdown(Duration::from_millis(200)).await.reason, ExitReason::Killed);
    assert!(!is_alive(vm.pid()));
}

#[tokio::test]
async fn vm_takes_connections_to_its_ports_from_the_start() {
    let lab = Lab::new();
    let spec = VmSpec { extra_ports: vec!["bench.0".into()], ..lab.spec("idle") };
    let vm = lab.engine().launch(spec).await.expect("starts");
    vm.dial().await.expect("connects");
    vm.port_stream("bench.0").await.expect("connects");
    let error = vm.port_stream("other").await.expect_err("there is none");
    assert_eq!(error.to_string(), "the VM has no port `other`");
}

#[tokio::test]
async fn vm_that_floods_an_unread_console_stays_bounded() {
    let lab = Lab::new();
    let vm = lab.engine().launch(lab.spec("flood")).await.expect("starts");
    let flooded = async {
        while vm.console_bytes_dropped() == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(support::STEP_DEADLINE, flooded).await.expect("the queue fills");
    vm.pause().await.expect("answers all the same");
    assert!(vm.console_tail(1000).len() > 100);
    vm.kill().await;
}

#[tokio::test]
async fn vm_takes_disks_with_any_characters_in_their_paths() {
    let lab = Lab::new();
    let path = lab.home().join("a,b:\"c\".raw");
    std::fs::write(&path, [0; 4096]).expect("written");
    let disk = |role| Disk { path: path.clone(), format: DiskFormat::Raw, role };
    // The same file twice: two readers share it, and QEMU refuses a writer beside them with its own error.
    let vm = lab
        .engine()
        .launch(VmSpec { disks: vec![disk(DiskRole::Shared), disk(DiskRole::Shared)], ..lab.spec("idle") })
        .await;
    drop(vm.expect("starts"));
    let error = lab
        .engine()
        .launch(VmSpec { disks: vec![disk(DiskRole::Shared), disk(DiskRole::Scratch)], ..lab.spec("idle") })
        .await;
    let error = error.expect_err("a disk is written by one alone");
    assert!(matches!(&error, LaunchError::VmmFailed { stderr, .. } if stderr.contains("lock")), "{error:?}");
}

#[tokio::test]
async fn vm_without_a_vmm_is_an_error_with_the_missing_program() {
    let lab = Lab::new();
    let engine = QemuEngine::new(lab.home(), "/nowhere/qemu-system-x86_64");
    let error = engine.launch(lab.spec("idle")).await.expect_err("there is none");
    assert!(matches!(error, LaunchError::VmmMissing { .. }), "{error:?}");
    assert_eq!(lab.vms(), [""; 0]);
}

#[tokio::test]
async fn vm_of_impossible_size_is_refused() {
    let lab = Lab::new();
    for memory_mib in [0, 1 << 20] {
        let error = lab.engine().launch(VmSpec { memory_mib, ..lab.spec("idle") }).await.expect_err("refused");
        assert!(matches!(error, LaunchError::Spec(SpecError::Memory { .. })), "{error:?}");
    }
}

#[tokio::test]
async fn vm_with_a_bad_kernel_is_an_error_with_the_output_of_the_vmm() {
    let lab = Lab::new();
    let garbage = lab.home().join("garbage");
    std::fs::write(&garbage, [0x5a; 100]).expect("written");
    let spec = VmSpec { kernel: garbage, ..lab.spec("idle") };
    let error = lab.engine().launch(spec).await.expect_err("that is no kernel");
    assert!(matches!(&error, LaunchError::VmmFailed { stderr, .. } if !stderr.is_empty()), "{error:?}");
    assert_eq!(lab.vms(), [""; 0]);
}

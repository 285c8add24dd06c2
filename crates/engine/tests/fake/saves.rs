//! Saves, forks and stops over the fake engine, on which a server and a lab can be tested without a VM.

use std::sync::Arc;

use kiln_engine::home::Home;
use kiln_engine::snapshot::{AfterSave, MemoryKind, Snapshot, SnapshotRequest, SnapshotStore};
use kiln_engine::{
    Engine, ErrorKind, FakeEngine, Fork, ForkPart, ForkSpec, ReadyRequest, RestoreError, SaveError, VmSpec,
};
use kiln_wire::Mount;

use super::{DEADLINE, Lab, agent, shell, spec};

fn forkable() -> VmSpec {
    VmSpec { forkable: true, ..spec() }
}

/// A snapshot of a guest with one file.
pub(super) async fn prepared(engine: &FakeEngine) -> Snapshot {
    let vm = engine.launch(forkable()).await.expect("starts");
    let link = vm.connect(DEADLINE).await.expect("answers");
    shell(&link, "echo prepared >file").await;
    let request = SnapshotRequest { link: Some(&link), then: AfterSave::End, label: "prepared".into() };
    vm.snapshot(request).await.expect("is saved")
}

pub(super) async fn one(engine: &FakeEngine, snapshot: &Snapshot) -> Fork {
    engine.restore(snapshot, ForkSpec::default()).await.expect("is restored").remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_have_the_files_of_the_moment_and_names_and_files_of_their_own() {
    let lab = Lab::new();
    let engine = lab.engine();
    let vm = engine.launch(forkable()).await.expect("starts");
    let link = vm.connect(DEADLINE).await.expect("answers");
    shell(&link, "mkdir -p deep/er; echo before >deep/er/file; ln -s deep/er/file link; chmod 640 deep/er/file").await;
    let request = SnapshotRequest { link: Some(&link), then: AfterSave::GoOn, label: "a moment".into() };
    let snapshot = vm.snapshot(request).await.expect("is saved");
    shell(&link, "echo after >deep/er/file").await;

    let forks = engine.restore(&snapshot, ForkSpec { count: 3, ..ForkSpec::default() }).await.expect("are restored");
    let mut names = Vec::new();
    for (number, Fork { vm, link }) in forks.iter().enumerate() {
        assert_eq!(shell(link, "cat link; stat -c %a deep/er/file").await, "before\n640");
        shell(link, &format!("echo {number} >deep/er/file")).await;
        names.push(shell(link, "cat etc/hostname").await);
        assert_eq!(names.last(), Some(&format!("kiln-{}", vm.id())));
    }
    for (number, Fork { link, .. }) in forks.iter().enumerate() {
        assert_eq!(shell(link, "cat link").await, number.to_string());
    }
    assert_eq!(shell(&link, "cat link").await, "after", "the saved guest goes on");
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_whose_agent_refuses_is_gone_when_its_error_arrives() {
    let lab = Lab::new();
    let engine = lab.engine();
    let snapshot = prepared(&engine).await;
    let good = ForkPart::default();
    let mount = Mount { device: "/dev/kiln-none".into(), target: "/".into(), fstype: "ext4".into(), read_only: true };
    let bad = ForkPart { mounts: vec![mount], ..ForkPart::default() };
    for parts in [vec![bad.clone()], vec![good.clone(), good.clone(), bad, good]] {
        let forks = ForkSpec { count: parts.len(), parts, ..ForkSpec::default() };
        let error = engine.restore(&snapshot, forks).await.expect_err("the agent refuses");
        assert!(matches!(error, RestoreError::Link(_)), "{error:?}");
        assert_eq!(lab.vms(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_guest_continues_as_the_same_one() {
    let lab = Lab::new();
    let engine = lab.engine();
    let fork = one(&engine, &prepared(&engine).await).await;
    let (id, name) = (fork.vm.id().clone(), shell(&fork.link, "cat etc/hostname").await);
    shell(&fork.link, "echo more >>file").await;
    let request = SnapshotRequest { link: Some(&fork.link), then: AfterSave::Stop, label: "away".into() };
    let stopped = fork.vm.snapshot(request).await.expect("stops");
    assert_eq!(stopped.manifest().memory, MemoryKind::Full);
    drop((fork, stopped));

    let back = engine.resume(&id).await.expect("is resumed");
    assert_eq!(back.vm.id(), &id);
    assert_eq!(shell(&back.link, "cat file etc/hostname").await, format!("prepared\nmore\n{name}"));
    back.vm.kill().await;
    let gone = engine.resume(&id).await.expect_err("it is over");
    assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_is_not_forkable_is_not_saved_and_continues() {
    let lab = Lab::new();
    let vm = lab.engine().launch(spec()).await.expect("starts");
    let link = vm.connect(DEADLINE).await.expect("answers");
    let request = SnapshotRequest { link: Some(&link), then: AfterSave::GoOn, label: String::new() };
    let error = vm.snapshot(request).await.expect_err("is not forkable");
    assert!(matches!(error, SaveError::NotForkable), "{error:?}");
    assert_eq!(shell(&link, "echo on").await, "on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_larger_than_the_guests_memory_leave_no_snapshot() {
    let lab = Lab::new();
    let vm = lab.engine().launch(VmSpec { memory_mib: 80, ..forkable() }).await.expect("starts");
    let link = vm.connect(DEADLINE).await.expect("answers");
    shell(&link, "head -c 81M /dev/zero >large").await;
    let request = SnapshotRequest { link: Some(&link), then: AfterSave::End, label: String::new() };
    let error = vm.snapshot(request).await.expect_err("is too large");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    assert_eq!(shell(&link, "echo on").await, "on");
    assert!(SnapshotStore::new(&Home::at(lab.home())).list().expect("lists").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_another_agent_is_refused_before_anything_starts() {
    let lab = Lab::new();
    let snapshot = prepared(&lab.engine()).await;
    let other = lab.home().join("other-agent");
    let mut bytes = fs_err::read(agent()).expect("reads");
    bytes.push(0);
    fs_err::write(&other, bytes).expect("written");
    let error = FakeEngine::new(lab.home(), other).restore(&snapshot, ForkSpec::default()).await.expect_err("differs");
    assert!(matches!(error, RestoreError::OtherMachine { what: "kernel", .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert_eq!(lab.vms(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ready_made_snapshot_is_made_once_for_each_spec() {
    let lab = Lab::new();
    let engine: Arc<dyn Engine> = Arc::new(lab.engine());
    let ready = async |spec: &VmSpec| {
        let snapshot = engine.ready(ReadyRequest::new(spec, "test", DEADLINE)).await.expect("is made");
        snapshot.id().clone()
    };
    let (small, large) = (VmSpec { initramfs: None, ..spec() }, VmSpec { initramfs: None, memory_mib: 512, ..spec() });
    let first = ready(&small).await;
    assert_eq!(ready(&small).await, first);
    assert_ne!(ready(&large).await, first);
}

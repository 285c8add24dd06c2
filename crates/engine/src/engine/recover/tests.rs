//! Each outcome, with `sleep` as the VMM.

use std::process::{Child, Command};

use camino::Utf8PathBuf;

use super::*;
use crate::every_variant::every_variant;
use crate::snapshot::{MachineIdentity, MemoryKind, SNAPSHOT_FORMAT};
use crate::spec::VmSpec;
use crate::vm_dir::fifo::CONSOLE_FIFO;
use crate::vm_dir::orphan::PID_FILE;
use crate::vm_dir::orphan::testing::sleeper_with;
use crate::vm_dir::{Record, ReopenError, VmDir};

/// A home with VMs whose owner is gone.
struct Scene {
    _directory: tempfile::TempDir,
    home: Home,
}

/// A process in place of a VMM, with the FIFO to which it writes. It is killed and reaped at the end.
struct Vmm(Child, Utf8PathBuf, #[expect(dead_code, reason = "removes the FIFO at the end")] tempfile::TempDir);

impl Vmm {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let fifo = Utf8PathBuf::try_from(directory.path().join(CONSOLE_FIFO)).expect("UTF-8");
        Self(sleeper_with(&fifo), fifo, directory)
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().expect("is a child").is_none()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        self.0.wait().expect("ends");
    }
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8PathBuf::try_from(directory.path().to_owned()).expect("UTF-8");
        Self { _directory: directory, home: Home::at(path) }
    }

    /// A VM that went through these states and lost its owner.
    fn vm(&self, owner_loss: OwnerLoss, states: &[State], vmm: Option<&Vmm>) -> VmId {
        let spec = VmSpec { owner_loss, ..VmSpec::new("/k", "/i") };
        let dir = VmDir::create(&self.home.vms(), &spec).expect("made");
        fs::remove_file(dir.path().join("journal")).expect("removed");
        let journal = Journal::create(dir.path()).expect("made");
        for state in states {
            journal.append(state.clone()).expect("follows");
        }
        if let Some(vmm) = vmm {
            let stat = fs::read_to_string(format!("/proc/{}/stat", vmm.0.id())).expect("runs");
            fs::write(dir.path().join(PID_FILE), stat).expect("written");
            std::fs::hard_link(&vmm.1, dir.path().join(CONSOLE_FIFO)).expect("the VMM writes to it");
        }
        let (id, path) = (dir.id().clone(), dir.path().to_owned());
        // A reopened directory stays when it is dropped, as all do when their owner is killed.
        let aside = self.home.path().join("aside");
        fs::rename(&path, &aside).expect("moved");
        drop(dir);
        fs::rename(&aside, &path).expect("moved back");
        id
    }

    /// A whole snapshot.
    fn snapshot(&self) -> SnapshotId {
        let id = SnapshotId::random();
        self.publish(&id, Seal::Done, None);
        id
    }

    fn publish(&self, id: &SnapshotId, seal: Seal, parent: Option<&SnapshotId>) {
        let directory = self.home.snapshots().join(id.as_str());
        fs::create_dir_all(&directory).expect("made");
        fs::write(directory.join("memory"), "1234").expect("written");
        let machine = MachineIdentity {
            vmm: String::new(),
            acceleration: String::new(),
            cpu: String::new(),
            machine: String::new(),
            firmware: String::new(),
            kernel: String::new(),
            kernel_release: String::new(),
        };
        let manifest = Manifest {
            format: SNAPSHOT_FORMAT,
            id: id.clone(),
            parent: parent.cloned(),
            generation: 3,
            created_unix_ms: 0,
            label: String::new(),
            spec: VmSpec::new("/k", "/i"),
            machine,
            frozen: false,
            memory: MemoryKind::Full,
            disks: Vec::new(),
            external: Vec::new(),
            volumes: Vec::new(),
            files: vec![FileEntry { name: "memory".into(), bytes: 4, blake3: None }],
            seal,
        };
        let bytes = serde_json::to_vec(&manifest).expect("JSON");
        fs::write(directory.join(MANIFEST_FILE), bytes).expect("written");
    }

    /// Recovers twice. Both times must have the same outcome.
    fn outcome(&self, id: &VmId) -> Outcome {
        let recover = || {
            let recovered = recover(&self.home).expect("recovers");
            recovered.into_iter().find(|recovered| recovered.id == *id).map(|recovered| recovered.outcome)
        };
        let first = recover().expect("has no owner");
        match first {
            Outcome::Removed => assert_eq!(recover(), None),
            _ => assert_eq!(recover().as_ref(), Some(&first), "a second recovery says the same"),
        }
        first
    }

    fn path(&self, id: &VmId) -> Utf8PathBuf {
        self.home.vms().join(id.as_str())
    }

    fn last(&self, id: &VmId) -> State {
        let history = History::read(&self.path(id)).expect("reads");
        history.records.last().expect("has states").state.clone()
    }
}

fn saving(snapshot: &SnapshotId, then: Then) -> State {
    State::Saving { snapshot: snapshot.clone(), then }
}

fn restoring(snapshot: &SnapshotId) -> State {
    State::Restoring { snapshot: snapshot.clone() }
}

fn stopped(snapshot: &SnapshotId) -> State {
    State::Stopped { snapshot: snapshot.clone() }
}

fn stopped_in_order(snapshot: &SnapshotId) -> Outcome {
    Outcome::Stopped { snapshot: snapshot.clone(), lost: None }
}

fn fell_back(snapshot: &SnapshotId, reason: &str) -> Outcome {
    Outcome::Stopped { snapshot: snapshot.clone(), lost: Some(reason.into()) }
}

const WITH_OWNER: &str = "it ended with the process that owned it";
const WITHOUT_OWNER: &str = "its VMM ended while it had no owner";
const MID_SAVE: &str = "its owner ended while it was being saved";

#[test]
fn a_vm_without_a_snapshot_is_removed_and_a_vm_with_an_owner_stays() {
    let scene = Scene::new();
    let owned = VmDir::create(&scene.home.vms(), &VmSpec::new("/k", "/i")).expect("made");
    let origin = scene.snapshot();
    let lives: [&[State]; 5] = [
        &[],
        &[State::Launching],
        &[State::Launching, State::Running],
        &[restoring(&origin), State::Running],
        &[State::Launching, State::Running, saving(&SnapshotId::random(), Then::GoOn)],
    ];
    for states in lives {
        let mut vmm = Vmm::start();
        let id = scene.vm(OwnerLoss::Kill, states, Some(&vmm));
        assert_eq!(scene.outcome(&id), Outcome::Removed, "{states:?}");
        assert!(!vmm.is_alive() && !scene.path(&id).exists());
    }
    assert!(owned.path().join("spec.json").exists());
}

#[test]
fn a_vm_to_be_kept_that_was_not_handed_out_yet_leaves_nothing() {
    let scene = Scene::new();
    let origin = scene.snapshot();
    for state in [State::Launching, restoring(&origin)] {
        let mut vmm = Vmm::start();
        let id = scene.vm(OwnerLoss::KeepRunning, &[state], Some(&vmm));
        assert_eq!(scene.outcome(&id), Outcome::Removed);
        assert!(!vmm.is_alive());
    }
}

#[test]
fn a_vm_to_be_kept_runs_on() {
    let scene = Scene::new();
    let snapshot = SnapshotId::random();
    let lives: [&[State]; 4] = [
        &[State::Launching, State::Running],
        &[State::Launching, State::Running, State::Paused],
        &[State::Launching, State::Running, saving(&snapshot, Then::Stop)],
        &[State::Launching, State::Running, saving(&snapshot, Then::GoOn)],
    ];
    for states in lives {
        let mut vmm = Vmm::start();
        let id = scene.vm(OwnerLoss::KeepRunning, states, Some(&vmm));
        assert_eq!(scene.outcome(&id), Outcome::Adoptable, "{states:?}");
        assert!(vmm.is_alive());
        assert_eq!(scene.last(&id), *states.last().expect("has states"));
    }
}

#[test]
fn a_kept_vm_whose_vmm_ended_is_lost_or_stops_at_its_snapshot() {
    let scene = Scene::new();
    let id = scene.vm(OwnerLoss::KeepRunning, &[State::Launching, State::Running], None);
    fs::write(scene.path(&id).join("disk-0.qcow2"), "x").expect("written");
    assert_eq!(scene.outcome(&id), Outcome::Lost { reason: WITHOUT_OWNER.into() });
    assert_eq!(scene.last(&id), State::Lost { reason: WITHOUT_OWNER.into() });
    assert!(scene.path(&id).join("disk-0.qcow2").exists());

    let snapshot = scene.snapshot();
    let states = [State::Launching, State::Running, saving(&snapshot, Then::GoOn), State::Running];
    let id = scene.vm(OwnerLoss::KeepRunning, &states, None);
    assert_eq!(scene.outcome(&id), fell_back(&snapshot, WITHOUT_OWNER));
    assert_eq!(scene.last(&id), stopped(&snapshot));
}

#[test]
fn a_stop_whose_snapshot_is_whole_is_finished() {
    let scene = Scene::new();
    for owner_loss in [OwnerLoss::Kill, OwnerLoss::KeepRunning] {
        let snapshot = scene.snapshot();
        let mut vmm = Vmm::start();
        let id = scene.vm(owner_loss, &[State::Launching, State::Running, saving(&snapshot, Then::Stop)], Some(&vmm));
        fs::write(scene.path(&id).join("memory"), "x").expect("written");
        assert_eq!(scene.outcome(&id), stopped_in_order(&snapshot));
        assert!(!vmm.is_alive(), "no second VMM of it may ever start beside this one");
        assert_eq!(scene.last(&id), stopped(&snapshot));
        assert!(!scene.path(&id).join("memory").exists());
        VmDir::reopen(&scene.home.vms(), &id).expect("can be resumed");
    }
}

#[test]
fn a_stop_with_a_broken_snapshot_goes_back_to_the_snapshot_before() {
    let scene = Scene::new();
    let (before, unfinished) = (scene.snapshot(), SnapshotId::random());
    let states = [
        State::Launching,
        State::Running,
        saving(&before, Then::GoOn),
        State::Running,
        saving(&unfinished, Then::Stop),
    ];
    let id = scene.vm(OwnerLoss::Kill, &states, None);
    assert_eq!(scene.outcome(&id), fell_back(&before, MID_SAVE));
    let first = scene.vm(OwnerLoss::Kill, &[State::Launching, State::Running, states[4].clone()], None);
    assert_eq!(scene.outcome(&first), Outcome::Lost { reason: MID_SAVE.into() });
}

#[test]
fn a_vm_to_be_kept_survives_an_end_that_saved_nothing() {
    let scene = Scene::new();
    let (before, unfinished) = (scene.snapshot(), SnapshotId::random());
    let ends = |snapshot: &SnapshotId| [State::Launching, State::Running, saving(snapshot, Then::End)];
    let mut vmm = Vmm::start();
    let id = scene.vm(OwnerLoss::KeepRunning, &ends(&unfinished), Some(&vmm));
    assert_eq!(scene.outcome(&id), Outcome::Adoptable);
    assert!(vmm.is_alive());
    let resumed = [stopped(&before), restoring(&before), State::Running, saving(&unfinished, Then::End)];
    let states = [&ends(&before)[..2], &[saving(&before, Then::Stop)], &resumed].concat();
    let id = scene.vm(OwnerLoss::Kill, &states, None);
    assert_eq!(scene.outcome(&id), fell_back(&before, MID_SAVE));

    let id = scene.vm(OwnerLoss::Kill, &ends(&unfinished), None);
    assert_eq!(scene.outcome(&id), Outcome::Removed, "its spec does not keep it");
    let id = scene.vm(OwnerLoss::KeepRunning, &ends(&before), None);
    assert_eq!(scene.outcome(&id), Outcome::Removed, "the snapshot is what is left of it");
}

#[test]
fn a_guest_whose_memory_became_the_snapshots_does_not_run_on_in_it() {
    let scene = Scene::new();
    for shared in [true, false] {
        let snapshot = scene.snapshot();
        let mut vmm = Vmm::start();
        let states = [State::Launching, State::Running, saving(&snapshot, Then::GoOn)];
        let id = scene.vm(OwnerLoss::KeepRunning, &states, Some(&vmm));
        let saved = scene.home.snapshots().join(snapshot.as_str()).join("memory");
        match shared {
            true => fs::hard_link(saved, scene.path(&id).join("memory")).expect("linked"),
            false => fs::write(scene.path(&id).join("memory"), "1234").expect("written"),
        }
        let expected = if shared { stopped_in_order(&snapshot) } else { Outcome::Adoptable };
        assert_eq!(scene.outcome(&id), expected);
        assert_eq!(vmm.is_alive(), !shared);
    }
}

#[test]
fn a_resume_that_was_cut_short_is_a_stopped_vm_again() {
    let scene = Scene::new();
    let snapshot = scene.snapshot();
    for owner_loss in [OwnerLoss::Kill, OwnerLoss::KeepRunning] {
        let mut vmm = Vmm::start();
        let states =
            [State::Launching, State::Running, saving(&snapshot, Then::Stop), stopped(&snapshot), restoring(&snapshot)];
        let id = scene.vm(owner_loss, &states, Some(&vmm));
        assert_eq!(scene.outcome(&id), stopped_in_order(&snapshot));
        assert!(!vmm.is_alive());
    }
}

#[test]
fn a_resumed_vm_that_ended_with_its_owner_goes_back_and_reports_the_loss() {
    let scene = Scene::new();
    let snapshot = scene.snapshot();
    let states = [
        State::Launching,
        State::Running,
        saving(&snapshot, Then::Stop),
        stopped(&snapshot),
        restoring(&snapshot),
        State::Running,
    ];
    let id = scene.vm(OwnerLoss::Kill, &states, None);
    assert_eq!(scene.outcome(&id), fell_back(&snapshot, WITH_OWNER));
}

#[test]
fn a_recovery_that_was_killed_between_its_two_words_ends_the_same_way() {
    let scene = Scene::new();
    let snapshot = scene.snapshot();
    let lost = State::Lost { reason: WITH_OWNER.into() };
    let states = [State::Launching, State::Running, saving(&snapshot, Then::GoOn), State::Running, lost];
    let id = scene.vm(OwnerLoss::Kill, &states, None);
    assert_eq!(scene.outcome(&id), fell_back(&snapshot, WITH_OWNER));
}

#[test]
fn a_snapshot_that_is_gone_cut_or_lies_on_nothing_is_not_gone_back_to() {
    let scene = Scene::new();
    let [gone, cut, on_nothing, unsynced] = [(); 4].map(|()| scene.snapshot());
    fs::remove_dir_all(scene.home.snapshots().join(gone.as_str())).expect("removed");
    fs::write(scene.home.snapshots().join(cut.as_str()).join("memory"), "1").expect("written");
    scene.publish(&on_nothing, Seal::Done, Some(&gone));
    scene.publish(&unsynced, Seal::Pending { host_boot_id: "another boot".into() }, None);
    for snapshot in [gone, cut, on_nothing, unsynced] {
        let older = scene.snapshot();
        let states = [
            State::Launching,
            State::Running,
            saving(&older, Then::GoOn),
            State::Running,
            saving(&snapshot, Then::Stop),
            stopped(&snapshot),
        ];
        let id = scene.vm(OwnerLoss::Kill, &states, None);
        let reason = format!("its snapshot `{snapshot}` is gone or broken");
        assert_eq!(scene.outcome(&id), fell_back(&older, &reason));
    }
}

#[test]
fn a_snapshot_of_this_boot_need_not_be_on_disk_yet() {
    let scene = Scene::new();
    let snapshot = SnapshotId::random();
    scene.publish(&snapshot, Seal::Pending { host_boot_id: host_boot_id_now().expect("is known") }, None);
    let id = scene.vm(OwnerLoss::Kill, &[State::Launching, State::Running, saving(&snapshot, Then::Stop)], None);
    assert_eq!(scene.outcome(&id), stopped_in_order(&snapshot));
}

#[test]
fn a_broken_journal_loses_the_vm_with_a_reason_and_never_its_older_snapshot() {
    let scene = Scene::new();
    let snapshot = scene.snapshot();
    let mut vmm = Vmm::start();
    let states = [State::Launching, State::Running, saving(&snapshot, Then::GoOn), State::Running];
    let id = scene.vm(OwnerLoss::KeepRunning, &states, Some(&vmm));
    let journal = scene.path(&id).join("journal");
    let whole = fs::read_to_string(&journal).expect("reads");
    fs::write(&journal, format!("{whole}nonsense\n")).expect("written");
    let outcome = scene.outcome(&id);
    assert!(
        matches!(&outcome, Outcome::Stopped { snapshot: to, lost: Some(reason) }
            if *to == snapshot && reason.starts_with("its journal is broken: line 5")),
        "{outcome:?}"
    );
    assert!(!vmm.is_alive());
}

#[test]
fn other_files_stay_and_partial_directories_are_swept() {
    let scene = Scene::new();
    let vms = scene.home.vms();
    fs::create_dir_all(vms.join("other")).expect("made");
    fs::create_dir_all(vms.join("x.partial")).expect("made");
    assert_eq!(recover(&scene.home).expect("recovers"), []);
    assert!(vms.join("other").exists() && !vms.join("x.partial").exists());
}

#[test]
fn a_discarded_vm_is_removed_unless_it_has_an_owner() {
    let scene = Scene::new();
    let mut vmm = Vmm::start();
    let id = scene.vm(OwnerLoss::KeepRunning, &[State::Launching, State::Running], Some(&vmm));
    let owner = VmDir::reopen(&scene.home.vms(), &id).expect("has no owner");
    assert!(matches!(discard(&scene.home, &id), Err(ReopenError::Owned(_))));
    assert!(vmm.is_alive());
    drop(owner);
    discard(&scene.home, &id).expect("has no owner any more");
    assert!(!vmm.is_alive() && !scene.path(&id).exists());
    assert!(matches!(discard(&scene.home, &id), Err(ReopenError::Unknown(_))));
}

#[test]
fn a_vm_without_a_readable_spec_is_not_kept() {
    let scene = Scene::new();
    let mut vmm = Vmm::start();
    let id = scene.vm(OwnerLoss::KeepRunning, &[State::Launching, State::Running], Some(&vmm));
    fs::write(scene.path(&id).join("spec.json"), "[[[").expect("written");
    assert_eq!(scene.outcome(&id), Outcome::Removed);
    assert!(!vmm.is_alive());
}

#[test]
fn vms_are_made_and_resumed_while_others_recover() {
    let scene = Scene::new();
    let snapshot = scene.snapshot();
    let states = [State::Launching, State::Running, saving(&snapshot, Then::Stop), stopped(&snapshot)];
    let stopped = scene.vm(OwnerLoss::Kill, &states, None);
    let done = std::sync::atomic::AtomicBool::new(false);
    let vms = scene.home.vms();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                recover(&scene.home).expect("recovers");
            }
        });
        for _ in 0..200 {
            let dir = VmDir::create(&vms, &VmSpec::new("/k", "/i")).expect("made");
            assert!(dir.path().join("spec.json").exists());
        }
        for _ in 0..20 {
            VmDir::reopen(&vms, &stopped).expect("has no owner");
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let held = VmDir::reopen(&vms, &stopped).expect("has no owner");
    assert!(matches!(VmDir::reopen(&vms, &stopped), Err(ReopenError::Owned(_))));
    drop(held);
    assert_eq!(fs::read_dir(&vms).expect("lists").count(), 1);
}

/// Recovery itself is killed at each of its steps, and then run again.
#[cfg(feature = "failpoints")]
mod killed {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;
    use crate::failpoint::{FAIL_POINT_VARIABLE, FAIL_POINTS};

    const HOME_VARIABLE: &str = "KILN_TEST_RECOVER_HOME";

    #[test]
    #[ignore = "the other half of the test below, started by it in a process of its own"]
    fn recover_and_be_killed() {
        let home = std::env::var(HOME_VARIABLE).expect("started by the test below");
        recover(&Home::at(home)).expect("recovers");
    }

    #[test]
    fn a_recovery_that_is_killed_at_any_step_ends_the_same_way_the_next_time() {
        let steps: Vec<_> = FAIL_POINTS.iter().filter(|name| name.starts_with("recover.")).collect();
        assert_eq!(steps.len(), 3);
        for step in steps {
            let scene = Scene::new();
            let snapshot = scene.snapshot();
            let mut vmm = Vmm::start();
            let states = [State::Launching, State::Running, saving(&snapshot, Then::GoOn), State::Running];
            let id = scene.vm(OwnerLoss::Kill, &states, Some(&vmm));
            let ended = Command::new(std::env::current_exe().expect("this binary"))
                .args(["--exact", "engine::recover::tests::killed::recover_and_be_killed", "--ignored"])
                .env(HOME_VARIABLE, scene.home.path())
                .env(FAIL_POINT_VARIABLE, step)
                .output()
                .expect("runs");
            assert_eq!(ended.status.signal(), Some(9), "{step}: {ended:?}");
            assert!(!vmm.is_alive(), "{step}");
            assert_eq!(scene.outcome(&id), fell_back(&snapshot, WITH_OWNER), "{step}");
            let history = History::read(&scene.path(&id)).expect("reads");
            assert_eq!(history.records.len(), states.len() + 2, "{step}: each word once");
        }
    }
}

#[test]
fn each_reason_for_a_lost_vm_has_its_text() {
    let snapshot: SnapshotId = "0123456789abcdef".parse().expect("an id");
    let snapshot = || snapshot.clone();
    let states = every_variant!(State {
        Launching: [State::Launching],
        Running: [State::Running],
        Paused: [State::Paused],
        Saving: [saving(&snapshot(), Then::GoOn)],
        Stopped: [stopped(&snapshot())],
        Restoring: [restoring(&snapshot())],
        Lost: [State::Lost { reason: "the reason in the journal".into() }],
    });
    let mut reasons = Vec::new();
    for (owner_loss, (name, state)) in
        states.iter().flat_map(|state| [(OwnerLoss::Kill, state), (OwnerLoss::KeepRunning, state)])
    {
        let record = |generation, state| Record { generation, state, at_unix_ms: 0 };
        let mut history = History::default();
        history.records = vec![record(1, saving(&snapshot(), Then::Stop)), record(2, state.clone())];
        let case = Case { history: &history, owner_loss, alive: false, is_whole: &|_| false, is_memory_of: &|_| false };
        reasons.push(format!("{name}, {owner_loss:?}: {:?}", case.decide()));
    }
    insta::assert_snapshot!(reasons.join("\n"));
}

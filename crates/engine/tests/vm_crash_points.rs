//! The owner of a real VM is killed at every named step. Afterwards the VM is adopted, or stopped at its last whole
//! snapshot, or gone. No other VMM runs, and the VM's memory and disk are of the same moment.

mod support;

use std::collections::BTreeSet;

use kiln_engine::failpoint::FAIL_POINTS;
use kiln_engine::home::Home;
use kiln_engine::snapshot::{AfterSave, SnapshotId, SnapshotStore};
use kiln_engine::{Engine as _, Outcome, OwnerLoss, VmId};

use support::crash::{self, Scene, assert_noted};
use support::guest::{self, connect, names, save, shell, start_process, vmms};

const POLICIES: [OwnerLoss; 2] = [OwnerLoss::Kill, OwnerLoss::KeepRunning];
const LAUNCH: [&str; 3] = ["launch.dir", "launch.spawned", "launch.running"];
const FORK: [&str; 5] = ["restore.dir", "restore.spawned", "restore.pages", "restore.loaded", "restore.running"];
/// Steps of a save before it publishes anything.
const SAVE: [&str; 6] = ["save.begun", "save.paused", "save.device", "save.memory", "save.disks", "save.manifest"];
const PUBLISHED: &str = "save.published";
const RESUMED: &str = "save.resumed";
const STOP: [&str; 2] = ["stop.killed", "stop.journaled"];
const SEAL: [&str; 2] = ["seal.hashed", "seal.renamed"];
const RECOVER: [&str; 3] = ["recover.killed", "recover.lost", "recover.decided"];
const ADOPT: [&str; 2] = ["adopt.connected", "adopt.resumed"];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other half of the tests below, started by them in a process of its own"]
async fn act_in_another_process() {
    crash::act().await;
}

#[test]
fn every_fail_point_has_a_test_here() {
    let groups = [&LAUNCH[..], &FORK, &SAVE, &[PUBLISHED, RESUMED], &STOP, &SEAL, &RECOVER, &ADOPT];
    let tested: BTreeSet<_> = groups.concat().into_iter().collect();
    // A volume's steps need no VM: its unit tests kill a process at each of them.
    assert_eq!(
        tested,
        FAIL_POINTS
            .iter()
            .copied()
            .filter(|name| !name.starts_with("volume.") && !name.starts_with("kernel."))
            .collect()
    );
}

fn is_stopped_in_order(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Stopped { lost: None, .. })
}

fn has_lost(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Stopped { lost: Some(reason), .. } if reason.contains("owne"))
}

#[tokio::test]
async fn vm_that_is_launched_is_gone_with_its_owner_or_adopted_once_it_runs() {
    for policy in POLICIES {
        let scene = Scene::new(policy).await;
        for point in LAUNCH {
            scene.kill_at(point, "launch");
            let vms = names(scene.home().join("vms"));
            let outcome = scene.recover();
            if policy == OwnerLoss::KeepRunning && point == "launch.running" {
                assert_eq!(outcome, Outcome::Adoptable, "{point}");
                let vm = scene.lab.engine().adopt(&vms[0].parse().expect("an id")).await.expect("is adopted");
                assert_eq!(shell(&connect(&vm).await, "echo boots on").await, "boots on");
                vm.kill().await;
            } else {
                assert_eq!(outcome, Outcome::Removed, "{point}");
            }
            scene.assert_empty(point);
        }
    }
}

#[tokio::test]
async fn vm_that_is_forked_is_gone_with_its_owner_or_adopted_once_it_runs() {
    for policy in POLICIES {
        let scene = Scene::new(policy).await;
        for point in FORK {
            scene.kill_at(point, "fork");
            let vms = names(scene.home().join("vms"));
            let outcome = scene.recover();
            if policy == OwnerLoss::KeepRunning && point == "restore.running" {
                let fork = scene.go_on(&vms[0].parse().expect("an id"), &outcome).await;
                start_process(&fork.link).await;
                let (id, _) = scene.stop(fork, "adopted").await;
                let again = scene.lab.engine();
                let fork = kiln_engine::Engine::resume(&again, &id).await.expect("goes on");
                assert_noted(&fork, "adopted", point).await;
            } else {
                assert_eq!(outcome, Outcome::Removed, "{point}");
                scene.assert_empty(point);
            }
        }
    }
}

/// Kills the owner of a stopped VM at this point of its resume, and continues with the VM.
async fn resume_is_cut(scene: &Scene, id: &VmId, point: &str, is_expected: impl Fn(&Outcome) -> bool) {
    scene.kill_at(point, &format!("resume {id}"));
    let outcome = scene.recover();
    assert!(is_expected(&outcome), "{point}: {outcome:?}");
    let fork = scene.go_on(id, &outcome).await;
    assert_noted(&fork, "old", point).await;
    scene.stop(fork, "old").await;
}

#[tokio::test]
async fn vm_that_is_being_resumed_stays_stopped_when_its_owner_is_killed() {
    for policy in POLICIES {
        let scene = Scene::new(policy).await;
        let id = scene.stopped("old").await;
        for point in ["restore.spawned", "restore.pages", "restore.loaded"] {
            resume_is_cut(&scene, &id, point, is_stopped_in_order).await;
        }
        let running = |outcome: &Outcome| match policy {
            OwnerLoss::Kill => has_lost(outcome),
            OwnerLoss::KeepRunning => *outcome == Outcome::Adoptable,
        };
        resume_is_cut(&scene, &id, "restore.running", running).await;
    }
}

/// Kills the owner at this point of a save, and continues with the VM, which must have noted that word last.
async fn save_is_cut(
    scene: &Scene,
    id: &VmId,
    act: [&str; 2],
    point: &str,
    found: &str,
    is_expected: fn(&Outcome) -> bool,
) {
    let [how, then] = act;
    scene.kill_at(point, &format!("save {how} {id} new {then}"));
    let outcome = scene.recover();
    assert!(is_expected(&outcome), "{point}: {outcome:?}");
    let fork = scene.go_on(id, &outcome).await;
    assert_noted(&fork, found, point).await;
    scene.stop(fork, "old").await;
}

#[tokio::test]
async fn vm_that_ends_with_its_owner_goes_back_to_its_last_snapshot_when_a_save_is_interrupted() {
    let scene = Scene::new(OwnerLoss::Kill).await;
    let id = scene.stopped("old").await;
    for point in SAVE {
        save_is_cut(&scene, &id, ["resumed", "go-on"], point, "old", has_lost).await;
    }
    for point in [PUBLISHED, RESUMED] {
        save_is_cut(&scene, &id, ["resumed", "go-on"], point, "new", is_stopped_in_order).await;
    }
}

#[tokio::test]
async fn vm_that_ends_with_its_owner_is_stopped_once_the_snapshot_of_its_stop_is_whole() {
    let scene = Scene::new(OwnerLoss::Kill).await;
    let id = scene.stopped("old").await;
    for point in SAVE {
        save_is_cut(&scene, &id, ["resumed", "stop"], point, "old", has_lost).await;
    }
    for point in [PUBLISHED, STOP[0], STOP[1]] {
        save_is_cut(&scene, &id, ["resumed", "stop"], point, "new", is_stopped_in_order).await;
    }
}

#[tokio::test]
async fn vm_that_outlives_its_owner_continues_when_a_save_is_interrupted() {
    let scene = Scene::new(OwnerLoss::KeepRunning).await;
    let id = scene.stopped("old").await;
    for point in SAVE.into_iter().chain([PUBLISHED, RESUMED]) {
        save_is_cut(&scene, &id, ["resumed", "go-on"], point, "new", |outcome| *outcome == Outcome::Adoptable).await;
    }
}

#[tokio::test]
async fn vm_that_outlives_its_owner_is_stopped_once_the_snapshot_of_its_stop_is_whole() {
    let scene = Scene::new(OwnerLoss::KeepRunning).await;
    let id = scene.stopped("old").await;
    for point in SAVE {
        save_is_cut(&scene, &id, ["resumed", "stop"], point, "new", |outcome| *outcome == Outcome::Adoptable).await;
    }
    for point in [PUBLISHED, STOP[0], STOP[1]] {
        save_is_cut(&scene, &id, ["resumed", "stop"], point, "new", is_stopped_in_order).await;
    }
}

/// The memory of a booted VM is a file that it writes to. The snapshot of its stop takes that file over.
#[tokio::test]
async fn vm_with_its_own_memory_file_survives_several_owners() {
    let scene = Scene::new(OwnerLoss::KeepRunning).await;
    scene.kill_at("launch.running", "launch");
    let id: VmId = names(scene.home().join("vms"))[0].parse().expect("an id");
    let vmm = vmms(scene.home());
    scene.run(&format!("give {id} begun"), "");

    let cut = |then| SAVE.into_iter().map(move |point| (then, point));
    let go_on = cut("go-on").chain([("go-on", PUBLISHED), ("go-on", RESUMED)]);
    let mut before = "begun".to_owned();
    for (number, (then, point)) in go_on.chain(cut("stop")).enumerate() {
        let word = format!("word-{number}");
        scene.kill_at(point, &format!("save adopted {id} {before} {word} {then}"));
        assert_eq!(scene.recover(), Outcome::Adoptable, "{point} {then}");
        assert_eq!(vmms(scene.home()), vmm, "{point} {then}");
        before = word;
    }
    scene.kill_at(PUBLISHED, &format!("save adopted {id} {before} last stop"));
    let outcome = scene.recover();
    assert!(is_stopped_in_order(&outcome), "{outcome:?}");
    assert_noted(&scene.go_on(&id, &outcome).await, "last", PUBLISHED).await;
}

#[tokio::test]
async fn vm_snapshot_whose_seal_is_interrupted_is_whole_and_is_sealed_later() {
    for point in SEAL {
        let scene = Scene::new(OwnerLoss::Kill).await;
        scene.kill_at(point, "save forked kept go-on");
        assert!(has_lost(&scene.recover()));
        let ids = names(scene.home().join("snapshots"));
        let id = ids.iter().find(|id| **id != scene.base.as_str()).expect("was published");
        let store = SnapshotStore::new(&Home::at(scene.home()));
        let snapshot = store.open(&id.parse().expect("an id")).expect("is whole");
        assert_eq!(snapshot.is_sealed(), point == "seal.renamed", "{point}");
        let fork = guest::fork(&scene.lab.engine(), &snapshot).await;
        assert_noted(&fork, "kept", point).await;
        snapshot.seal().expect("seals");
        assert!(store.open(snapshot.id()).expect("is whole").is_sealed());
        assert_eq!(store.verify(snapshot.id()).expect("matches").unsealed, []);
    }
}

#[tokio::test]
async fn vm_whose_recovery_is_interrupted_at_any_step_has_the_same_outcome() {
    let scene = Scene::new(OwnerLoss::Kill).await;
    let id = scene.stopped("old").await;
    scene.kill_at("restore.running", &format!("resume {id}"));
    for point in RECOVER {
        scene.kill_at(point, "recover");
        assert_eq!(vmms(scene.home()), [0; 0], "{point}");
    }
    let outcome = scene.recover();
    assert!(has_lost(&outcome), "{outcome:?}");
    assert_noted(&scene.go_on(&id, &outcome).await, "old", "after recovery").await;
}

#[tokio::test]
async fn vm_whose_adoption_is_interrupted_at_any_step_can_be_adopted_again() {
    let scene = Scene::new(OwnerLoss::KeepRunning).await;
    let id = scene.stopped("old").await;
    scene.kill_at("restore.running", &format!("resume {id}"));
    let vmm = vmms(scene.home());
    for point in ADOPT {
        scene.kill_at(point, &format!("adopt {id}"));
        assert_eq!(scene.recover(), Outcome::Adoptable, "{point}");
        assert_eq!(vmms(scene.home()), vmm, "{point}");
    }
    let fork = scene.go_on(&id, &Outcome::Adoptable).await;
    assert_noted(&fork, "old", "after adoption").await;
    save(&fork.vm, &fork.link, AfterSave::End).await.expect("an adopted fork can be saved");
}

#[tokio::test]
async fn vm_that_is_adopted_can_be_saved_after_its_snapshot_was_compacted() {
    let scene = Scene::new(OwnerLoss::KeepRunning).await;
    let id = scene.stopped("old").await;
    scene.kill_at("restore.running", &format!("resume {id}"));
    let snapshots = names(scene.home().join("snapshots"));
    let stopped = snapshots.iter().find(|id| **id != scene.base.as_str()).expect("is stopped there");
    let store = SnapshotStore::new(&Home::at(scene.home()));
    store.compact(&stopped.parse().expect("an id")).expect("compacts");

    let fork = scene.go_on(&id, &scene.recover()).await;
    assert_noted(&fork, "old", "after compaction").await;
    let (_, snapshot) = scene.stop(fork, "new").await;
    assert_eq!(snapshot.parent().map(SnapshotId::as_str), Some(stopped.as_str()));
    let fork = scene.go_on(&id, &scene.recover()).await;
    assert_noted(&fork, "new", "after a save over what was compacted").await;
}

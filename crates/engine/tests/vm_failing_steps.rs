//! Each named step in the life of a real VM is made to fail. The request fails with it, the VM is as it was before, and
//! nothing is left behind.

mod support;

use kiln_engine::{Outcome, OwnerLoss};

use support::crash::{self, Scene, assert_noted};
use support::guest::{self, vmms};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other half of the tests below, started by them in a process of its own"]
async fn act_in_another_process() {
    crash::act().await;
}

#[tokio::test]
async fn vm_whose_start_fails_leaves_nothing() {
    let scene = Scene::new(OwnerLoss::KeepRunning).await;
    for point in ["launch.dir", "launch.spawned", "launch.running"] {
        let error = scene.fail_at(point, "launch");
        assert!(error.contains(point), "{error}");
        scene.assert_empty(point);
    }
    for point in ["restore.dir", "restore.spawned", "restore.pages", "restore.loaded", "restore.running"] {
        let error = scene.fail_at(point, "fork");
        assert!(error.contains(point), "{error}");
        scene.assert_empty(point);
    }
}

#[tokio::test]
async fn vm_whose_resume_fails_is_stopped_as_before() {
    let scene = Scene::new(OwnerLoss::Kill).await;
    let id = scene.stopped("old").await;
    for point in ["restore.spawned", "restore.pages", "restore.loaded", "restore.running"] {
        let error = scene.fail_at(point, &format!("resume {id}"));
        assert!(error.contains(point), "{error}");
        let outcome = scene.recover();
        assert!(matches!(outcome, Outcome::Stopped { .. }), "{point}: {outcome:?}");
        let fork = scene.go_on(&id, &outcome).await;
        assert_noted(&fork, "old", point).await;
        scene.stop(fork, "old").await;
    }
}

#[tokio::test]
async fn vm_whose_save_fails_continues_and_leaves_no_snapshot() {
    let scene = Scene::new(OwnerLoss::Kill).await;
    let points = ["begun", "paused", "device", "memory", "disks", "manifest", "published"];
    for point in points.map(|step| format!("save.{step}")) {
        for then in ["go-on", "stop"] {
            let error = scene.fail_at(&point, &format!("save forked kept {then}"));
            assert!(error.contains(&point), "{error}");
            scene.assert_empty(&point);
        }
    }
    let error = scene.fail_at("save.resumed", "save forked kept go-on");
    assert!(error.contains("save.resumed"), "{error}");
    scene.assert_empty("save.resumed");
}

#[tokio::test]
async fn vm_whose_stop_is_not_recorded_is_stopped_by_the_next_recovery() {
    let scene = Scene::new(OwnerLoss::Kill).await;
    for point in ["stop.killed", "stop.journaled"] {
        let id = scene.stopped("old").await;
        let error = scene.fail_at(point, &format!("save resumed {id} new stop"));
        assert!(error.contains("write down the stop"), "{error}");
        let outcome = scene.recover();
        assert!(matches!(outcome, Outcome::Stopped { lost: None, .. }), "{point}: {outcome:?}");
        let fork = scene.go_on(&id, &outcome).await;
        assert_noted(&fork, "new", point).await;
        fork.vm.kill().await;
    }
}

#[tokio::test]
async fn vm_keeps_a_snapshot_whose_seal_fails() {
    for point in ["seal.hashed", "seal.renamed"] {
        let scene = Scene::new(OwnerLoss::Kill).await;
        // Either this process or its background task fails; both are fine.
        assert!(scene.run("save forked kept go-on", &format!("{point}:error")).status.success());
        scene.assert_whole();
        let ids = guest::names(scene.home().join("snapshots"));
        let id = ids.iter().find(|id| **id != scene.base.as_str()).expect("was published");
        let snapshot = guest::open(scene.home(), &id.parse().expect("an id")).expect("is whole");
        let fork = guest::fork(&scene.lab.engine(), &snapshot).await;
        assert_noted(&fork, "kept", point).await;
        snapshot.seal().expect("seals");
    }
}

#[tokio::test]
async fn vm_whose_adoption_fails_is_unchanged() {
    let scene = Scene::new(OwnerLoss::KeepRunning).await;
    let id = scene.stopped("old").await;
    scene.kill_at("restore.running", &format!("resume {id}"));
    let vmm = vmms(scene.home());
    for point in ["adopt.connected", "adopt.resumed"] {
        let error = scene.fail_at(point, &format!("adopt {id}"));
        assert!(error.contains(point), "{error}");
        assert_eq!((scene.recover(), vmms(scene.home())), (Outcome::Adoptable, vmm.clone()), "{point}");
    }
    assert_noted(&scene.go_on(&id, &Outcome::Adoptable).await, "old", "after adoption").await;
}

#[tokio::test]
async fn vm_whose_recovery_fails_is_recovered_by_the_next_one() {
    let scene = Scene::new(OwnerLoss::Kill).await;
    let id = scene.stopped("old").await;
    scene.kill_at("restore.running", &format!("resume {id}"));
    for point in ["recover.killed", "recover.lost", "recover.decided"] {
        assert!(scene.run("recover", &format!("{point}:error")).status.success(), "{point}");
    }
    let outcome = scene.recover();
    assert!(matches!(&outcome, Outcome::Stopped { lost: Some(_), .. }), "{outcome:?}");
    assert_noted(&scene.go_on(&id, &outcome).await, "old", "after recovery").await;
}

//! Owners that end at a fail point. The test starts itself again as the owner of a VM, and checks what is left.
//!
//! ```text
//!   Scene ──KILN_FAILPOINT=point, an Act──▶ the same binary, its test `act` ──▶ SIGKILL, or an error and a normal end
//!     └── recover ──▶ outcome, VMMs, partial directories ──▶ resume or adopt, and ask the guest
//! ```

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use kiln_engine::failpoint::FAIL_POINT_VARIABLE;
use kiln_engine::home::Home;
use kiln_engine::link::GuestLink;
use kiln_engine::snapshot::{AfterSave, Snapshot, SnapshotError, SnapshotId};
use kiln_engine::{
    DiskFormat, Engine as _, Fork, ForkSpec, Outcome, OwnerLoss, QemuEngine, Recovered, Vm, VmId, VmSpec, recover,
};

use super::guest::{
    self, base, connect, disk, fork_as, is_held, make_disk, names, note, noted, save, start_process, vmms,
};
use super::{Lab, STEP_DEADLINE, helper_process, is_alive};

const HOME_VARIABLE: &str = "KILN_TEST_CRASH_HOME";
const ACT_VARIABLE: &str = "KILN_TEST_CRASH_ACT";
/// Printed by the other process before the error of its act.
const FAILED: &str = "the act failed: ";
/// The test in each binary that calls [`act`].
const ACT_TEST: &str = "act_in_another_process";

/// A home with the shared snapshot, and at most one VM. Its VMM is killed at the end.
pub struct Scene {
    pub lab: Lab,
    pub base: SnapshotId,
    policy: OwnerLoss,
}

impl Drop for Scene {
    fn drop(&mut self) {
        for pid in vmms(self.home()) {
            // The process has a file of this test's own directory open.
            drop(Command::new("kill").args(["-9", &pid.to_string()]).status());
        }
    }
}

impl Scene {
    pub async fn new(policy: OwnerLoss) -> Self {
        let lab = Lab::new();
        let base = base(lab.home()).await.id().clone();
        Self { lab, base, policy }
    }

    pub fn home(&self) -> &Utf8Path {
        self.lab.home()
    }

    /// A stopped fork whose guest has noted a word.
    pub async fn stopped(&self, word: &str) -> VmId {
        let base = guest::open(self.home(), &self.base).expect("is whole");
        let forks = ForkSpec { owner_loss: self.policy, ..ForkSpec::default() };
        let fork = fork_as(&self.lab.engine(), &base, forks).await;
        start_process(&fork.link).await;
        self.stop(fork, word).await.0
    }

    /// Stops a VM after its guest has noted a word.
    pub async fn stop(&self, fork: Fork, word: &str) -> (VmId, Snapshot) {
        note(&fork.link, word).await;
        let snapshot = save(&fork.vm, &fork.link, AfterSave::Stop).await.expect("is saved");
        (fork.vm.id().clone(), snapshot)
    }

    /// Runs this in another process with this fail point armed: `point`, `point:error` or nothing.
    pub fn run(&self, act: &str, point: &str) -> Output {
        let mut command = helper_process(ACT_TEST, HOME_VARIABLE, self.home().as_str());
        let policy = if self.policy == OwnerLoss::Kill { "kill" } else { "keep" };
        command.env(ACT_VARIABLE, format!("{policy} {} {act}", self.base));
        if !point.is_empty() {
            command.env(FAIL_POINT_VARIABLE, point);
        }
        command.output().expect("runs")
    }

    /// Kills the owner there.
    pub fn kill_at(&self, point: &str, act: &str) {
        let output = self.run(act, point);
        assert_eq!(output.status.signal(), Some(9), "`{act}` does not pass `{point}`: {output:?}");
    }

    /// Makes that step fail. Returns the error of the act, which does not end the other process.
    pub fn fail_at(&self, point: &str, act: &str) -> String {
        let output = self.run(act, &format!("{point}:error"));
        assert!(output.status.success(), "{point}: {output:?}");
        let words = String::from_utf8(output.stdout).expect("UTF-8");
        let error = words.lines().find_map(|line| line.strip_prefix(FAILED));
        error.unwrap_or_else(|| panic!("{point}: no error, but {words}")).to_owned()
    }

    /// Recovers twice, and returns the outcome of the one VM. Checks what holds in every case.
    pub fn recover(&self) -> Outcome {
        let home = Home::at(self.home());
        let recovered = recover(&home).expect("recovers");
        let [Recovered { id, outcome }] = &recovered[..] else { panic!("one VM, not {recovered:?}") };
        let again: Vec<_> = recover(&home).expect("recovers").into_iter().map(|recovered| recovered.outcome).collect();
        let (vmms, vms) = (vmms(self.home()), names(self.home().join("vms")));
        match outcome {
            Outcome::Removed => assert_eq!((vmms.len(), vms.len(), again), (0, 0, vec![])),
            Outcome::Adoptable => assert_eq!((vmms.len(), vms.len(), again), (1, 1, vec![outcome.clone()])),
            Outcome::Stopped { .. } | Outcome::Lost { .. } => {
                assert_eq!((vmms.len(), vms.len(), again), (0, 1, vec![outcome.clone()]));
                let files = names(self.home().join("vms").join(id.as_str()));
                assert!(!files.iter().any(|name| name == "memory" || name == "pid" || name.starts_with("disk")));
            }
        }
        self.assert_whole();
        outcome.clone()
    }

    /// Every snapshot is whole, and everything that is not whole is locked.
    pub fn assert_whole(&self) {
        let snapshots = self.home().join("snapshots");
        for name in names(snapshots.clone()) {
            let Ok(id) = name.parse::<SnapshotId>() else {
                assert_is_held_or_goes(&snapshots.join(&name));
                continue;
            };
            let found = guest::open(self.home(), &id).map(drop);
            // What a stopped VM does not need any more is removed in the background.
            assert!(matches!(found, Ok(()) | Err(SnapshotError::Unknown(_))), "{name}: {found:?}");
        }
    }

    /// Only the snapshot from the beginning is left.
    pub fn assert_empty(&self, point: &str) {
        assert_eq!(vmms(self.home()), [0; 0], "{point}");
        assert_eq!(names(self.home().join("vms")), [""; 0], "{point}");
        assert_eq!(names(self.home().join("snapshots")), [self.base.as_str()], "{point}");
    }

    /// Continues from the outcome of the recovery.
    pub async fn go_on(&self, id: &VmId, outcome: &Outcome) -> Fork {
        let engine = self.lab.engine();
        match outcome {
            Outcome::Stopped { .. } => engine.resume(id).await.expect("goes on"),
            Outcome::Adoptable => adopt(&engine, id).await,
            other => panic!("{other:?}"),
        }
    }
}

/// Adopts a VM whose guest may still be frozen.
async fn adopt(engine: &QemuEngine, id: &VmId) -> Fork {
    let vm = engine.adopt(id).await.expect("is adopted");
    let link = connect(&vm).await;
    link.thaw().await.expect("goes on");
    Fork { vm, link }
}

/// The act of the other process: `kill|keep BASE ACT …`. Ends with the error of the act, if it has one.
pub async fn act() {
    let home = Utf8PathBuf::from(std::env::var(HOME_VARIABLE).expect("started by another test"));
    let words = std::env::var(ACT_VARIABLE).expect("started by another test");
    let [policy, base, act @ ..] = &words.split(' ').collect::<Vec<_>>()[..] else { panic!("{words}") };
    let owner_loss = if *policy == "kill" { OwnerLoss::Kill } else { OwnerLoss::KeepRunning };
    let engine = QemuEngine::find(&home).expect("QEMU is installed");
    let base = guest::open(&home, &base.parse().expect("an id")).expect("is whole");
    let forks = ForkSpec { owner_loss, ..ForkSpec::default() };
    let id = |text: &str| text.parse::<VmId>().expect("an id");
    let outcome = match act {
        ["launch"] => {
            let path = home.join("disk.raw");
            make_disk(&path);
            let disks = vec![disk(&path, DiskFormat::Raw)];
            let launched = engine.launch(VmSpec { owner_loss, disks, ..guest::spec() }).await;
            launched.map(drop).map_err(|error| format!("{error:?}"))
        }
        ["fork"] => engine.restore(&base, forks).await.map(drop).map_err(|error| format!("{error:?}")),
        ["resume", vm] => engine.resume(&id(vm)).await.map(drop).map_err(|error| format!("{error:?}")),
        ["adopt", vm] => engine.adopt(&id(vm)).await.map(drop).map_err(|error| format!("{error:?}")),
        ["recover"] => recover(&Home::at(&home)).map(drop).map_err(|error| format!("{error:?}")),
        ["give", vm, word] => {
            let fork = adopt(&engine, &id(vm)).await;
            start_process(&fork.link).await;
            note(&fork.link, word).await;
            // Its VM outlives an owner that is killed, but not one that ends in order.
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
                .map_err(|error| error.to_string())
        }
        ["save", "forked", word, then] => {
            let fork = fork_as(&engine, &base, forks).await;
            start_process(&fork.link).await;
            save_after(&fork.vm, &fork.link, word, then).await
        }
        ["save", "resumed", vm, word, then] => {
            let fork = engine.resume(&id(vm)).await.expect("goes on");
            save_after(&fork.vm, &fork.link, word, then).await
        }
        ["save", "adopted", vm, before, word, then] => {
            let fork = adopt(&engine, &id(vm)).await;
            assert_noted(&fork, before, "as the owner before left it").await;
            save_after(&fork.vm, &fork.link, word, then).await
        }
        other => panic!("{other:?}"),
    };
    if let Err(error) = outcome {
        println!("\n{FAILED}{error}");
    }
}

/// Saves a VM after its guest has noted a word. If that fails, the VM continues, and saving fails in the same way
/// again.
async fn save_after(vm: &Vm, link: &GuestLink, word: &str, then: &str) -> Result<(), String> {
    note(link, word).await;
    let then = match then {
        "stop" => AfterSave::Stop,
        "end" => AfterSave::End,
        _ => AfterSave::GoOn,
    };
    let first = match save(vm, link, then).await {
        Ok(snapshot) => return snapshot.seal().map_err(|error| format!("{error:?}")),
        Err(error) => format!("{error:?}"),
    };
    if is_alive(vm.pid()) {
        assert_eq!(noted(link).await, [word; 3], "it goes on");
        vm.pause().await.expect("is paused");
        vm.resume().await.expect("is resumed");
        let second = save(vm, link, then).await.expect_err("fails again");
        assert_eq!(format!("{second:?}"), first);
    }
    Err(first)
}

/// What is not whole is locked, or is being removed: a save or a compaction in the background unlocks it just before.
fn assert_is_held_or_goes(partial: &Utf8Path) {
    let deadline = Instant::now() + STEP_DEADLINE;
    while partial.exists() && !is_held(partial) {
        assert!(Instant::now() < deadline, "no process holds `{partial}`");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The guest's three places agree on a word.
pub async fn assert_noted(fork: &Fork, word: &str, point: &str) {
    assert_eq!(noted(&fork.link).await, [word; 3], "{point}");
}

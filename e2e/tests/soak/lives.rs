//! One VM that is paused, saved, stopped, forked and resumed in random order, and keeps all its data.

use std::time::{Duration, Instant};

use kiln_e2e::guest::{BOOT_DEADLINE, shell};
use kiln_engine::home::Home;
use kiln_engine::image::{ImageStore, MINI};
use kiln_engine::link::GuestLink;
use kiln_engine::snapshot::{AfterSave, Snapshot, SnapshotRequest, SnapshotStore};
use kiln_engine::{Engine as _, Fork, ForkSpec, QemuEngine, ReadyRequest, VmSpec};

/// Steps after which a new VM is used, so that files don't fill it up.
const STEPS_OF_A_LIFE: u64 = 60;
const STEP_DEADLINE: Duration = Duration::from_secs(120);

/// The expected content of the guest's file: one line for each step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model(Vec<String>);

#[test]
fn soak_a_vm_that_is_saved_and_resumed_many_times_keeps_its_data() {
    let until = super::until();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    runtime.block_on(async {
        let home = Home::from_env().expect("KILN_HOME is set");
        let engine = QemuEngine::find(home.path()).expect("QEMU is installed");
        let store = SnapshotStore::new(&home);
        let (mut lives, mut steps, mut state) = (0_u64, 0_u64, 0x2545_f491_4f6c_dd1d_u64);
        println!("seed {state:#x}");
        while Instant::now() < until {
            let mut life = Life::begin(&engine, &store).await;
            for _ in 0..STEPS_OF_A_LIFE {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                tokio::time::timeout(STEP_DEADLINE, life.step(state)).await.expect("a step hangs");
                steps += 1;
                if Instant::now() >= until {
                    break;
                }
            }
            life.end().await;
            lives += 1;
        }
        println!("{lives} lives, {steps} steps");
    });
}

struct Life<'a> {
    engine: &'a QemuEngine,
    store: &'a SnapshotStore,
    fork: Fork,
    model: Model,
    /// The snapshots, and the content of the guest's file in each.
    saved: Vec<(Snapshot, Model)>,
}

impl<'a> Life<'a> {
    async fn begin(engine: &'a QemuEngine, store: &'a SnapshotStore) -> Self {
        let image = ImageStore::new(&Home::at(engine.home())).find_boot(MINI).expect("the image is built");
        let spec = VmSpec { cmdline: image.cmdline, ..VmSpec::new(image.kernel, image.initramfs) };
        let base = engine.ready(ReadyRequest::new(&spec, MINI, BOOT_DEADLINE)).await.expect("ready");
        let fork = restore(engine, &base).await;
        Self { engine, store, fork, model: Model::default(), saved: Vec::new() }
    }

    async fn step(&mut self, random: u64) {
        let line = format!("{random:016x}");
        let size = random % 3_000_000;
        let script = format!("echo {line} >> /root/lines; head -c {size} /dev/urandom > /root/noise; sync");
        text(&self.fork.link, &script).await;
        self.model.0.push(line);
        match random >> 32 & 7 {
            0 | 1 => self.save().await,
            2 => self.go_back(random).await,
            3 | 4 => self.stop_and_go_on().await,
            5 => {
                self.fork.vm.pause().await.expect("pauses");
                self.fork.vm.resume().await.expect("goes on");
            }
            6 => self.compact(random),
            _ => self.fork_beside().await,
        }
        assert_eq!(held(&self.fork.link).await, self.model);
    }

    async fn save(&mut self) {
        let request = SnapshotRequest { link: Some(&self.fork.link), then: AfterSave::GoOn, label: "soak".into() };
        let snapshot = self.fork.vm.snapshot(request).await.expect("saved");
        self.saved.push((snapshot, self.model.clone()));
    }

    async fn go_back(&mut self, random: u64) {
        if self.saved.is_empty() {
            return;
        }
        let (snapshot, model) = self.saved[random as usize % self.saved.len()].clone();
        self.fork = restore(self.engine, &snapshot).await;
        self.model = model;
    }

    async fn stop_and_go_on(&mut self) {
        let id = self.fork.vm.id().clone();
        let request = SnapshotRequest { link: Some(&self.fork.link), then: AfterSave::Stop, label: "soak".into() };
        self.fork.vm.snapshot(request).await.expect("stopped");
        self.fork = self.engine.resume(&id).await.expect("goes on");
    }

    fn compact(&self, random: u64) {
        if !self.saved.is_empty() {
            let (snapshot, _) = &self.saved[random as usize % self.saved.len()];
            snapshot.seal().expect("sealed");
            self.store.compact(snapshot.id()).expect("compacted");
        }
    }

    /// A fork of the last snapshot has the content of that snapshot, and its writes are its own.
    async fn fork_beside(&self) {
        let Some((snapshot, model)) = self.saved.last() else { return };
        let beside = restore(self.engine, snapshot).await;
        assert_eq!(held(&beside.link).await, *model);
        text(&beside.link, "echo beside >> /root/lines").await;
        beside.vm.kill().await;
    }

    async fn end(self) {
        self.fork.vm.kill().await;
        drop(self.saved);
        // Children before their parents. Snapshots in use stay for the next round.
        for _ in 0..STEPS_OF_A_LIFE {
            let soaked = self.store.list().expect("lists").into_iter();
            let ours: Vec<_> =
                soaked.filter(|one| one.manifest.as_ref().is_some_and(|it| it.label == "soak")).collect();
            if ours.is_empty() {
                return;
            }
            ours.iter().for_each(|one| drop(self.store.remove(&one.id)));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn restore(engine: &QemuEngine, snapshot: &Snapshot) -> Fork {
    engine.restore(snapshot, ForkSpec::default()).await.expect("restored").pop().expect("one")
}

async fn held(link: &GuestLink) -> Model {
    Model(text(link, "cat /root/lines 2>/dev/null || true").await.lines().map(str::to_owned).collect())
}

async fn text(link: &GuestLink, script: &str) -> String {
    let output = link.run(shell(script), b"", 16 << 20).await.expect("the script runs");
    assert_eq!(output.exited.status.shell_code(), 0, "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

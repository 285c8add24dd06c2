//! The steps of a proof, from a boot to the facts of every fork.
//!
//! ```text
//!   original ─save─▶ snapshot ─┬─▶ forks, at once ─▶ facts, marks ─▶ two of them ─save─▶ a child of each ─▶ facts
//!                              └─▶ one more, later ─▶ facts
//! ```
//! A signal does not interrupt a save: the snapshot that it makes must be known, so that it can be removed.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use kiln_engine::guest::Watch;
use kiln_engine::link::GuestLink;
use kiln_engine::snapshot::{AfterSave, Snapshot, SnapshotRequest};
use kiln_engine::{Engine as _, Fork, ForkSpec, Guest, QemuEngine, Vm, VmSpec};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::facts::{Facts, Seen};
use super::guest;
use super::kept::{Kept, LABEL};
use crate::engine_failure::{restore_failure, save_failure};
use crate::failure::{Failure, HOST, VM};
use crate::guest::boot_failure;
use crate::interrupt::Interrupts;
use crate::output::Progress;

/// Deadline of a cold boot on a busy host.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// Number of forks that are saved and forked again.
const PARENTS: usize = 2;

/// A running proof.
pub struct Proof<'a> {
    pub engine: Arc<QemuEngine>,
    pub spec: VmSpec,
    pub forks: usize,
    pub progress: &'a Progress,
    pub interrupts: &'a mut Interrupts,
    pub kept: &'a mut Kept,
    pub times: Times,
}

/// How long the steps took.
#[derive(Debug, Clone, Default)]
pub struct Times {
    pub boot: Duration,
    pub save: Duration,
    /// For each of the forks that were started at once, from the request to the VM with its own identity.
    pub forks: Vec<Duration>,
}

/// Why a proof ended early.
#[derive(Debug)]
pub enum Stop {
    Failed(Failure),
    /// A signal arrived; kiln exits with this code.
    Interrupted(u8),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Proof<'_> {
    /// Runs all steps. The VMs have been killed afterwards, but their processes may not have ended yet.
    pub async fn run(&mut self) -> Result<Seen, Stop> {
        let (original, snapshot) = self.original().await?;
        let beats = original.beats.len();
        let mut seen = Seen { original, ..Seen::default() };
        let parents = self.at_once(&snapshot, &mut seen).await?;
        self.progress.say("making a later fork");
        seen.later = self.one_more(&snapshot, "the later fork".into(), beats, &mut seen.silent).await?;
        for (place, fork) in parents {
            let parent = &seen.forks[place];
            self.progress.say(format!("saving {} and forking it", parent.who));
            let saved = self.save(&fork.vm, &fork.link).await?;
            let (who, beats) = (format!("the child of {}", parent.who), parent.beats.len());
            let child = self.one_more(&saved, who, beats, &mut seen.silent).await?;
            seen.children.extend(child.map(|child| (place, child)));
        }
        Ok(seen)
    }

    /// Boots, prepares and saves the VM that is forked.
    async fn original(&mut self) -> Result<(Facts, Snapshot), Stop> {
        self.progress.say("booting");
        let booted = Guest::start(&*self.engine, self.spec.clone(), BOOT_TIMEOUT, Watch::default());
        let booted = async { booted.await.map_err(|error| host_fails(boot_failure(error, BOOT_TIMEOUT))) };
        let original = unless(self.interrupts, booted).await?;
        self.times.boot = original.boot;
        self.progress.say("preparing the VM that will be saved");
        let prepared = async {
            let mut facts = guest::prepare(&original.link).await?;
            guest::freeze(&original.link, &mut facts).await?;
            anyhow::Ok(facts)
        };
        let prepared = async { prepared.await.map_err(|error| error.context("failed to prepare the VM")) };
        let facts = unless(self.interrupts, prepared).await?;
        self.progress.say("saving");
        let from = Instant::now();
        let snapshot = self.save(&original.vm, &original.link).await?;
        self.times.save = from.elapsed();
        Ok((facts, snapshot))
    }

    /// Starts forks at once, and reads the facts of each as soon as it runs. Returns the first of them, which keep
    /// running, with their indices.
    async fn at_once(&mut self, snapshot: &Snapshot, seen: &mut Seen) -> Result<Vec<(usize, Fork)>, Stop> {
        self.progress.say(format!("making {} forks", self.forks));
        let beats = seen.original.beats.len();
        let members = unless(self.interrupts, members(&self.engine, snapshot, self.forks, beats)).await?;
        let mut parents = Vec::new();
        for Member { who, made: Made { fork, took, .. }, facts } in members {
            self.times.forks.push(took);
            // Read only now that all of them have written their marks.
            let marks = unless(self.interrupts, async { Ok::<_, Failure>(guest::marks(&fork.link).await) }).await?;
            match facts.and_then(|facts| Ok(Facts { marks: marks?, ..facts })) {
                Ok(facts) => {
                    if parents.len() < PARENTS {
                        parents.push((seen.forks.len(), fork));
                    }
                    seen.forks.push(facts);
                }
                Err(why) => seen.silent.push((who, format!("{why:#}"))),
            }
        }
        Ok(parents)
    }

    /// Starts a fork and reads its facts; `None` if it does not answer.
    async fn one_more(
        &mut self,
        snapshot: &Snapshot,
        who: String,
        beats: usize,
        silent: &mut Vec<(String, String)>,
    ) -> Result<Option<Facts>, Stop> {
        let seen = async {
            let made = make(&self.engine, snapshot).await?;
            let facts = guest::see(&made.fork.link, who.clone(), made.asked, beats, None).await;
            made.fork.vm.kill().await;
            Ok::<_, Failure>(facts)
        };
        let facts = unless(self.interrupts, seen).await?;
        Ok(facts.map_err(|why| silent.push((who, format!("{why:#}")))).ok())
    }

    async fn save(&mut self, vm: &Vm, link: &GuestLink) -> Result<Snapshot, Failure> {
        let request = SnapshotRequest { link: Some(link), then: AfterSave::End, label: LABEL.into() };
        let snapshot = vm.snapshot(request).await.map_err(save_failure)?;
        self.kept.add(snapshot.clone());
        Ok(snapshot)
    }
}

/// A new fork.
struct Made {
    fork: Fork,
    /// When it was requested, by the host's clock, in nanoseconds since 1970.
    asked: i64,
    took: Duration,
}

/// One of the forks that were started at once, and its facts.
struct Member {
    who: String,
    made: Made,
    facts: anyhow::Result<Facts>,
}

/// Starts forks, as many at a time as [`QemuEngine`] does for one request. Reads the facts of each while others start,
/// since a busy host makes it hardest to set a clock exactly.
async fn members(
    engine: &Arc<QemuEngine>,
    snapshot: &Snapshot,
    count: usize,
    beats: usize,
) -> Result<Vec<Member>, Failure> {
    let at_once = Arc::new(Semaphore::new(2 * available_parallelism().map_or(1, NonZero::get)));
    let mut tasks = JoinSet::new();
    for number in 1..=count {
        let (engine, snapshot, at_once) = (Arc::clone(engine), snapshot.clone(), Arc::clone(&at_once));
        tasks.spawn(async move {
            let permit = at_once.acquire_owned().await;
            let made = make(&engine, &snapshot).await?;
            drop(permit);
            let (who, mark) = (format!("fork {number}"), made.fork.vm.id().to_string());
            let facts = guest::see(&made.fork.link, who.clone(), made.asked, beats, Some(mark)).await;
            Ok::<_, Failure>((number, Member { who, made, facts }))
        });
    }
    let mut members = BTreeMap::new();
    while let Some(joined) = tasks.join_next().await {
        let (number, member) = joined.expect("these tasks are not aborted and do not panic")?;
        members.insert(number, member);
    }
    Ok(members.into_values().collect())
}

async fn make(engine: &QemuEngine, snapshot: &Snapshot) -> Result<Made, Failure> {
    let (asked, from) = (guest::now_ns(), Instant::now());
    let mut forks = engine.restore(snapshot, ForkSpec::default()).await.map_err(restore_failure)?;
    let fork = forks.pop().expect("a restore of one fork returns one fork");
    Ok(Made { fork, asked, took: from.elapsed() })
}

/// Runs a step, unless a signal ends it.
async fn unless<T, E: Into<Failure>>(
    interrupts: &mut Interrupts,
    step: impl Future<Output = Result<T, E>>,
) -> Result<T, Stop> {
    tokio::select! {
        outcome = step => outcome.map_err(|error| Stop::Failed(error.into())),
        code = interrupts.any() => Err(Stop::Interrupted(code)),
    }
}

/// A guest that does not boot is a failure of this host.
fn host_fails(mut failure: Failure) -> Failure {
    if failure.code == VM {
        failure.code = HOST;
    }
    failure
}

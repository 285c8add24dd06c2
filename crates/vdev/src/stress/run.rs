//! One run: a probe, the clients, a probe again.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::client::{self, Tally, whole};
use super::cycle::{CycleKind, Surroundings};
use super::process::{ProcessFacts, peer};
use super::report::{Concurrency, Failure, ProcessReport, StressReport};
use crate::bench::Latency;
use crate::frontend::{Frontend, FrontendError, Options, Wish};
use crate::random::Random;

/// Clients at the same time at most.
pub(super) const CLIENTS_MAX: u32 = 256;
/// How long a second client waits to be served while there is a first one.
const TURN: Duration = Duration::from_millis(300);
/// How long the backend has to release what its last clients left.
const SETTLE: Duration = Duration::from_secs(2);

/// What is done to a backend.
#[derive(Debug, Clone)]
pub struct StressOptions {
    /// Its socket.
    pub socket: PathBuf,
    /// How patient each client is.
    pub session: Options,
    /// Clients at the same time.
    pub clients: u32,
    /// Cycles of each.
    pub cycles: u32,
    /// What chooses the cycles.
    pub seed: u64,
    /// Whether it is a disk, which is read from in whole sessions.
    pub disk: bool,
    /// What clients do; half of all cycles are whole sessions if those are among them.
    pub kinds: Vec<CycleKind>,
    /// How long all of it may take.
    pub time: Duration,
}

impl StressOptions {
    /// Ten clients, a thousand cycles each, ten minutes at most.
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            session: Options { timeout: Duration::from_secs(5), ..Options::default() },
            clients: 10,
            cycles: 1000,
            seed: Random::fresh_seed(),
            disk: true,
            kinds: CycleKind::ALL.to_vec(),
            time: Duration::from_secs(600),
        }
    }
}

/// Sends clients at a backend. When `stop` is set, what was done until then is reported.
///
/// # Errors
/// If the backend does not even answer the first, well-behaved client.
pub fn run(options: &StressOptions, stop: &AtomicBool) -> Result<StressReport, FrontendError> {
    let started = Instant::now();
    let (pid, concurrency) = first_look(options)?;
    let before = pid.and_then(quiet);
    let clients = options.clients.clamp(1, CLIENTS_MAX);
    let tally = run_clients(options, clients, started + options.time, stop);
    let dead = probe(options).err().map(|error| whole(&error));
    let process = pid.zip(before).map(|(pid, before)| ProcessReport { pid, before, after: settled(pid, before) });
    Ok(StressReport {
        socket: options.socket.display().to_string(),
        seed: options.seed,
        clients,
        cycles: options.cycles,
        seconds: started.elapsed().as_secs_f64(),
        concurrency,
        kinds: tally.kinds.to_vec(),
        handshake: Latency::from(&tally.handshake),
        failures: tally.failures,
        process,
        dead,
        stopped: !tally.finished || stop.load(Ordering::Relaxed),
    })
}

fn run_clients(options: &StressOptions, clients: u32, deadline: Instant, stop: &AtomicBool) -> Tally {
    let surroundings =
        Surroundings { socket: &options.socket, session: &options.session, disk: options.disk, kinds: &options.kinds };
    let (surroundings, cycles, seed) = (&surroundings, options.cycles, options.seed);
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|client| {
                let work = move || client::run(surroundings, (client, cycles), seed, deadline, stop);
                (client, std::thread::Builder::new().spawn_scoped(scope, work))
            })
            .collect();
        for (client, thread) in threads {
            match thread {
                Ok(thread) => tally.add(thread.join().expect("a client does not panic")),
                Err(error) => {
                    tally.finished = false;
                    let kind = CycleKind::Session;
                    let error = format!("the client did not start: {error}");
                    tally.failures.push(Failure { client, cycle: 0, kind, error });
                }
            }
        }
    });
    tally
}

/// Who the backend is, and what it does with a second client while there is a first one.
fn first_look(options: &StressOptions) -> Result<(Option<u32>, Concurrency), FrontendError> {
    let mut first = Frontend::connect(&options.socket, &options.session)?;
    first.get_features()?;
    let pid = peer(first.channel());
    let quick = Options { timeout: TURN, ..options.session.clone() };
    let second = Frontend::connect(&options.socket, &quick).and_then(|mut second| second.get_features());
    let concurrency = match second {
        Ok(_) => Concurrency::Many,
        Err(error) if error.is_timeout() => Concurrency::OneOthersWait,
        Err(_) => Concurrency::OneOthersRefused,
    };
    drop(first);
    Ok((pid, concurrency))
}

/// A client that keeps all the rules, on a backend that has all of them behind it.
fn probe(options: &StressOptions) -> Result<(), FrontendError> {
    let deadline = Instant::now() + options.session.timeout;
    loop {
        let answered = Frontend::connect(&options.socket, &options.session)
            .and_then(|mut frontend| frontend.handshake(&Wish::default()));
        match answered {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// What the process holds when that does not change any more.
fn quiet(pid: u32) -> Option<ProcessFacts> {
    let deadline = Instant::now() + SETTLE;
    let mut facts = ProcessFacts::of(pid)?;
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let now = ProcessFacts::of(pid)?;
        if now == facts || Instant::now() >= deadline {
            return Some(now);
        }
        facts = now;
    }
}

/// What the process holds after it has released its last clients, or after the time for that is over.
fn settled(pid: u32, before: ProcessFacts) -> Option<ProcessFacts> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let facts = ProcessFacts::of(pid)?;
        if facts.fds <= before.fds || Instant::now() >= deadline {
            return Some(facts);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

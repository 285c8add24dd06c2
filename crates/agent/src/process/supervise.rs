//! Watches one command until it is over: output to a sink, input from an inbox, limits, the drain, the end.
//!
//! ```text
//!   running ──▶ exited, output open ──▶ over
//!      │           (drain: 200 ms, then whoever holds the pipes is killed)
//!      ├─ limit of time: SIGTERM, and after the grace everything is killed, then as above
//!      └─ cancel, link loss: everything is killed, then as above
//! ```

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use kiln_wire::{Channel, Exited, HEADER_BYTES};
use rustix::io::Errno;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::commands::Commands;
use super::input_end::InputEnd;
use super::job::Job;
use super::reaper::Exit;
use super::stdio::Source;
use crate::link::{CHUNK_BYTES, Control, End, Gone, Inbox, Outlet};
use crate::relay::{self, ShortRead};
use crate::watched::Watched;

/// How long output may go on after the command's end.
const DRAIN: Duration = Duration::from_millis(200);
/// How long the kernel may take to end a command that was killed.
const DEATH_DEADLINE: Duration = Duration::from_secs(10);
/// First and shortest wait between two looks at the CPU time used.
const CPU_POLL_MIN: Duration = Duration::from_millis(10);
/// Longest wait between two looks.
const CPU_POLL_MAX: Duration = Duration::from_millis(250);

/// Where output goes.
pub trait Sink {
    /// Waits until output may be taken and says how much, at least 1.
    fn room(&self) -> impl Future<Output = Result<usize, Gone>>;
    /// Takes output: `frame` holds [`HEADER_BYTES`] of room and then the bytes, and is left with the room alone.
    fn put(&self, channel: Channel, frame: &mut Vec<u8>);
}

impl Sink for Outlet {
    async fn room(&self) -> Result<usize, Gone> {
        Self::room(self).await
    }

    fn put(&self, channel: Channel, frame: &mut Vec<u8>) {
        self.data(channel, frame);
    }
}

/// How the watch ended.
#[derive(Debug)]
pub enum Outcome {
    /// The command is over.
    Exited(Exited),
    /// It was killed because of this.
    Ended(End, Exited),
}

/// Watches `job` to its end.
pub async fn supervise(mut job: Job, inbox: &Inbox, sink: &impl Sink) -> Outcome {
    let mut status = pin!(job.status.take().expect("a job is watched once"));
    let mut watch = Watch::new(&mut job);
    let mut end = None;
    while !watch.is_over() {
        let deadline = watch.deadline();
        tokio::select! {
            biased;
            control = inbox.control(), if end.is_none() => match control {
                Control::Signal(signal) => watch.job.signal(signal),
                Control::Resize(size) => watch.job.ends.terminal.iter().for_each(|terminal| terminal.resize(size)),
                Control::End(reason) => {
                    end = Some(reason);
                    watch.give_up();
                }
            },
            exit = &mut status, if watch.exit.is_none() => watch.exited(exit.ok()),
            read = pump(&watch.outputs, &watch.job.commands, watch.dropping, sink), if !watch.outputs.is_empty() => {
                watch.output(read, sink);
            }
            fed = feed(watch.stdin.as_deref(), inbox), if end.is_none() => watch.fed(&fed, inbox),
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => watch.tick(),
        }
    }
    let exited = watch.report();
    match end {
        Some(reason) => Outcome::Ended(reason, exited),
        None => Outcome::Exited(exited),
    }
}

struct Watch<'a> {
    job: &'a mut Job,
    stdin: Option<Rc<Watched>>,
    /// On a terminal, once the host's input has ended.
    input_end: Option<InputEnd>,
    outputs: Vec<Pump>,
    exit: Option<Exit>,
    /// The exit was waited for in vain.
    lost: bool,
    killed_at: Option<Instant>,
    /// Its time is up and it was asked to end; then it is killed.
    grace_until: Option<Instant>,
    drain_until: Option<Instant>,
    wall_until: Option<Instant>,
    cpu_look_at: Option<Instant>,
    output_left: u64,
    /// Output over the limit is read and dropped.
    dropping: bool,
    timed_out: bool,
    truncated: bool,
    pipes_held: bool,
}

/// One output of the command.
struct Pump {
    channel: Channel,
    source: Source,
    /// What was in the pipe when the command ended and has to be passed on however long it takes.
    owed: u64,
}

/// What a read brought; the bytes are in the agent's scratch buffer.
struct Chunk {
    /// Which output.
    index: usize,
    /// How many bytes, 0 at the end.
    result: Result<usize, Errno>,
}

impl<'a> Watch<'a> {
    fn new(job: &'a mut Job) -> Self {
        let started = Instant::from_std(job.started);
        let pump = |(channel, source)| Pump { channel, source, owed: 0 };
        Self {
            stdin: job.ends.stdin.take(),
            input_end: None,
            outputs: std::mem::take(&mut job.ends.outputs).into_iter().map(pump).collect(),
            exit: None,
            lost: false,
            killed_at: None,
            grace_until: None,
            drain_until: None,
            wall_until: job.limits.wall_ms.and_then(|ms| started.checked_add(Duration::from_millis(ms))),
            cpu_look_at: job.limits.cpu_ms.map(|ms| started + Duration::from_millis(ms).min(CPU_POLL_MIN)),
            output_left: job.limits.output_bytes.unwrap_or(u64::MAX),
            dropping: job.limits.output_bytes == Some(0),
            timed_out: false,
            truncated: false,
            pipes_held: false,
            job,
        }
    }

    fn is_over(&self) -> bool {
        self.lost || (self.exit.is_some() && self.outputs.is_empty())
    }

    fn deadline(&self) -> Option<Instant> {
        let death = self.killed_at.filter(|_| self.exit.is_none()).map(|at| at + DEATH_DEADLINE);
        let drain = self.drain_until.filter(|_| self.outputs.iter().any(|pump| pump.owed == 0));
        let limits = match self.grace_until {
            // They bound a command that runs. A deadline that has passed and that nothing answers would spin.
            _ if self.killed_at.is_some() || self.exit.is_some() => [None; 2],
            Some(until) => [Some(until), None],
            None => [self.wall_until, self.cpu_look_at],
        };
        let input_end = self.input_end.as_ref().map(InputEnd::look_at);
        [death, drain, input_end].into_iter().chain(limits).flatten().min()
    }

    /// A deadline passed.
    fn tick(&mut self) {
        let now = Instant::now();
        if self.killed_at.is_some_and(|at| now >= at + DEATH_DEADLINE) && self.exit.is_none() {
            crate::log::note(format!("process {} does not die", self.job.pid));
            self.lost = true;
        }
        if self.drain_until.is_some_and(|until| now >= until) {
            let before = self.outputs.len();
            self.outputs.retain(|pump| pump.owed > 0);
            self.pipes_held |= self.outputs.len() < before;
        }
        if let Some(end) = self.input_end.as_mut().filter(|end| now >= end.look_at()) {
            end.look();
        }
        if self.killed_at.is_some() || self.exit.is_some() {
            return;
        }
        if let Some(until) = self.grace_until {
            if now >= until {
                self.kill();
            }
        } else if self.wall_until.is_some_and(|until| now >= until) {
            self.time_out();
        } else if self.cpu_look_at.is_some_and(|at| now >= at) {
            let allowed = Duration::from_millis(self.job.limits.cpu_ms.unwrap_or(u64::MAX));
            match allowed.checked_sub(self.job.cpu_used()).filter(|left| !left.is_zero()) {
                None => self.time_out(),
                // No sooner than all CPUs together could use up what is left.
                Some(left) => {
                    let wait = (left / self.job.commands.cpus()).clamp(CPU_POLL_MIN, CPU_POLL_MAX);
                    self.cpu_look_at = Some(now + wait);
                }
            }
        }
    }

    fn time_out(&mut self) {
        self.timed_out = true;
        let grace = Duration::from_millis(self.job.limits.grace_ms.unwrap_or(0));
        match Instant::now().checked_add(grace) {
            Some(until) if !grace.is_zero() => {
                self.grace_until = Some(until);
                self.job.terminate();
            }
            // A grace without end would be no limit.
            _ => self.kill(),
        }
    }

    fn kill(&mut self) {
        self.killed_at = Some(Instant::now());
        self.job.kill();
    }

    /// Nobody wants the command any more.
    fn give_up(&mut self) {
        self.outputs.clear();
        self.stdin = None;
        self.input_end = None;
        self.killed_at.get_or_insert_with(Instant::now);
        self.job.kill();
    }

    fn exited(&mut self, exit: Option<Exit>) {
        let Some(exit) = exit else {
            self.lost = true;
            return;
        };
        self.exit = Some(exit);
        self.stdin = None;
        self.input_end = None;
        self.drain_until = Some(Instant::now() + DRAIN);
        for pump in &mut self.outputs {
            pump.owed = rustix::io::ioctl_fionread(&pump.source).unwrap_or(0);
            if let Source::Terminal(terminal) = &pump.source {
                terminal.finish();
            }
        }
    }

    /// Passes one chunk on.
    fn output(&mut self, chunk: Result<Chunk, Gone>, sink: &impl Sink) {
        let Ok(chunk) = chunk else {
            // The link's end comes through the inbox; until then nobody wants this.
            self.dropping = true;
            return;
        };
        let Ok(count @ 1..) = chunk.result else {
            self.outputs.remove(chunk.index);
            // A terminal that nobody has open any more is read by nobody, and stays closed.
            self.input_end = None;
            return;
        };
        let pump = &mut self.outputs[chunk.index];
        let count = count as u64;
        pump.owed = pump.owed.saturating_sub(count);
        let mut scratch = self.job.commands.scratch();
        if self.dropping || count > self.output_left {
            self.truncated = true;
            self.dropping = true;
            let keep = usize::try_from(self.output_left.min(count)).unwrap_or(CHUNK_BYTES);
            scratch.truncate(HEADER_BYTES + keep);
            self.output_left = 0;
        } else {
            self.output_left -= count;
        }
        if scratch.len() > HEADER_BYTES {
            sink.put(pump.channel, &mut scratch);
        }
        scratch.truncate(HEADER_BYTES);
    }

    fn fed(&mut self, fed: &io::Result<()>, inbox: &Inbox) {
        let Some(stdin) = &self.stdin else {
            inbox.discard();
            return;
        };
        for pump in &self.outputs {
            if let Source::Terminal(terminal) = &pump.source {
                // It is echoed, or answered.
                terminal.hurry();
            }
        }
        match fed {
            Ok(()) if inbox.is_drained() => {
                self.input_end = self.job.ends.terminal.as_ref().map(|_| InputEnd::of(Rc::clone(stdin)));
                self.stdin = None;
            }
            Ok(()) => {}
            // The command closed its stdin: what still comes is nobody's.
            Err(_) => self.stdin = None,
        }
    }

    fn report(&mut self) -> Exited {
        let wall = self.exit.map_or_else(|| self.job.started.elapsed(), |exit| exit.at - self.job.started);
        let exit = self.exit;
        let status = exit.map_or(kiln_wire::ExitStatus::Signal(libc::SIGKILL), |exit| exit.status);
        let killed = status == kiln_wire::ExitStatus::Signal(libc::SIGKILL);
        let cpu_signal = status == kiln_wire::ExitStatus::Signal(libc::SIGXCPU);
        Exited {
            status,
            wall_us: micros(wall),
            user_us: exit.map_or(0, |exit| micros(exit.user)),
            sys_us: exit.map_or(0, |exit| micros(exit.sys)),
            max_rss_bytes: exit.map_or(0, |exit| exit.max_rss_bytes),
            oom_killed: killed && !self.timed_out && self.job.group.as_ref().is_some_and(|group| group.oom_killed()),
            timed_out: self.timed_out || (cpu_signal && self.job.limits.cpu_ms.is_some()),
            truncated: self.truncated,
            pipes_held: self.pipes_held,
        }
    }
}

/// Waits until the sink has room and an output something to say, and reads it.
async fn pump(outputs: &[Pump], commands: &Commands, dropping: bool, sink: &impl Sink) -> Result<Chunk, Gone> {
    let room = if dropping {
        // What is dropped is bounded by nothing else, so others get their turn between two reads.
        yield_now().await;
        CHUNK_BYTES
    } else {
        sink.room().await?.min(CHUNK_BYTES)
    };
    let poll = |context: &mut Context<'_>| {
        for (index, pump) in outputs.iter().enumerate() {
            if let Poll::Ready(result) = pump.poll_read(context, &mut commands.scratch(), room) {
                return Poll::Ready(Chunk { index, result });
            }
        }
        Poll::Pending
    };
    Ok(poll_fn(poll).await)
}

impl Pump {
    fn poll_read(&self, context: &mut Context<'_>, frame: &mut Vec<u8>, room: usize) -> Poll<Result<usize, Errno>> {
        match &self.source {
            Source::Pipe(pipe) => relay::poll_read(pipe, context, frame, room, ShortRead::Empties),
            Source::Terminal(terminal) => terminal.poll_read(context, frame, room),
        }
    }
}

/// Waits until there is input, or its end, and passes on what the command takes.
async fn feed(stdin: Option<&Watched>, inbox: &Inbox) -> io::Result<()> {
    match stdin {
        Some(stdin) => relay::feed(stdin, inbox).await,
        None => {
            inbox.unwanted_input().await;
            Ok(())
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

//! Supervises one command to its end: copies output to a sink and input from an inbox, enforces limits, and reports the
//! exit.
//!
//! ```text
//!   running ──▶ exited, output open ──▶ over
//!      │           (drain: 200 ms, then processes that hold the pipes are killed)
//!      ├─ time limit: SIGTERM or the request's signal, and after the grace all processes are killed, then as above
//!      └─ cancel, link loss: all processes are killed, then as above
//! ```
//!
//! Output can stay open after the command has exited, because a background process inherited it. So the exit alone is
//! not the end: the bytes that were in the pipe at the exit (`owed`) are always forwarded, and after the drain the
//! output is closed. Otherwise a daemon that a command starts would keep its stream open forever.

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

/// How long output may stay open after the command has exited.
const DRAIN: Duration = Duration::from_millis(200);
/// How long a command may take to exit after it was killed.
const DEATH_DEADLINE: Duration = Duration::from_secs(10);
/// First and shortest wait between two checks of the CPU time.
const CPU_POLL_MIN: Duration = Duration::from_millis(10);
/// Longest wait between two checks.
const CPU_POLL_MAX: Duration = Duration::from_millis(250);

/// The target of output.
pub trait Sink {
    /// Waits until the sink can take output. Returns the number of bytes, at least 1.
    fn room(&self) -> impl Future<Output = Result<usize, Gone>>;
    /// Takes output. `frame` has [`HEADER_BYTES`] of space and then the bytes. It is left with only the space.
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

/// How a command ended.
#[derive(Debug)]
pub enum Outcome {
    /// It exited, on its own or because of a limit.
    Exited(Exited),
    /// It was killed for this reason.
    Ended(End, Exited),
}

/// Supervises `job` to its end.
pub async fn supervise(mut job: Job, inbox: &Inbox, sink: &impl Sink) -> Outcome {
    let mut status = pin!(job.status.take().expect("a job is supervised once"));
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
    /// On a terminal, after the host's input has ended.
    input_end: Option<InputEnd>,
    outputs: Vec<Pump>,
    exit: Option<Exit>,
    /// The exit will not be known: the process doesn't exit, or the reaper is gone.
    lost: bool,
    killed_at: Option<Instant>,
    /// The time limit is reached and the signal was sent. At this time the command is killed.
    grace_until: Option<Instant>,
    drain_until: Option<Instant>,
    wall_until: Option<Instant>,
    cpu_check_at: Option<Instant>,
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
    /// Bytes that were in the pipe when the command exited. They are forwarded without a time limit.
    owed: u64,
}

/// The result of a read. The bytes are in the agent's scratch buffer.
struct Chunk {
    /// Index of the output.
    index: usize,
    /// The number of bytes, 0 at the end.
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
            cpu_check_at: job.limits.cpu_ms.map(|ms| started + Duration::from_millis(ms).min(CPU_POLL_MIN)),
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
            // Limits apply to a running command. `tick` ignores them afterwards, so a deadline in the past would make
            // the loop spin.
            _ if self.killed_at.is_some() || self.exit.is_some() => [None; 2],
            Some(until) => [Some(until), None],
            None => [self.wall_until, self.cpu_check_at],
        };
        let input_end = self.input_end.as_ref().map(InputEnd::check_at);
        [death, drain, input_end].into_iter().chain(limits).flatten().min()
    }

    /// Handles deadlines that have passed.
    fn tick(&mut self) {
        let now = Instant::now();
        if self.killed_at.is_some_and(|at| now >= at + DEATH_DEADLINE) && self.exit.is_none() {
            crate::log::note(format!("process {} did not exit after SIGKILL", self.job.pid));
            self.lost = true;
        }
        if self.drain_until.is_some_and(|until| now >= until) {
            let before = self.outputs.len();
            self.outputs.retain(|pump| pump.owed > 0);
            self.pipes_held |= self.outputs.len() < before;
        }
        if let Some(end) = self.input_end.as_mut().filter(|end| now >= end.check_at()) {
            end.check();
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
        } else if self.cpu_check_at.is_some_and(|at| now >= at) {
            let allowed = Duration::from_millis(self.job.limits.cpu_ms.unwrap_or(u64::MAX));
            match allowed.checked_sub(self.job.cpu_used()).filter(|left| !left.is_zero()) {
                None => self.time_out(),
                // The rest can't be used up before all CPUs together have spent it, so there is no earlier check.
                Some(left) => {
                    let wait = (left / self.job.commands.cpus()).clamp(CPU_POLL_MIN, CPU_POLL_MAX);
                    self.cpu_check_at = Some(now + wait);
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
            // No grace, or one that exceeds the clock's range, which would disable the limit.
            _ => self.kill(),
        }
    }

    fn kill(&mut self) {
        self.killed_at = Some(Instant::now());
        self.job.kill();
    }

    /// Kills the command because its stream has ended. Its output is not needed.
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

    /// Forwards one chunk to the sink.
    fn output(&mut self, chunk: Result<Chunk, Gone>, sink: &impl Sink) {
        let Ok(chunk) = chunk else {
            // The link has ended. The inbox will deliver that end; until then output is dropped.
            self.dropping = true;
            return;
        };
        let Ok(count @ 1..) = chunk.result else {
            self.outputs.remove(chunk.index);
            // The terminal's end means that no process has it open, so no process will read input.
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
                // The terminal echoes the input or the command replies to it, and that output must not wait.
                terminal.hurry();
            }
        }
        match fed {
            Ok(()) if inbox.is_drained() => {
                self.input_end = self.job.ends.terminal.as_ref().map(|_| InputEnd::of(Rc::clone(stdin)));
                self.stdin = None;
            }
            Ok(()) => {}
            // The command has closed its stdin. The rest of the input is discarded.
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

/// Waits until the sink has room and an output has data, and reads it.
async fn pump(outputs: &[Pump], commands: &Commands, dropping: bool, sink: &impl Sink) -> Result<Chunk, Gone> {
    let room = if dropping {
        // Dropped output isn't bounded by a window, so the task must yield to others between two reads.
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

/// Waits for input or its end, and writes as much as the command accepts.
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

//! Takes the place of a VMM's monitor: sends signals to the agent and to all its descendants.
//!
//! Processes are stopped from the agent downwards. While a parent is stopped, it starts no processes and reaps none, so
//! the pids of its children can't be reused while they are looked up. A process whose parent has ended becomes a child
//! of the agent, which adopts orphans.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::sync::mpsc;

use crate::process::Killer;
use crate::vm::{BoxFuture, ExitReason, Monitor, MonitorEvent, MonitorEvents, VmmError};

/// Events that may wait for the owner. Each pause, resume and end is one.
const EVENT_QUEUE: usize = 16;
/// Pause between two checks whether a process is stopped. Only its parent can wait for that.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// Processes of one guest that are followed. A test that needs more should not use this engine.
const PROCESSES_MAX: usize = 1024;

/// Pauses a fake guest, and ends it.
#[derive(Debug)]
pub(super) struct FakeMonitor {
    agent: u32,
    killer: Killer,
    events: mpsc::Sender<MonitorEvent>,
    /// Whether this monitor has stopped it. If anything else has stopped the agent, it counts as halted.
    paused: AtomicBool,
}

/// The guest's events.
#[derive(Debug)]
pub(super) struct FakeEvents {
    events: mpsc::Receiver<MonitorEvent>,
    agent: Killer,
}

impl FakeMonitor {
    /// A monitor for the agent with this pid.
    pub(super) fn new(agent: u32, killer: Killer) -> (Self, FakeEvents) {
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let reported = FakeEvents { events: receiver, agent: killer.clone() };
        // If the agent is already stopped, a previous owner has paused it.
        let paused = AtomicBool::new(state(agent).is_ok_and(|state| state == Some(STOPPED)));
        (Self { agent, killer, events, paused }, reported)
    }

    async fn send(&self, event: MonitorEvent) {
        // This fails if the owner has ended. Then there is no receiver.
        drop(self.events.send(event).await);
    }

    fn agent_state(&self) -> Result<char, VmmError> {
        let state = state(self.agent).map_err(|error| VmmError::Closed { reason: error.to_string() })?;
        state.ok_or_else(|| VmmError::Closed { reason: "the agent has ended".into() })
    }

    /// Stops or continues the agent and all its descendants, from the top down.
    async fn signal(&self, signal: Signal, deadline: Duration) -> Result<(), VmmError> {
        let until = Instant::now() + deadline;
        let command = if signal == Signal::STOP { "stop" } else { "continue" };
        let mut waiting = vec![self.agent];
        let mut seen = 0;
        while let Some(pid) = waiting.pop() {
            seen += 1;
            if seen > PROCESSES_MAX {
                let description = format!("the guest has more than {PROCESSES_MAX} processes");
                return Err(VmmError::Refused { command: command.into(), description });
            }
            let refused =
                |error: io::Error| VmmError::Refused { command: command.into(), description: error.to_string() };
            let Some(process) = open(pid).map_err(refused)? else { continue };
            // Children are listed while their parent is stopped: before it continues, or after it stopped.
            if signal == Signal::CONT {
                waiting.extend(children(pid).map_err(refused)?);
            }
            match rustix::process::pidfd_send_signal(process.as_fd(), signal) {
                Ok(()) => {}
                Err(rustix::io::Errno::SRCH) => continue,
                Err(error) => return Err(refused(error.into())),
            }
            if signal == Signal::STOP {
                while !is_stopped_or_gone(pid).map_err(refused)? {
                    if Instant::now() >= until {
                        return Err(VmmError::Deadline { command: command.into(), waited: deadline });
                    }
                    tokio::time::sleep(LOOK_PAUSE).await;
                }
                waiting.extend(children(pid).map_err(refused)?);
            }
        }
        Ok(())
    }
}

impl Monitor for FakeMonitor {
    fn pause(&self, deadline: Duration) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async move {
            self.paused.store(true, Ordering::Release);
            if let Err(error) = self.signal(Signal::STOP, deadline).await {
                // Continues the processes that are stopped already: a guest is paused as a whole or not at all.
                drop(self.signal(Signal::CONT, deadline).await);
                self.paused.store(false, Ordering::Release);
                return Err(error);
            }
            self.send(MonitorEvent::Paused).await;
            Ok(())
        })
    }

    fn resume(&self, deadline: Duration) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async move {
            self.signal(Signal::CONT, deadline).await?;
            self.paused.store(false, Ordering::Release);
            self.send(MonitorEvent::Resumed).await;
            Ok(())
        })
    }

    fn power_down(&self, _: Duration) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async move {
            // A process can't distinguish a requested end from any other.
            self.send(MonitorEvent::Ended(ExitReason::Killed)).await;
            self.killer.signal(Signal::TERM);
            // A stopped process gets the signal only when it continues.
            self.killer.signal(Signal::CONT);
            Ok(())
        })
    }

    fn is_running(&self, _: Duration) -> BoxFuture<'_, Result<bool, VmmError>> {
        Box::pin(async move {
            self.agent_state()?;
            Ok(!self.paused.load(Ordering::Acquire))
        })
    }

    fn is_halted(&self, _: Duration) -> BoxFuture<'_, Result<bool, VmmError>> {
        Box::pin(async move { Ok(self.agent_state()? == STOPPED && !self.paused.load(Ordering::Acquire)) })
    }
}

impl MonitorEvents for FakeEvents {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<MonitorEvent>> {
        match self.events.poll_recv(context) {
            // The monitor lives as long as the owner, so the end of its channel does not mean that no event follows.
            Poll::Pending if self.agent.has_ended() => Poll::Ready(None),
            other => other,
        }
    }
}

/// proc(5) `stat` of a stopped process.
const STOPPED: char = 'T';

/// Whether a process is stopped or gone.
fn is_stopped_or_gone(pid: u32) -> io::Result<bool> {
    Ok(state(pid)?.is_none_or(|state| matches!(state, STOPPED | 'Z' | 'X')))
}

fn state(pid: u32) -> io::Result<Option<char>> {
    let stat = match fs_err::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    // The name before it may hold anything, parentheses too.
    Ok(stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()))
}

/// The processes that any thread of a process has started and not reaped.
fn children(pid: u32) -> io::Result<Vec<u32>> {
    let threads = match fs_err::read_dir(format!("/proc/{pid}/task")) {
        Ok(threads) => threads,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for thread in threads {
        match fs_err::read_to_string(thread?.path().join("children")) {
            Ok(line) => found.extend(line.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok())),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn open(pid: u32) -> io::Result<Option<OwnedFd>> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => Ok(Some(process)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

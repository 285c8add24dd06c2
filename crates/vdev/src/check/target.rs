//! The backend that is checked: one that runs already, or one that a command starts.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;

use super::outcome::{Outcome, Stop};
use super::process::{END_TIMEOUT, Process, SpawnCommand, end_words, has_gone, wait_until};
use crate::protocol::Empty;
use crate::protocol::frontend::GetFeatures;
use crate::socket::{Channel, SocketError, unreachable};

/// A crash is seen as a closed connection first; the end of the process follows within this time.
const END_FOLLOWS: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_millis(1);

/// The backend that is checked.
#[derive(Debug)]
pub struct Target {
    command: Option<SpawnCommand>,
    socket: Option<PathBuf>,
    timeout: Duration,
    /// How long the first answer on a connection may take: it includes the time until the connection is accepted.
    patience: Duration,
    /// How long the backend needs after a client has left until it serves the next.
    pause: Duration,
    process: Option<Process>,
    /// The process at the other end of the socket, from the system, if we have not started it.
    peer: Option<u32>,
    /// Connections to this backend so far.
    clients: u32,
    /// Connections that were refused or closed before they were served.
    refused: u32,
    /// How long a backend has to end after `SIGTERM`. One that ignored it once is killed at once from then on.
    grace: Duration,
    /// Whether its process ends when its client leaves, so that this is no crash.
    pub ends_with_client: bool,
    /// Whether the case that runs ends it on purpose.
    end_is_expected: bool,
}

impl Target {
    /// A backend at a socket, or one that a command starts.
    pub(super) const fn new(command: Option<SpawnCommand>, socket: Option<PathBuf>, timeout: Duration) -> Self {
        Self {
            command,
            socket,
            timeout,
            patience: timeout,
            pause: Duration::ZERO,
            process: None,
            peer: None,
            clients: 0,
            refused: 0,
            grace: END_TIMEOUT,
            ends_with_client: false,
            end_is_expected: false,
        }
    }

    /// Another backend of the same kind, which is not started yet. `socket` is its socket, if that was given.
    pub(super) fn another(&self, socket: Option<PathBuf>) -> Self {
        let Self { patience, pause, grace, ends_with_client, .. } = *self;
        Self { patience, pause, grace, ends_with_client, ..Self::new(self.command.clone(), socket, self.timeout) }
    }

    /// Its socket, if that was given.
    pub(super) fn own_socket(&self) -> Option<PathBuf> {
        self.socket.clone()
    }

    /// The longest that anything is waited for.
    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether it is started by us.
    pub(super) const fn is_spawned(&self) -> bool {
        self.command.is_some()
    }

    /// The command that starts it.
    pub(super) const fn command(&self) -> Option<&SpawnCommand> {
        self.command.as_ref()
    }

    /// Why the socket can't be connected to, if that is certain without trying.
    pub(super) fn unreachable(&self) -> Option<SocketError> {
        unreachable(self.socket.as_deref()?, self.is_spawned())
    }

    /// Starts a fresh backend, if there is a command.
    ///
    /// # Errors
    /// If it can't be started.
    pub(super) fn start(&mut self) -> io::Result<()> {
        self.stop();
        if let Some(command) = &self.command {
            self.process = Some(Process::start(command, self.socket.as_deref())?);
        }
        Ok(())
    }

    /// Ends the backend that was started.
    pub(super) fn stop(&mut self) {
        if let Some(process) = self.take_process() {
            self.end(process);
        }
    }

    /// Gives up the backend that was started, without ending it.
    pub(super) fn take_process(&mut self) -> Option<Process> {
        self.end_is_expected = false;
        self.clients = 0;
        self.process.take()
    }

    /// Ends a backend that was started.
    pub(super) fn end(&mut self, process: Process) {
        if !process.end(self.grace) {
            self.grace = Duration::ZERO;
        }
    }

    /// Kills the backend as a power cut would, and starts it again with the same `{dir}` and all that it keeps there.
    ///
    /// # Errors
    /// If it can't be started.
    pub(super) fn kill_and_start(&mut self) -> io::Result<()> {
        match (self.take_process(), &self.command) {
            (Some(process), Some(command)) => {
                self.process = Some(process.kill_and_start(command, self.socket.as_deref())?);
                Ok(())
            }
            _ => self.start(),
        }
    }

    /// The backend that was started.
    pub(super) const fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// The number of its process, if it is known.
    pub(super) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid).or(self.peer)
    }

    /// Where it listens.
    pub(super) fn socket(&self) -> PathBuf {
        let own = self.process.as_ref().map(Process::socket);
        own.or(self.socket.as_deref()).unwrap_or(Path::new("")).to_owned()
    }

    /// Connects, as soon as it listens. The first answer may take as long as this backend takes to accept.
    pub(super) fn connect(&mut self) -> Outcome<Channel> {
        if self.clients > 0 && !self.pause.is_zero() {
            std::thread::sleep(self.pause);
        }
        let deadline = Instant::now() + self.patience;
        let socket = self.socket();
        loop {
            match Channel::connect(&socket, self.patience) {
                Ok(channel) => {
                    if self.command.is_none() {
                        let credentials = socket_peercred(channel.stream()).ok();
                        self.peer = credentials.and_then(|peer| peer.pid.as_raw_nonzero().get().try_into().ok());
                    }
                    self.clients = self.clients.saturating_add(1);
                    return Ok(channel);
                }
                Err(error) if self.has_ended() => {
                    return Err(Stop::Closed(format!("exited before it listened: {error}")));
                }
                Err(error) if Instant::now() >= deadline => {
                    return Err(Stop::Hang(format!("does not listen within {:?}: {error}", self.patience)));
                }
                Err(_) => {
                    self.refused = self.refused.saturating_add(1);
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Connects until it is served: a backend may close a connection while it still gets over the one before.
    pub(super) fn connect_served(&mut self) -> Outcome<Channel> {
        let deadline = Instant::now() + self.patience;
        loop {
            let mut channel = self.connect()?;
            // Other cases check whether the reply is right.
            match channel.send(&GetFeatures(Empty), &[]).and_then(|()| channel.receive_unchecked()) {
                Ok(_) => {
                    channel.set_timeout(self.timeout);
                    return Ok(channel);
                }
                Err(error) if error.is_closed() && Instant::now() < deadline && !self.has_ended() => {
                    self.refused = self.refused.saturating_add(1);
                    std::thread::sleep(PAUSE);
                }
                Err(error @ SocketError::Timeout { .. }) => {
                    return Err(Stop::Hang(format!("does not serve a new client: {error}")));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Connects after a client has left, and learns how much time this backend needs for that, so that no verdict depends on
    /// it: time until it accepts, and time after a client in which it refuses the next.
    pub(super) fn connect_learning(&mut self) -> Outcome<Channel> {
        let (refused, asked) = (self.refused, Instant::now());
        let channel = self.connect_served()?;
        let took = asked.elapsed();
        if self.refused > refused {
            self.pause = (took * 3 / 2).clamp(PAUSE, self.timeout);
        } else {
            self.patience = self.timeout + took * 2;
        }
        Ok(channel)
    }

    /// How its process ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.as_mut().and_then(Process::ended)
    }

    /// Whether its process has ended; also if it is not ours and does not exist any more.
    pub(super) fn has_ended(&mut self) -> bool {
        match (&mut self.process, self.peer) {
            (Some(process), _) => process.ended().is_some(),
            (None, Some(pid)) => has_gone(pid),
            (None, None) => false,
        }
    }

    /// Its process shall end now, so that this is no crash.
    pub(super) const fn expect_end(&mut self) {
        self.end_is_expected = true;
    }

    /// In words how its process ended although it should not have: by a signal, or at all while others still need it.
    /// `soon` waits for an end that a closed connection may announce.
    pub(super) fn crash(&mut self, soon: bool) -> Option<String> {
        if self.end_is_expected {
            return None;
        }
        let allowed = self.ends_with_client;
        match &mut self.process {
            Some(process) => {
                let status = if soon { process.wait(END_FOLLOWS) } else { process.ended() }?;
                crash_words(status, allowed)
            }
            None => {
                let pid = self.peer?;
                if soon && !allowed {
                    wait_until(END_FOLLOWS, || has_gone(pid));
                }
                (self.has_ended() && !allowed).then(|| format!("process {pid} does not exist"))
            }
        }
    }
}

/// In words how a process ended, if that is a crash: by a signal, or at all if it is not `allowed` to end.
pub(super) fn crash_words(status: ExitStatus, allowed: bool) -> Option<String> {
    use std::os::unix::process::ExitStatusExt as _;
    (status.signal().is_some() || !allowed).then(|| end_words(status))
}

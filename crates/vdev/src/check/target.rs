//! Who is checked: a backend that runs already, or a command that starts one afresh for each case.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;

use super::outcome::{Outcome, Stop};
use super::process::{Process, SpawnCommand, end_words};
use crate::protocol::Empty;
use crate::protocol::frontend::GetFeatures;
use crate::socket::{Channel, SocketError};

/// A crash is seen as a closed connection first; the end of the process follows within this time.
const END_FOLLOWS: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_millis(1);

/// Who is checked.
#[derive(Debug)]
pub struct Target {
    command: Option<SpawnCommand>,
    socket: Option<PathBuf>,
    timeout: Duration,
    process: Option<Process>,
    /// Whose socket it is, as the system says, where we have not started it.
    peer: Option<u32>,
    /// Whether its process ends when its client leaves, so that this is no crash.
    pub ends_with_client: bool,
    /// Whether the case that runs has asked it to end.
    end_is_expected: bool,
}

impl Target {
    /// A backend at a socket, or one that a command starts.
    pub const fn new(command: Option<SpawnCommand>, socket: Option<PathBuf>, timeout: Duration) -> Self {
        Self { command, socket, timeout, process: None, peer: None, ends_with_client: false, end_is_expected: false }
    }

    /// The longest that anything is waited for.
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether it is started afresh for each case.
    pub const fn is_spawned(&self) -> bool {
        self.command.is_some()
    }

    /// The command that starts it.
    pub const fn command(&self) -> Option<&SpawnCommand> {
        self.command.as_ref()
    }

    /// Starts a fresh backend, where there is a command.
    ///
    /// # Errors
    /// Where it can't be started.
    pub fn start(&mut self) -> std::io::Result<()> {
        self.stop();
        if let Some(command) = &self.command {
            self.process = Some(Process::start(command, self.socket.as_deref())?);
        }
        Ok(())
    }

    /// Ends the backend that was started.
    pub fn stop(&mut self) {
        self.process = None;
        self.end_is_expected = false;
    }

    /// Kills the backend as a power cut would, and starts it again.
    ///
    /// # Errors
    /// Where it can't be started.
    pub fn kill_and_start(&mut self) -> std::io::Result<()> {
        if let Some(process) = &mut self.process {
            process.kill();
        }
        self.start()
    }

    /// The backend that was started.
    pub const fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// The number of its process, where it is known.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid).or(self.peer)
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        let own = self.process.as_ref().map(Process::socket);
        own.or(self.socket.as_deref()).unwrap_or(Path::new("")).to_owned()
    }

    /// Connects, as soon as it listens.
    pub fn connect(&mut self) -> Outcome<Channel> {
        let deadline = Instant::now() + self.timeout;
        let socket = self.socket();
        loop {
            match Channel::connect(&socket, self.timeout) {
                Ok(channel) => {
                    if self.command.is_none() {
                        let credentials = socket_peercred(channel.stream()).ok();
                        self.peer = credentials.and_then(|peer| peer.pid.as_raw_nonzero().get().try_into().ok());
                    }
                    return Ok(channel);
                }
                Err(error) if self.has_ended() => {
                    return Err(Stop::Closed(format!("ended before it listened: {error}")));
                }
                Err(error) if Instant::now() >= deadline => {
                    return Err(Stop::Hang(format!("does not listen within {:?}: {error}", self.timeout)));
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Connects until it is served: a backend may close a connection while it still gets over the one before.
    pub fn connect_served(&mut self) -> Outcome<Channel> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let mut channel = self.connect()?;
            // Whether the answer is right is for the cases to say.
            match channel.send(&GetFeatures(Empty), &[]).and_then(|()| channel.receive_unchecked()) {
                Ok(_) => return Ok(channel),
                Err(error) if error.is_closed() && Instant::now() < deadline && !self.has_ended() => {
                    std::thread::sleep(PAUSE);
                }
                Err(error @ SocketError::Timeout { .. }) => {
                    return Err(Stop::Hang(format!("a new client is not served: {error}")));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How its process ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.as_mut().and_then(Process::ended)
    }

    /// Whether its process has ended; also where it is not ours and has gone.
    pub fn has_ended(&mut self) -> bool {
        match (&mut self.process, self.peer) {
            (Some(process), _) => process.ended().is_some(),
            (None, Some(pid)) => !Path::new(&format!("/proc/{pid}")).exists(),
            (None, None) => false,
        }
    }

    /// Its process shall end now, so that this is no crash.
    pub const fn expect_end(&mut self) {
        self.end_is_expected = true;
    }

    /// In words how its process ended where it should not have: by a signal, or at all while others still need it.
    /// `soon` waits for an end that a closed connection may announce.
    pub fn crash(&mut self, soon: bool) -> Option<String> {
        if self.end_is_expected {
            return None;
        }
        let allowed = self.ends_with_client;
        match &mut self.process {
            Some(process) => {
                let status = if soon { process.wait(END_FOLLOWS) } else { process.ended() }?;
                use std::os::unix::process::ExitStatusExt as _;
                (status.signal().is_some() || !allowed).then(|| end_words(status))
            }
            None => {
                let pid = self.peer?;
                if soon && !allowed {
                    super::process::wait_until(END_FOLLOWS, || !Path::new(&format!("/proc/{pid}")).exists());
                }
                (self.has_ended() && !allowed).then(|| format!("process {pid} has gone"))
            }
        }
    }
}

//! Serves a device: accepts frontends, one at a time, and has a session for each. The next one waits in the socket's queue.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::device::Device;
use super::fault::{Faults, Serving};
use super::observe::{NoObserver, Observer, SessionEvent};
use super::refusal::SessionError;
use super::session::Session;
use crate::socket::{Channel, Event, Listener, SocketError, wait_readable};

/// How a server serves.
#[derive(Clone)]
pub struct Options {
    /// The longest that a message may take from its first byte to its last, and an answer to be taken.
    pub message_timeout: Duration,
    /// The longest that a ring may take to finish what is under way when it is stopped.
    pub stop_timeout: Duration,
    /// Receives what happens.
    pub observer: Arc<dyn Observer>,
    /// How the server is wrong on purpose.
    pub faults: Option<Arc<dyn Faults>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            message_timeout: Duration::from_secs(3),
            stop_timeout: Duration::from_secs(10),
            observer: Arc::new(NoObserver),
            faults: None,
        }
    }
}

/// The pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Waits, but not longer than until it is stopped; returns whether it was.
fn sleep(stop: &Event, time: Duration) -> std::io::Result<bool> {
    wait_readable([stop.as_fd()], Some(time)).map(|[is_stopped]| is_stopped)
}

/// Serves a device to frontends.
pub struct Server {
    device: Arc<dyn Device>,
    options: Options,
    config_changed: Event,
}

impl Server {
    /// A server of this device.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn new(device: Arc<dyn Device>, options: Options) -> std::io::Result<Self> {
        Ok(Self { device, options, config_changed: Event::new()? })
    }

    /// An event by which the device reports that its configuration has changed; the frontend is notified, if that is
    /// possible.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    #[cfg(feature = "testing")]
    pub fn config_changed(&self) -> std::io::Result<Event> {
        self.config_changed.try_clone()
    }

    /// Serves frontends until it is stopped. Returns how many there were.
    ///
    /// # Errors
    /// If nothing can be waited for.
    pub fn serve(&self, listener: &Listener, stop: &Event) -> std::io::Result<u64> {
        let serving = self.options.faults.as_ref().map_or_else(Serving::default, |faults| faults.serving());
        let (mut clients, mut pauses_until) = (0, None);
        while serving.clients.is_none_or(|most| clients < most) {
            let [is_stopped, _] = wait_readable([stop.as_fd(), listener.as_fd()], None)?;
            if is_stopped || (!serving.accept_delay.is_zero() && sleep(stop, serving.accept_delay)?) {
                return Ok(clients);
            }
            match listener.accept(Some(Duration::ZERO), self.options.message_timeout) {
                Ok(None) => {}
                Ok(Some(_)) if pauses_until.is_some_and(|until| Instant::now() < until) => {}
                Ok(Some(channel)) => {
                    clients += 1;
                    self.serve_client(channel, clients, stop);
                    pauses_until = (!serving.pause.is_zero()).then(|| Instant::now() + serving.pause);
                }
                // Nothing but time frees a descriptor.
                Err(_) => {
                    sleep(stop, ACCEPT_PAUSE)?;
                }
            }
        }
        Ok(clients)
    }

    /// Serves on a socket that the process was started with (`--fd`): one that listens, or a single frontend. Returns how
    /// many frontends there were.
    ///
    /// # Errors
    /// If it is no such socket.
    pub fn serve_fd(&self, socket: OwnedFd, stop: &Event) -> std::io::Result<u64> {
        if rustix::net::sockopt::socket_domain(&socket)? != rustix::net::AddressFamily::UNIX {
            return Err(std::io::Error::other("it is not a Unix socket"));
        }
        if !rustix::net::sockopt::socket_acceptconn(&socket)? {
            rustix::io::ioctl_fionbio(&socket, false)?;
            let channel = Channel::new(UnixStream::from(socket), "the inherited socket", self.options.message_timeout);
            self.serve_client(channel, 1, stop);
            return Ok(1);
        }
        let listener = UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        let mut clients = 0;
        loop {
            let [is_stopped, _] = wait_readable([stop.as_fd(), listener.as_fd()], None)?;
            if is_stopped {
                return Ok(clients);
            }
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    clients += 1;
                    let channel = Channel::new(stream, "the inherited socket", self.options.message_timeout);
                    self.serve_client(channel, clients, stop);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    wait_readable([stop.as_fd()], Some(ACCEPT_PAUSE))?;
                }
            }
        }
    }

    /// Serves one frontend until it leaves.
    pub fn serve_client(&self, channel: Channel, client: u64, stop: &Event) {
        let observer = &self.options.observer;
        observer.event(&SessionEvent::Connected { client });
        self.device.reset();
        let result = Session::new(channel, &self.device, &self.options).run(stop, &self.config_changed);
        let error = match &result {
            Ok(()) | Err(SessionError::Socket(SocketError::Closed { .. })) => None,
            Err(error) => Some(error),
        };
        observer.event(&SessionEvent::Ended { client, error });
    }
}

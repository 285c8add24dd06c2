//! A mock from its parts.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::misbehave::Misbehave;
use super::script::{Script, ScriptError};
use crate::backend::{Device, Observer, Options, Server};
use crate::socket::{Event, Listener, SocketError, wait_readable};

/// Why a mock could not be served.
#[derive(Debug, thiserror::Error)]
pub enum MockError {
    /// It can't listen.
    #[error(transparent)]
    Listen(#[from] SocketError),
    /// The system refuses.
    #[error("failed to serve the mock")]
    Serve(#[from] std::io::Error),
}

/// A backend to test frontends with.
pub struct Mock {
    device: Arc<dyn Device>,
    options: Options,
}

impl Mock {
    /// A mock of this device, right about everything.
    pub fn new(device: Arc<dyn Device>) -> Self {
        Self { device, options: Options::default() }
    }

    /// Is wrong in the ways of this script.
    ///
    /// # Errors
    /// If the script names features that a device of this kind doesn't have.
    pub fn script(mut self, script: &Script) -> Result<Self, ScriptError> {
        self.options.faults = Some(Arc::new(Misbehave::new(script, self.device.kind())?));
        Ok(self)
    }

    /// Reports events to this observer: one that prints, or a [`Watch`](super::Watch).
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.options.observer = observer;
        self
    }

    /// Its options.
    pub const fn options_mut(&mut self) -> &mut Options {
        &mut self.options
    }

    /// The server, for callers that run it in another way.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    fn into_server(self) -> std::io::Result<Server> {
        Server::new(self.device, self.options)
    }

    /// Serves on a new socket until it is stopped. Returns how many frontends there were.
    ///
    /// # Errors
    /// If it can't listen there.
    pub fn serve(self, socket: &Path, stop: &Event) -> Result<u64, MockError> {
        let faults = self.options.faults.as_ref();
        let delay = faults.map_or(Duration::ZERO, |faults| faults.serving().start_delay);
        let [is_stopped] = wait_readable([stop.as_fd()], Some(delay))?;
        if is_stopped {
            return Ok(0);
        }
        let listener = Listener::bind(socket)?;
        Ok(self.into_server()?.serve(&listener, stop)?)
    }

    /// Serves on a socket that the process was started with.
    ///
    /// # Errors
    /// If it is no such socket.
    pub fn serve_fd(self, socket: OwnedFd, stop: &Event) -> Result<u64, MockError> {
        Ok(self.into_server()?.serve_fd(socket, stop)?)
    }
}

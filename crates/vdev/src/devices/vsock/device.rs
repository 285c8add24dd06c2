//! A socket device: where it listens, its queues and its configuration.

use std::io;
use std::path::{Path, PathBuf};

use super::handler;
use crate::backend::{Device, QueueHandler};
use crate::socket::{Listener, SocketError};
use crate::virtio::DeviceKind;

/// What a guest may send on a connection before the host has read it.
pub const BUFFER_BYTES: u32 = 256 << 10;
/// Connections at once; further ones are refused.
pub const CONNECTIONS_MAX: usize = 1024;
/// The host's address.
pub(super) const HOST_CID: u64 = 2;
/// Where the device receives.
pub(super) const RECEIVE: u16 = 0;
/// Where it transmits.
pub(super) const TRANSMIT: u16 = 1;
/// Receive, transmit, events.
const QUEUES: u16 = 3;

/// A socket device.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u64,
    path: PathBuf,
    listener: Listener,
}

impl Vsock {
    /// A device for a guest with this address, which must be above the host's; the host connects to `path`.
    ///
    /// # Errors
    /// If it can't listen there.
    pub fn new(guest_cid: u64, path: &Path) -> Result<Self, SocketError> {
        if guest_cid <= HOST_CID || guest_cid >= u64::from(u32::MAX) {
            let source = io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{guest_cid} is not a guest's CID: 3 to 4294967294"),
            );
            return Err(SocketError::Listen { socket: path.display().to_string(), source });
        }
        Ok(Self { guest_cid, path: path.to_owned(), listener: Listener::bind(path)? })
    }
}

impl Device for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        QUEUES
    }

    fn worker_of(&self, _queue: u16) -> u16 {
        0
    }

    fn config(&self) -> Vec<u8> {
        self.guest_cid.to_le_bytes().to_vec()
    }

    fn start(&self, _worker: u16, _features: u64) -> io::Result<Box<dyn QueueHandler>> {
        let listener = self.listener.try_clone()?;
        Ok(Box::new(handler::Handler::new(self.guest_cid, self.path.clone(), listener)))
    }
}

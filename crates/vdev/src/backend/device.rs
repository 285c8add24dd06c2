//! What a device is to the server: what it offers, its configuration, and the handlers of its queues.
//!
//! ```text
//!    Device (one, lives as long as the server) ── start(worker, features) ──▶ QueueHandler (one per worker and session)
//!                                                                              │ process(queues, index)
//!                                                                              ▼
//!                                                          Queues: rings that run, and descriptors to wait for
//! ```

use std::io;
use std::time::{Duration, Instant};

use super::queues::Queues;
use crate::protocol::ProtocolFeatures;
use crate::queue::QueueError;
use crate::virtio::DeviceKind;

/// A virtio device that a `Server` serves to one frontend after the other.
pub trait Device: Send + Sync {
    /// What kind it is.
    fn kind(&self) -> DeviceKind;

    /// The features of its kind that it has. Those of every device (`VERSION_1`, the rings', `PROTOCOL_FEATURES`,
    /// `LOG_ALL`) are the server's.
    fn features(&self) -> u64;

    /// Protocol features that it has beyond those of every device: `NET_MTU`, `RARP`, `DEVICE_STATE`.
    fn protocol_features(&self) -> ProtocolFeatures {
        ProtocolFeatures::empty()
    }

    /// How many queues it has, at most 256.
    fn queues(&self) -> u16;

    /// The largest ring it takes.
    fn queue_size_max(&self) -> u16 {
        1 << 15
    }

    /// Which worker serves a queue. Queues with the same number share a thread and a handler.
    fn worker_of(&self, queue: u16) -> u16 {
        queue
    }

    /// How long a worker that has just worked looks for more before it sleeps.
    fn poll_time(&self) -> Duration {
        Duration::ZERO
    }

    /// Its configuration space, all of it.
    fn config(&self) -> Vec<u8>;

    /// Changes its configuration space.
    ///
    /// # Errors
    /// If not all of it may be changed; then nothing was.
    fn set_config(&self, write: &ConfigWrite<'_>) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly { offset: write.offset, bytes: write.bytes.len() })
    }

    /// Takes the MTU of the host (`NET_SET_MTU`).
    ///
    /// # Errors
    /// If it can't be that.
    fn set_mtu(&self, mtu: u64) -> Result<(), DeviceError> {
        Err(DeviceError::Mtu { mtu })
    }

    /// Announces the guest with this address (`SEND_RARP`).
    ///
    /// # Errors
    /// If it can't.
    fn announce(&self, _mac: [u8; 6]) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported { what: "announce" })
    }

    /// Its own state, to be loaded elsewhere (`DEVICE_STATE`). At most 4096 bytes.
    fn save_state(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes the state that another has saved.
    ///
    /// # Errors
    /// If it is not one of this device.
    fn load_state(&self, state: &[u8]) -> Result<(), DeviceError> {
        if state.is_empty() { Ok(()) } else { Err(DeviceError::State { bytes: state.len() }) }
    }

    /// The driver has reset it, or another frontend has come: no ring runs.
    fn reset(&self) {}

    /// The handler of a worker's queues, with the features that were negotiated. It lives until the device is reset or
    /// the frontend goes.
    ///
    /// # Errors
    /// If the system has no room for it.
    fn start(&self, worker: u16, features: u64) -> io::Result<Box<dyn QueueHandler>>;
}

/// The most bytes of a device's state.
pub(super) const STATE_BYTES_MAX: usize = 4096;

/// A write to the configuration space.
#[derive(Debug, Clone, Copy)]
pub struct ConfigWrite<'a> {
    /// Where it begins.
    pub offset: usize,
    /// What is written, at least one byte.
    pub bytes: &'a [u8],
    /// Whether a migration writes it, which may set what a driver may not.
    pub migration: bool,
    /// The virtio features that were negotiated.
    pub features: u64,
}

/// Why a device did not do what the frontend requested.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The configuration can't be changed there.
    #[error("{bytes} bytes at offset {offset} of the configuration cannot be written")]
    ReadOnly {
        /// Where.
        offset: usize,
        /// How many.
        bytes: usize,
    },
    /// A value without a meaning.
    #[error("`{field}` cannot be {value}")]
    Value {
        /// Of the configuration.
        field: &'static str,
        /// What was to be written.
        value: u64,
    },
    /// An MTU it can't have.
    #[error("the MTU cannot be {mtu}")]
    Mtu {
        /// In bytes.
        mtu: u64,
    },
    /// A state of another device, or of no device.
    #[error("{bytes} bytes are not a state of this device")]
    State {
        /// How many came.
        bytes: usize,
    },
    /// It has no such thing.
    #[error("the device cannot {what}")]
    Unsupported {
        /// What it would do.
        what: &'static str,
    },
}

/// What a handler returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// The ring was empty at the last look: the handler is called again when there is more.
    Drained,
    /// The ring has more, but the handler has done its share: it is called again soon.
    More,
    /// Buffers are left on purpose until a descriptor of its own is ready: it is called again when the driver kicks,
    /// and it disables or enables kicks itself.
    Left,
}

/// The device's side of a worker's queues. It lives on that worker's thread.
///
/// An error ends the ring: it is signalled to the frontend, and the ring is not looked at again until it is stopped and
/// started.
pub trait QueueHandler: Send {
    /// A queue that is enabled was started, kicked, enabled, or is polled.
    ///
    /// # Errors
    /// If the ring is inconsistent.
    fn process(&mut self, queues: &mut Queues, queue: u16) -> Result<Work, QueueError>;

    /// A queue that is disabled was kicked: it may be emptied, without any effect on the world. Left as it is, its buffers
    /// wait until it is enabled.
    ///
    /// # Errors
    /// If the ring is inconsistent.
    fn discard(&mut self, _queues: &mut Queues, _queue: u16) -> Result<Work, QueueError> {
        Ok(Work::Left)
    }

    /// A descriptor that the handler waits for is ready (`Queues::watch`).
    ///
    /// # Errors
    /// As [`process`](Self::process), with the queue it is about.
    fn ready(&mut self, _queues: &mut Queues, _token: u64) -> Result<(), (u16, QueueError)> {
        Ok(())
    }

    /// When it is to be called next even if nothing happens ([`expired`](Self::expired)).
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Its deadline has come.
    ///
    /// # Errors
    /// As [`ready`](Self::ready).
    fn expired(&mut self, _queues: &mut Queues) -> Result<(), (u16, QueueError)> {
        Ok(())
    }

    /// A queue has been started.
    ///
    /// # Errors
    /// As [`process`](Self::process).
    fn started(&mut self, _queues: &mut Queues, _queue: u16) -> Result<(), QueueError> {
        Ok(())
    }

    /// A queue is about to be stopped: what is under way on it must be finished, or be given back, before this returns.
    fn stopping(&mut self, _queues: &mut Queues, _queue: u16) {}
}

//! The memory in which requests under way are recorded, so that they survive the backend ("Inflight I/O tracking").

use super::error::QueueError;
use super::layout::RingKind;
use crate::memory::SharedFile;
use crate::protocol::Inflight;

/// The memory in which requests under way are recorded, of all queues.
#[derive(Debug)]
pub struct InflightRegion {
    description: Inflight,
}

/// The part of one queue.
#[derive(Debug)]
pub struct InflightQueue {
    index: u16,
}

impl InflightRegion {
    /// New memory for so many queues of this size, and the file to share it by: the answer to `GET_INFLIGHT_FD`.
    ///
    /// # Errors
    /// Where the system has no room for it.
    pub fn create(_kind: RingKind, queues: u16, size: u16) -> Result<(Self, SharedFile), QueueError> {
        Err(QueueError::InflightRegion { queues, size, reason: "not built yet".to_owned() })
    }

    /// Maps what `SET_INFLIGHT_FD` brings.
    ///
    /// # Errors
    /// Where it does not hold what it should.
    pub fn map(_kind: RingKind, description: &Inflight, _file: SharedFile) -> Result<Self, QueueError> {
        let Inflight { num_queues: queues, queue_size: size, .. } = *description;
        Err(QueueError::InflightRegion { queues, size, reason: "not built yet".to_owned() })
    }

    /// What the other side is told of it.
    pub const fn description(&self) -> &Inflight {
        &self.description
    }

    /// The part of a queue.
    ///
    /// # Errors
    /// Where it has none.
    pub fn queue(&self, index: u16) -> Result<InflightQueue, QueueError> {
        Ok(InflightQueue { index })
    }
}

impl InflightQueue {
    /// Which queue it is.
    pub const fn index(&self) -> u16 {
        self.index
    }
}

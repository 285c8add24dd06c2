//! Takes what the backend has asked for and told of, as a VMM does that is not busy: only for tests.

#[cfg(test)]
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::{FrontendError, Notice};
#[cfg(test)]
use super::{OBJECTS_MAX, RINGS_MAX, RingSet};
use crate::frontend::Frontend;

/// Requests that one call of [`Frontend::serve_backend_requests`] answers at most.
const REQUESTS_PER_CALL: usize = 256;

impl Frontend {
    /// Serves requests of the backend until it sends no more, at most until `timeout` passes without a request.
    /// Returns how many were served: 0 without such a channel.
    ///
    /// # Errors
    /// If the backend breaks the protocol; its channel is closed then.
    pub fn serve_backend_requests(&mut self, timeout: Duration) -> Result<usize, FrontendError> {
        let deadline = Instant::now() + timeout;
        for served in 0..REQUESTS_PER_CALL {
            let Some(channel) = self.backend.channel() else { return Ok(served) };
            let wait = if served == 0 { deadline.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
            let readable = channel.is_readable(wait);
            if !readable.map_err(|source| self.system("waiting for the backend's requests", source))? {
                return Ok(served);
            }
            self.backend.serve_one(self.channel.name(), &mut self.said)?;
        }
        Ok(REQUESTS_PER_CALL)
    }

    /// What the backend has sent, oldest first.
    pub fn take_notice(&mut self) -> Option<Notice> {
        self.backend.notices.pop_front()
    }
}

#[cfg(test)]
impl Frontend {
    /// Whether the backend has called this ring by message since the last call of this (`INBAND_NOTIFICATIONS`).
    pub(crate) fn take_call(&mut self, ring: u32) -> bool {
        ring < RINGS_MAX && self.backend.called.take(ring)
    }

    /// As [`take_call`](Self::take_call), for an error of the ring.
    pub(crate) fn take_ring_error(&mut self, ring: u32) -> bool {
        ring < RINGS_MAX && self.backend.failed.take(ring)
    }

    /// Offers an object to the backend: it gets this descriptor when it looks the UUID up. Returns whether there was room.
    pub(crate) fn offer_object(&mut self, uuid: [u8; 16], fd: OwnedFd) -> bool {
        let objects = &mut self.backend.objects;
        let room = objects.len() < OBJECTS_MAX || objects.contains_key(&uuid);
        if room {
            objects.insert(uuid, Some(fd));
        }
        room
    }

    /// Whether the backend's own channel is open.
    pub(crate) const fn has_backend_channel(&self) -> bool {
        self.backend.channel.is_some()
    }
}

#[cfg(test)]
impl RingSet {
    fn take(&mut self, ring: u32) -> bool {
        let (word, bit) = (&mut self.0[ring as usize / 64], 1 << (ring % 64));
        let was = *word & bit != 0;
        *word &= !bit;
        was
    }
}

//! A new connection in place of one that was lost.
//!
//! ```text
//!   lost ─▶ connect until taken ─▶ the same handshake, features as before ─▶ memory ─▶ inflight ─▶ (rings: their owner)
//! ```

use std::time::{Duration, Instant};

use super::error::FrontendError;
use super::handshake::names;
use super::options::Wish;
use super::session::Frontend;
use crate::protocol::ProtocolFeatures;
use crate::socket::{Channel, SocketError};

/// The pause before a socket without a listener is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(2);

impl Frontend {
    /// Connects again, waits for the backend to come back, and sends it the features, memory and inflight region that
    /// the last one had. Rings are not started: that is up to their owner.
    ///
    /// # Errors
    /// If the backend does not come back within [`Options::reconnect_timeout`](super::Options), lacks what the last
    /// one had, or refuses what it took.
    pub(super) fn reconnect(&mut self) -> Result<(), FrontendError> {
        let waited = self.options.reconnect_timeout;
        let deadline = Instant::now() + waited;
        loop {
            let error = match self.reconnect_once() {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let not_there = matches!(error, FrontendError::Socket(SocketError::Connect { .. }));
            if !(not_there || error.is_closed()) {
                return Err(error);
            }
            if Instant::now() >= deadline {
                return Err(FrontendError::NotBack { socket: self.name().to_owned(), waited, source: Box::new(error) });
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
    }

    fn reconnect_once(&mut self) -> Result<(), FrontendError> {
        let Some(path) = self.path() else {
            return Err(FrontendError::NoPath { socket: self.name().to_owned() });
        };
        let channel = Channel::connect(path, self.options.timeout)?;
        self.replace_channel(channel);
        let (before, wish) = (self.negotiated.clone(), self.wish.clone());
        // Exactly what was negotiated before: the rings that are in memory already are made for it.
        let same = Wish {
            features: before.features,
            required_features: 0,
            protocol_features: before.protocol_features,
            required_protocol_features: ProtocolFeatures::empty(),
            config_bytes: wish.config_bytes,
        };
        let negotiated = self.handshake(&same);
        self.wish = wish;
        let negotiated = match negotiated {
            Ok(negotiated) => negotiated,
            Err(error) => {
                self.negotiated = before;
                return Err(error);
            }
        };
        let what = if negotiated.features != before.features {
            format!("the features {}", names(before.features & !negotiated.features))
        } else if negotiated.protocol_features != before.protocol_features {
            before.protocol_features.difference(negotiated.protocol_features).to_string()
        } else if negotiated.usable_queues() < before.usable_queues() {
            format!("{} of its {} queues", before.usable_queues() - negotiated.usable_queues(), before.usable_queues())
        } else {
            return self.batched(|this| {
                // The region comes before memory and rings: a ring that starts without it forgets what was under way.
                if this.inflight.is_some() {
                    this.set_inflight()?;
                }
                if this.memory.is_empty() { Ok(()) } else { this.share_again() }
            });
        };
        self.negotiated = before;
        Err(FrontendError::Changed { socket: self.name().to_owned(), what })
    }
}

//! What a card is plugged into.

use std::io;

use super::answer::Host;
use super::tap::Tap;

/// What a card is plugged into.
#[derive(Debug)]
pub(super) enum Wire {
    /// A TAP device of the host.
    Tap(Tap),
    /// One host that answers ARP and pings.
    Host(Host),
    /// Its own frames come back.
    Reflection,
}

impl Wire {
    /// Sends a frame out. What it is answered with at once is put into `answer`; returns whether there is an answer.
    pub(super) fn send(&self, frame: &[u8], answer: &mut Vec<u8>) -> bool {
        answer.clear();
        match self {
            Self::Tap(tap) => {
                // A TAP that is full, down or removed loses frames, as any network does.
                let _ = tap.write(frame);
                false
            }
            Self::Host(host) => host.answer(frame, answer),
            Self::Reflection => reflect(frame, answer),
        }
    }

    /// The next frame that is not a reply, put into `frame`. Returns whether there was one.
    ///
    /// # Errors
    /// If there will never be another.
    pub(super) fn receive(&self, frame: &mut Vec<u8>) -> io::Result<bool> {
        match self {
            Self::Tap(tap) => tap.read(frame),
            Self::Host(_) | Self::Reflection => Ok(false),
        }
    }
}

/// A frame with its two addresses exchanged.
fn reflect(frame: &[u8], answer: &mut Vec<u8>) -> bool {
    let Some((to, rest)) = frame.split_first_chunk::<6>() else { return false };
    let Some((from, rest)) = rest.split_first_chunk::<6>() else { return false };
    for part in [&from[..], &to[..], rest] {
        answer.extend_from_slice(part);
    }
    true
}

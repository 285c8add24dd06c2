//! Splits bytes into frames: this is where a frame is decoded.
//!
//! ```text
//!   push(bytes) or space() + fill(n) ──▶ buffer ──▶ next() ──▶ Frame, borrowed from the buffer
//! ```
//! What a frame means is decided by [`Message::parse`](crate::Message::parse).
//!
//! # Why a length is checked first
//! The length field comes from the peer, and it is the only way to find the next frame. So it is checked as soon as its
//! four bytes have arrived, before memory is reserved for the body. A length of at most 1 MiB bounds the buffer to one
//! frame and one read, even if the peer sends the length and then nothing. A length under 5 has no room for kind and
//! stream id.
//!
//! # Why a bad length is not skipped
//! After a bad length no byte can be assigned to a frame. A search for the next plausible header would soon find a
//! wrong one: any four bytes from `00 00 00 05` to `00 10 00 00` are a valid length, and the bytes of a file that a
//! user sends would then be read as messages. So the error is returned by each later call, and the caller ends the
//! link. Only a [reset marker](crate::reset) starts a new link on the same bytes: no frame of a host contains it, so it
//! is found without knowing where a frame starts.

use crate::frame::{Frame, FrameError, HEADER_BYTES, Kind, LENGTH_MIN, StreamId, check_length};

/// The stream ended inside a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndError {
    /// Part of a header, or a header with part of its body.
    #[error("unexpected end of stream: {have} bytes of a frame that needs {need}")]
    UnexpectedEof {
        /// Bytes of the frame that arrived.
        have: usize,
        /// Bytes that the frame needs: those of a header while its length is not known.
        need: usize,
    },
    /// The buffered bytes are not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Splits a byte stream into frames. A partial frame is kept until the rest arrives. A bad length is returned by each
/// call from then on, because no later byte can be assigned to a frame.
///
/// ```
/// # use kiln_wire::{Decoder, Kind, StreamId, encode};
/// let mut bytes = Vec::new();
/// encode(Kind::PING, StreamId::LINK, b"hi", &mut bytes)?;
/// let mut decoder = Decoder::new();
/// decoder.push(&bytes[..5]);
/// assert_eq!(decoder.next()?, None);
/// decoder.push(&bytes[5..]);
/// assert_eq!(decoder.next()?.map(|frame| frame.payload.to_vec()), Some(b"hi".to_vec()));
/// # Ok::<(), kiln_wire::FrameError>(())
/// ```
#[derive(Debug, Default)]
pub struct Decoder {
    /// Initialised bytes. Those of the stream are from `consumed` to `filled`.
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that were returned as frames.
    consumed: usize,
    /// End of the bytes that were received.
    filled: usize,
}

/// Bytes that a buffer may use before it moves a partial frame to its front. A buffer that a large frame has made
/// larger is freed once it is empty.
const BUFFER_KEEP_BYTES: usize = 256 << 10;

impl Decoder {
    /// An empty decoder; allocates on the first push.
    pub const fn new() -> Self {
        Self { buffer: Vec::new(), consumed: 0, filled: 0 }
    }

    /// Adds bytes from the stream. Call [`next`](Self::next) until it returns `None` before pushing more. Then the
    /// buffer has at most one frame plus one push, or 256 KiB if that is more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.space(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.fill(bytes.len());
    }

    /// A slice of at least `bytes` bytes to read into. Call [`fill`](Self::fill) with the number of bytes that were
    /// read. The buffer is bounded as for [`push`](Self::push).
    pub fn space(&mut self, bytes: usize) -> &mut [u8] {
        self.make_room(bytes);
        if self.buffer.len() < self.filled + bytes {
            self.buffer.resize(self.filled + bytes, 0);
        }
        &mut self.buffer[self.filled..]
    }

    /// The first `bytes` of the last [`space`](Self::space), to inspect them before [`fill`](Self::fill).
    ///
    /// # Panics
    /// If the space is shorter.
    pub fn offered(&self, bytes: usize) -> &[u8] {
        &self.buffer[self.filled..self.filled + bytes]
    }

    /// Adds the first `bytes` of [`space`](Self::space) to the stream.
    ///
    /// # Panics
    /// If the space is shorter.
    pub fn fill(&mut self, bytes: usize) {
        assert!(bytes <= self.buffer.len() - self.filled, "{bytes} bytes were not requested");
        self.filled += bytes;
    }

    /// The next whole frame, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// If a length field is out of bounds. Each later call returns the same error.
    #[expect(clippy::should_implement_trait, reason = "a lending iterator can't be an Iterator")]
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let pending = &self.buffer[self.consumed..self.filled];
        let Some((length, rest)) = pending.split_first_chunk::<4>() else { return Ok(None) };
        let length = check_length(u32::from_be_bytes(*length))? as usize;
        if rest.len() < length {
            return Ok(None);
        }
        let start = self.consumed + HEADER_BYTES;
        self.consumed += 4 + length;
        let header = &self.buffer[start - 5..start];
        Ok(Some(Frame {
            kind: Kind(header[0]),
            stream: StreamId(u32::from_be_bytes([header[1], header[2], header[3], header[4]])),
            payload: &self.buffer[start..start + length - LENGTH_MIN as usize],
        }))
    }

    /// Bytes that are buffered and not yet returned as part of a frame.
    pub fn pending_bytes(&self) -> usize {
        self.filled - self.consumed
    }

    /// Bytes that the current frame lacks. `None` between two frames, and if the frame's length is not known yet.
    pub fn missing_bytes(&self) -> Option<usize> {
        let (length, rest) = self.buffer[self.consumed..self.filled].split_first_chunk::<4>()?;
        let length = check_length(u32::from_be_bytes(*length)).ok()? as usize;
        length.checked_sub(rest.len())
    }

    /// Checks that the stream may end here.
    ///
    /// # Errors
    /// [`EndError::UnexpectedEof`] if it ends inside a frame, [`EndError::Frame`] if the length of that frame is bad.
    pub fn finish(&self) -> Result<(), EndError> {
        let pending = &self.buffer[self.consumed..self.filled];
        if pending.is_empty() {
            return Ok(());
        }
        let need = match pending.first_chunk::<4>() {
            Some(length) => 4 + check_length(u32::from_be_bytes(*length))? as usize,
            None => HEADER_BYTES,
        };
        Err(EndError::UnexpectedEof { have: pending.len(), need })
    }

    /// Drops all buffered bytes.
    pub fn clear(&mut self) {
        self.consumed = self.filled;
        self.make_room(0);
    }

    /// Frees the space of returned frames. A partial frame behind them is moved only if there is no room left, so that
    /// a stream of middle-sized frames is not copied twice.
    fn make_room(&mut self, bytes: usize) {
        if self.consumed == self.filled {
            (self.consumed, self.filled) = (0, 0);
            if self.buffer.len() > BUFFER_KEEP_BYTES {
                self.buffer = Vec::new();
            }
        } else if self.filled + bytes > BUFFER_KEEP_BYTES {
            self.buffer.copy_within(self.consumed..self.filled, 0);
            self.filled -= self.consumed;
            self.consumed = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{LENGTH_MAX, encode};

    fn one_frame() -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(Kind::DATA_OUT, StreamId(3), b"payload", &mut bytes).expect("a small frame fits");
        bytes
    }

    #[test]
    fn a_stream_may_end_between_two_frames() {
        let mut decoder = Decoder::new();
        assert_eq!(decoder.finish(), Ok(()));
        decoder.push(&one_frame());
        assert!(decoder.next().expect("a whole frame").is_some());
        assert_eq!(decoder.finish(), Ok(()));
    }

    #[test]
    fn an_end_inside_a_frame_is_unexpected_and_consumes_nothing() {
        let bytes = one_frame();
        for cut in 1..bytes.len() {
            let mut decoder = Decoder::new();
            decoder.push(&bytes[..cut]);
            assert_eq!(decoder.next(), Ok(None), "cut at {cut}");
            assert_eq!(decoder.pending_bytes(), cut);
            assert_eq!(decoder.missing_bytes(), (cut >= 4).then(|| bytes.len() - cut));
            assert!(matches!(decoder.finish(), Err(EndError::UnexpectedEof { have, .. }) if have == cut));
            decoder.push(&bytes[cut..]);
            assert_eq!(decoder.next().expect("whole now").expect("whole now").payload, b"payload");
        }
    }

    #[test]
    fn a_length_out_of_bounds_is_refused_after_four_bytes() {
        for (length, expected) in [
            (0, FrameError::TooShort(0)),
            (4, FrameError::TooShort(4)),
            (LENGTH_MAX + 1, FrameError::TooLong(u64::from(LENGTH_MAX) + 1)),
            (u32::MAX, FrameError::TooLong(u64::from(u32::MAX))),
        ] {
            let mut decoder = Decoder::new();
            decoder.push(&length.to_be_bytes());
            assert_eq!(decoder.next(), Err(expected));
            assert_eq!(decoder.next(), Err(expected), "the error stays");
            assert_eq!(decoder.finish(), Err(EndError::Frame(expected)));
        }
    }

    #[test]
    fn a_buffer_grown_by_a_large_frame_is_freed() {
        let mut decoder = Decoder::new();
        let mut bytes = Vec::new();
        encode(Kind::DATA_IN, StreamId(1), &vec![0; 1 << 19], &mut bytes).expect("half a MiB fits");
        decoder.push(&bytes);
        assert!(decoder.next().expect("whole").is_some());
        decoder.push(b"");
        assert!(decoder.buffer.capacity() <= BUFFER_KEEP_BYTES);
    }
}

//! Bytes in, frames out.

use crate::frame::{Frame, FrameError, HEADER_BYTES, Kind, LENGTH_MIN, StreamId, check_length};

/// The stream ended inside a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndError {
    /// Some bytes of a header, or a header with part of its body.
    #[error("unexpected end of stream: {have} bytes of a frame that needs {need}")]
    UnexpectedEof {
        /// Bytes of the frame that arrived.
        have: usize,
        /// Bytes that it needs as far as is known: at least a header.
        need: usize,
    },
    /// The bytes at hand are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Splits a byte stream into frames. A partial frame is kept until the rest arrives; a bad length is reported on each
/// call from then on, because nothing after it can be trusted.
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
    /// All of it is initialised; what counts lies between the two marks.
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that were handed out as frames.
    consumed: usize,
    /// End of the bytes that came.
    filled: usize,
}

/// Room that a buffer may use before it moves bytes; one that a large frame has grown further is given back once it is
/// empty.
const BUFFER_KEEP_BYTES: usize = 256 << 10;

impl Decoder {
    /// An empty decoder; allocates on the first push.
    pub const fn new() -> Self {
        Self { buffer: Vec::new(), consumed: 0, filled: 0 }
    }

    /// Adds bytes from the stream. Call [`next`](Self::next) until it is empty before pushing more: what is buffered
    /// is then at most one frame plus one push, or 256 KiB where that is more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.space(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.fill(bytes.len());
    }

    /// Room for at least `bytes` to be read into; [`fill`](Self::fill) says how many were. Bounded as [`push`](Self::push).
    pub fn space(&mut self, bytes: usize) -> &mut [u8] {
        self.make_room(bytes);
        if self.buffer.len() < self.filled + bytes {
            self.buffer.resize(self.filled + bytes, 0);
        }
        &mut self.buffer[self.filled..]
    }

    /// The first `bytes` of the last [`space`](Self::space), to look at before they are taken in.
    ///
    /// # Panics
    /// Where there is not so much of it.
    pub fn offered(&self, bytes: usize) -> &[u8] {
        &self.buffer[self.filled..self.filled + bytes]
    }

    /// Takes in the first `bytes` of [`space`](Self::space).
    ///
    /// # Panics
    /// Where there is not so much of it.
    pub fn fill(&mut self, bytes: usize) {
        assert!(bytes <= self.buffer.len() - self.filled, "{bytes} bytes were not asked for");
        self.filled += bytes;
    }

    /// The next whole frame, `None` where more bytes are needed.
    ///
    /// # Errors
    /// A length field out of bounds; the stream can't be followed any further.
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

    /// Bytes that are buffered and not yet part of a frame handed out.
    pub fn pending_bytes(&self) -> usize {
        self.filled - self.consumed
    }

    /// Bytes that the frame at hand lacks; `None` at a boundary and where its length is not known yet.
    pub fn missing_bytes(&self) -> Option<usize> {
        let (length, rest) = self.buffer[self.consumed..self.filled].split_first_chunk::<4>()?;
        let length = check_length(u32::from_be_bytes(*length)).ok()? as usize;
        length.checked_sub(rest.len())
    }

    /// Says whether the stream may end here.
    ///
    /// # Errors
    /// [`EndError::UnexpectedEof`] inside a frame.
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

    /// Forgets everything that is buffered.
    pub fn clear(&mut self) {
        self.consumed = self.filled;
        self.make_room(0);
    }

    /// Drops what was handed out. The start of a frame behind it is moved only where there is no room left, so that a
    /// stream of middle-sized frames is not copied twice.
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
    fn the_end_at_a_boundary_is_clean() {
        let mut decoder = Decoder::new();
        assert_eq!(decoder.finish(), Ok(()));
        decoder.push(&one_frame());
        assert!(decoder.next().expect("a whole frame").is_some());
        assert_eq!(decoder.finish(), Ok(()));
    }

    #[test]
    fn every_cut_inside_a_frame_is_an_unexpected_end_and_consumes_nothing() {
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
    fn lengths_out_of_bounds_are_refused_from_four_bytes() {
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
    fn a_buffer_that_a_large_frame_grew_is_given_back() {
        let mut decoder = Decoder::new();
        let mut bytes = Vec::new();
        encode(Kind::DATA_IN, StreamId(1), &vec![0; 1 << 19], &mut bytes).expect("half a MiB fits");
        decoder.push(&bytes);
        assert!(decoder.next().expect("whole").is_some());
        decoder.push(b"");
        assert!(decoder.buffer.capacity() <= BUFFER_KEEP_BYTES);
    }
}

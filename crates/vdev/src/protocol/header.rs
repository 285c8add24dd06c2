//! The 12 bytes before every message ("Message Specification" in QEMU's `docs/interop/vhost-user.rst`):
//!
//! ```text
//!    0        4        8       12
//!    | request | flags  | size   |  payload of `size` bytes …      all in the machine's own byte order
//!                 bits 0-1 version, 2 reply, 3 need_reply, the rest reserved
//! ```

use std::fmt;

/// A header's size on the socket.
pub const HEADER_BYTES: usize = 12;

/// The version that every message carries.
pub(super) const VERSION: u32 = 1;

/// The largest payload taken from a peer; the specification names no bound, no message of it comes near this one.
pub const PAYLOAD_BYTES_MAX: u32 = 4096;

const VERSION_MASK: u32 = 0b11;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
const RESERVED_MASK: u32 = !(VERSION_MASK | REPLY | NEED_REPLY);

/// The flags of a message, as they are on the socket: any 32 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flags(u32);

impl Flags {
    /// A message without need_reply, in this version.
    pub const fn request() -> Self {
        Self(VERSION)
    }

    /// A message that requests a reply even if its kind has none (protocol feature `REPLY_ACK`).
    pub const fn request_with_reply() -> Self {
        Self(VERSION | NEED_REPLY)
    }

    /// The answer to a message.
    pub const fn reply() -> Self {
        Self(VERSION | REPLY)
    }

    /// Takes the bits as they are, wrong ones too.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits as they are on the socket.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The version of the sender.
    pub(crate) const fn version(self) -> u32 {
        self.0 & VERSION_MASK
    }

    /// Whether this answers a message.
    pub const fn is_reply(self) -> bool {
        self.0 & REPLY != 0
    }

    /// Whether the sender waits for an answer.
    pub const fn needs_reply(self) -> bool {
        self.0 & NEED_REPLY != 0
    }

    /// The bits that no version gives a meaning.
    pub const fn reserved(self) -> u32 {
        self.0 & RESERVED_MASK
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flags({:#x})", self.0)
    }
}

/// What stands before a message's payload.
///
/// ```
/// use kiln_vdev::protocol::{Flags, Header};
///
/// let get_features = Header { request: 1, flags: Flags::request(), payload_bytes: 0 };
/// assert_eq!(Header::decode(get_features.encode()), get_features);
/// assert!(get_features.check().is_ok());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header {
    /// The message's number; frontends and backends have a list each.
    pub request: u32,
    /// Version and direction.
    pub flags: Flags,
    /// How many bytes follow.
    pub payload_bytes: u32,
}

/// What makes a header one that no peer may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The version is not ours.
    #[error("message {request} has version {version}, not {VERSION}")]
    Version {
        /// The message's number.
        request: u32,
        /// The version it claims.
        version: u32,
    },
    /// Flags that no version defines.
    #[error("message {request} has the reserved flags {bits:#x}")]
    Reserved {
        /// The message's number.
        request: u32,
        /// Those flags.
        bits: u32,
    },
    /// A reply that requests a reply.
    #[error("message {request} is a reply with need_reply")]
    ReplyToReply {
        /// The message's number.
        request: u32,
    },
    /// More bytes than are taken.
    #[error("message {request} announces {payload_bytes} bytes, more than {PAYLOAD_BYTES_MAX}")]
    TooLarge {
        /// The message's number.
        request: u32,
        /// How many bytes it announces.
        payload_bytes: u32,
    },
}

impl Header {
    /// The header as it goes onto the socket.
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        for (place, field) in bytes.chunks_exact_mut(4).zip([self.request, self.flags.bits(), self.payload_bytes]) {
            place.copy_from_slice(&field.to_ne_bytes());
        }
        bytes
    }

    /// The header that these bytes hold. All bytes are one; whether it may be sent is for [`check`](Self::check).
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Self {
        let [r0, r1, r2, r3, f0, f1, f2, f3, s0, s1, s2, s3] = bytes;
        Self {
            request: u32::from_ne_bytes([r0, r1, r2, r3]),
            flags: Flags::from_bits(u32::from_ne_bytes([f0, f1, f2, f3])),
            payload_bytes: u32::from_ne_bytes([s0, s1, s2, s3]),
        }
    }

    /// Whether a peer may send this.
    ///
    /// # Errors
    /// The first thing that is wrong with it, in the order of `HeaderError`.
    pub const fn check(self) -> Result<(), HeaderError> {
        let Self { request, flags, payload_bytes } = self;
        if flags.version() != VERSION {
            return Err(HeaderError::Version { request, version: flags.version() });
        }
        if flags.reserved() != 0 {
            return Err(HeaderError::Reserved { request, bits: flags.reserved() });
        }
        if flags.is_reply() && flags.needs_reply() {
            return Err(HeaderError::ReplyToReply { request });
        }
        if payload_bytes > PAYLOAD_BYTES_MAX {
            return Err(HeaderError::TooLarge { request, payload_bytes });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(bits: u32, payload_bytes: u32) -> Header {
        Header { request: 5, flags: Flags::from_bits(bits), payload_bytes }
    }

    #[test]
    fn a_header_is_three_numbers_in_the_machines_order() {
        let bytes = Header { request: 5, flags: Flags::request_with_reply(), payload_bytes: 264 }.encode();
        assert_eq!(bytes[..4], 5_u32.to_ne_bytes());
        assert_eq!(bytes[4..8], 9_u32.to_ne_bytes());
        assert_eq!(bytes[8..], 264_u32.to_ne_bytes());
    }

    #[test]
    fn any_bytes_survive_decoding_and_encoding() {
        for bytes in [[0; HEADER_BYTES], [0xff; HEADER_BYTES], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]] {
            assert_eq!(Header::decode(bytes).encode(), bytes);
        }
    }

    #[test]
    fn what_we_make_may_be_sent() {
        for flags in [Flags::request(), Flags::request_with_reply(), Flags::reply()] {
            let header = Header { request: 1, flags, payload_bytes: PAYLOAD_BYTES_MAX };
            assert_eq!(header.check(), Ok(()), "{flags:?}");
        }
    }

    #[test]
    fn another_version_is_refused() {
        for version in [0, 2, 3] {
            assert_eq!(header(version, 0).check(), Err(HeaderError::Version { request: 5, version }));
        }
    }

    #[test]
    fn a_reserved_flag_is_refused_and_named() {
        let error = header(1 | 1 << 31, 0).check().expect_err("bit 31 is reserved");
        assert_eq!(error.to_string(), "message 5 has the reserved flags 0x80000000");
    }

    #[test]
    fn a_reply_never_asks_for_one() {
        assert_eq!(header(0b1101, 0).check(), Err(HeaderError::ReplyToReply { request: 5 }));
    }

    #[test]
    fn a_payload_over_the_bound_is_refused_before_it_is_read() {
        let payload_bytes = PAYLOAD_BYTES_MAX + 1;
        assert_eq!(header(1, payload_bytes).check(), Err(HeaderError::TooLarge { request: 5, payload_bytes }));
        assert!(header(1, u32::MAX).check().is_err());
    }
}

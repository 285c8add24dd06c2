//! Protocol features ("Protocol features" in the specification): messages beyond the basic ones.

use std::fmt;
use std::str::FromStr;

/// A set of protocol features, as it is on the socket: any 64 bits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ProtocolFeatures(u64);

macro_rules! protocol_features {
    ($($(#[doc = $doc:literal])* $name:ident = $bit:literal;)*) => {
        impl ProtocolFeatures {
            $($(#[doc = $doc])* pub const $name: Self = Self(1 << $bit);)*
        }

        /// Every protocol feature there is, with its bit, in the order of bits.
        pub(crate) const PROTOCOL_FEATURES: &[(&str, u32)] = &[$((stringify!($name), $bit)),*];
    };
}

protocol_features! {
    /// `GET_QUEUE_NUM` returns how many queues there are.
    MQ = 0;
    /// The dirty log is shared memory whose descriptor comes with `SET_LOG_BASE`.
    LOG_SHMFD = 1;
    /// `SEND_RARP` announces a guest after a migration.
    RARP = 2;
    /// A message with `need_reply` is answered with 0 or an error.
    REPLY_ACK = 3;
    /// `NET_SET_MTU`.
    NET_MTU = 4;
    /// The backend has a channel for requests of its own.
    BACKEND_REQ = 5;
    /// `SET_VRING_ENDIAN`, for legacy devices.
    CROSS_ENDIAN = 6;
    /// Sessions of crypto devices.
    CRYPTO_SESSION = 7;
    /// Postcopy migration by userfaultfd.
    PAGEFAULT = 8;
    /// `GET_CONFIG` and `SET_CONFIG`.
    CONFIG = 9;
    /// The backend may send descriptors on its channel.
    BACKEND_SEND_FD = 10;
    /// The guest may notify the backend's hardware itself.
    HOST_NOTIFIER = 11;
    /// Requests under way are recorded in shared memory, so that they survive the backend.
    INFLIGHT_SHMFD = 12;
    /// `RESET_DEVICE`.
    RESET_DEVICE = 13;
    /// Kick, call and error as messages; needs `BACKEND_REQ` and `REPLY_ACK`.
    INBAND_NOTIFICATIONS = 14;
    /// `GET_MAX_MEM_SLOTS`, `ADD_MEM_REG` and `REM_MEM_REG` change memory a region at a time.
    CONFIGURE_MEM_SLOTS = 15;
    /// `SET_STATUS` and `GET_STATUS`.
    STATUS = 16;
    /// Memory of Xen guests.
    XEN_MMAP = 17;
    /// Objects shared between devices by UUID.
    SHARED_OBJECT = 18;
    /// The backend's own state can be moved to another host.
    DEVICE_STATE = 19;
    /// `GET_VRING_BASE` may leave requests in the inflight region; needs `INFLIGHT_SHMFD`.
    GET_VRING_BASE_INFLIGHT = 20;
    /// Ring addresses are guest addresses.
    GPA_ADDRESSES = 21;
    /// VIRTIO shared memory regions, filled by the backend.
    SHMEM = 22;
    /// `GET_VRING_BASE_SKIP_DRAIN`; needs `GET_VRING_BASE_INFLIGHT`.
    GET_VRING_BASE_SKIP_DRAIN = 23;
}

/// A name that is no protocol feature's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a protocol feature")]
pub struct UnknownFeature(pub String);

impl ProtocolFeatures {
    /// All that the specification defines.
    pub const ALL: Self = Self((1 << PROTOCOL_FEATURES.len()) - 1);

    /// The empty set.
    pub const fn empty() -> Self {
        Self(0)
    }

    /// The bits as they are, undefined ones too.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits as they are on the socket.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether all of `other` are in it.
    pub(crate) const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What is in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in it and not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The bits that the specification gives no meaning.
    pub const fn undefined(self) -> u64 {
        self.0 & !Self::ALL.0
    }

    /// The names of the set bits, in the order of bits; undefined bits have no name.
    pub(crate) fn names(self) -> impl Iterator<Item = &'static str> {
        PROTOCOL_FEATURES.iter().filter(move |(_, bit)| self.0 >> bit & 1 == 1).map(|(name, _)| *name)
    }
}

impl std::ops::BitOr for ProtocolFeatures {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl FromStr for ProtocolFeatures {
    type Err = UnknownFeature;

    /// One feature by its name, in any case, with `-` or `_`.
    fn from_str(name: &str) -> Result<Self, UnknownFeature> {
        let wanted = name.to_ascii_uppercase().replace('-', "_");
        let found = PROTOCOL_FEATURES.iter().find(|(known, _)| *known == wanted);
        found.map(|(_, bit)| Self(1 << bit)).ok_or_else(|| UnknownFeature(name.to_owned()))
    }
}

impl fmt::Debug for ProtocolFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// `MQ|REPLY_ACK`, `MQ|0x100000000` with undefined bits, `none`.
impl fmt::Display for ProtocolFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = self.names().map(str::to_owned).collect();
        if self.undefined() != 0 {
            words.push(format!("{:#x}", self.undefined()));
        }
        if words.is_empty() { f.write_str("none") } else { f.write_str(&words.join("|")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_has_its_place_and_name() {
        for (place, (name, bit)) in PROTOCOL_FEATURES.iter().enumerate() {
            assert_eq!(place, *bit as usize, "{name}");
            assert_eq!(name.parse::<ProtocolFeatures>().map(ProtocolFeatures::bits), Ok(1 << bit));
        }
        assert_eq!(PROTOCOL_FEATURES.len(), 24);
        assert_eq!(ProtocolFeatures::ALL.bits(), 0x00ff_ffff);
    }

    #[test]
    fn undefined_bits_are_shown_as_they_are() {
        assert_eq!(ProtocolFeatures::from_bits(1 << 32 | 0b1001).to_string(), "MQ|REPLY_ACK|0x100000000");
        assert_eq!(ProtocolFeatures::empty().to_string(), "none");
        assert!("reply-ack".parse::<ProtocolFeatures>().is_ok() && "ACK".parse::<ProtocolFeatures>().is_err());
    }
}

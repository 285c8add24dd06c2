//! Options of a session: its timeouts, and which features it uses.

use std::time::Duration;

use crate::protocol::ProtocolFeatures;
use crate::virtio::feature;

/// How patient a session is.
#[derive(Debug, Clone)]
pub struct Options {
    /// The longest that one message waits for its answer, and a connection for being taken.
    pub timeout: Duration,
    /// Request a reply to every message once `REPLY_ACK` is negotiated.
    pub need_reply: bool,
    /// How long a lost backend is waited for in `Frontend::reconnect`.
    pub reconnect_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), need_reply: true, reconnect_timeout: Duration::from_secs(10) }
    }
}

/// Which features are to be used. What the backend does not offer is left out, unless it is required.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Virtio features to be used.
    pub features: u64,
    /// Virtio features without which there is no session.
    pub required_features: u64,
    /// Protocol features to be used.
    pub protocol_features: ProtocolFeatures,
    /// Protocol features without which there is no session.
    pub required_protocol_features: ProtocolFeatures,
    /// How many bytes of configuration are requested during the handshake. Backends refuse to return more than they
    /// have, so it depends on the kind of device; `None` requests nothing.
    pub config_bytes: Option<u32>,
}

impl Wish {
    /// Protocol features of an ordinary session: what changes how rings or memory are described
    /// (`INBAND_NOTIFICATIONS`, `GPA_ADDRESSES`, `GET_VRING_BASE_INFLIGHT`), or needs a VMM around it (`PAGEFAULT`,
    /// `HOST_NOTIFIER`, `SHMEM`, …), is negotiated only on request.
    pub const USUAL_PROTOCOL_FEATURES: ProtocolFeatures = ProtocolFeatures::MQ
        .union(ProtocolFeatures::LOG_SHMFD)
        .union(ProtocolFeatures::RARP)
        .union(ProtocolFeatures::REPLY_ACK)
        .union(ProtocolFeatures::NET_MTU)
        .union(ProtocolFeatures::BACKEND_REQ)
        .union(ProtocolFeatures::BACKEND_SEND_FD)
        .union(ProtocolFeatures::CRYPTO_SESSION)
        .union(ProtocolFeatures::CONFIG)
        .union(ProtocolFeatures::INFLIGHT_SHMFD)
        .union(ProtocolFeatures::RESET_DEVICE)
        .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
        .union(ProtocolFeatures::STATUS)
        .union(ProtocolFeatures::SHARED_OBJECT)
        .union(ProtocolFeatures::DEVICE_STATE);

    /// The feature bits of a device's own that leave its requests as VIRTIO 1.0 has them.
    const DEVICE_BITS: u64 = (1 << 24) - 1;

    /// Features of an ordinary session with split rings.
    const USUAL_FEATURES: u64 = Self::DEVICE_BITS
        | feature::VERSION_1
        | feature::RING_EVENT_IDX
        | feature::RING_INDIRECT_DESC
        | feature::PROTOCOL_FEATURES;

    /// The protocol features to acknowledge, of those that a backend offers: each only with those that it needs.
    pub(super) fn choose(&self, offered: ProtocolFeatures) -> ProtocolFeatures {
        const NEEDS: [(ProtocolFeatures, ProtocolFeatures); 6] = [
            (ProtocolFeatures::BACKEND_SEND_FD, ProtocolFeatures::BACKEND_REQ),
            (ProtocolFeatures::HOST_NOTIFIER, ProtocolFeatures::BACKEND_REQ),
            (ProtocolFeatures::SHMEM, ProtocolFeatures::BACKEND_REQ),
            (ProtocolFeatures::INBAND_NOTIFICATIONS, ProtocolFeatures::BACKEND_REQ.union(ProtocolFeatures::REPLY_ACK)),
            (ProtocolFeatures::GET_VRING_BASE_INFLIGHT, ProtocolFeatures::INFLIGHT_SHMFD),
            (ProtocolFeatures::GET_VRING_BASE_SKIP_DRAIN, ProtocolFeatures::GET_VRING_BASE_INFLIGHT),
        ];
        let mut chosen = self.protocol_features.union(self.required_protocol_features).intersection(offered);
        for (feature, needed) in NEEDS {
            if !chosen.contains(needed) {
                chosen = chosen.difference(feature);
            }
        }
        chosen
    }
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            features: Self::USUAL_FEATURES,
            required_features: 0,
            protocol_features: Self::USUAL_PROTOCOL_FEATURES,
            required_protocol_features: ProtocolFeatures::empty(),
            config_bytes: None,
        }
    }
}

/// What a handshake came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// Virtio features that the backend offers.
    pub offered_features: u64,
    /// Those that were acknowledged.
    pub features: u64,
    /// Protocol features that the backend offers.
    pub offered_protocol_features: ProtocolFeatures,
    /// Those that were acknowledged.
    pub protocol_features: ProtocolFeatures,
    /// The number of queues that the backend reports (`MQ`).
    pub queues: Option<u64>,
    /// How many pieces guest memory may have (`CONFIGURE_MEM_SLOTS`).
    pub memory_slots: Option<u64>,
    /// The configuration, if it was requested and there is one (`CONFIG`).
    pub config: Option<Vec<u8>>,
}

impl Negotiated {
    /// How many queues a session may use: what the backend reports, within the numbers that messages have; 1 if it
    /// reports nothing.
    pub fn usable_queues(&self) -> u32 {
        u32::try_from(self.queues.unwrap_or(1)).unwrap_or(u32::MAX).clamp(1, 256)
    }

    /// Whether all these virtio features were acknowledged.
    pub(super) const fn has(&self, features: u64) -> bool {
        self.features & features == features
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_is_taken_only_with_those_it_needs() {
        let wish = Wish { protocol_features: ProtocolFeatures::ALL, ..Wish::default() };
        let lonely = ProtocolFeatures::INBAND_NOTIFICATIONS
            | ProtocolFeatures::BACKEND_SEND_FD
            | ProtocolFeatures::GET_VRING_BASE_INFLIGHT
            | ProtocolFeatures::GET_VRING_BASE_SKIP_DRAIN;
        assert_eq!(wish.choose(lonely), ProtocolFeatures::empty());
        let whole =
            lonely | ProtocolFeatures::BACKEND_REQ | ProtocolFeatures::REPLY_ACK | ProtocolFeatures::INFLIGHT_SHMFD;
        assert_eq!(wish.choose(whole), whole);
    }

    #[test]
    fn undefined_bits_are_never_acknowledged_unasked() {
        assert_eq!(Wish::default().choose(ProtocolFeatures::from_bits(u64::MAX)), Wish::USUAL_PROTOCOL_FEATURES);
    }

    #[test]
    fn a_backend_without_a_believable_number_of_queues_gets_one_we_can_name() {
        for (told, usable) in [(None, 1), (Some(0), 1), (Some(3), 3), (Some(u64::MAX), 256)] {
            assert_eq!(Negotiated { queues: told, ..Negotiated::default() }.usable_queues(), usable);
        }
    }
}

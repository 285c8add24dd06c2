//! How a block device is to be driven, and what its configuration has.

use std::time::Duration;

use crate::frontend::{Negotiated, Wish};
use crate::virtio::feature;

/// How a block device is to be driven.
#[derive(Debug, Clone)]
pub struct BlkOptions {
    /// Queues, at most as many as the device has.
    pub queues: u32,
    /// Descriptors of each.
    pub queue_size: u16,
    /// Requests that may be under way in each.
    pub depth: u16,
    /// Data that one request may have.
    pub request_bytes: u32,
    /// The longest piece of memory for a request's data; 0 for the longest that the device takes.
    pub segment_bytes: u32,
    /// Packed rings instead of split ones.
    pub packed: bool,
    /// Indirect descriptors, if the device offers them.
    pub indirect: bool,
    /// Notifications by event index, if the device offers them.
    pub event_idx: bool,
    /// Requests in flight are recorded in an inflight region, if the device offers that.
    pub inflight: bool,
    /// How long a queue looks for requests that are done before it sleeps until it is called.
    pub spin: Duration,
    /// The longest that a request may take.
    pub timeout: Duration,
}

impl Default for BlkOptions {
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 128,
            depth: 32,
            request_bytes: 1 << 20,
            segment_bytes: 0,
            packed: false,
            indirect: true,
            event_idx: true,
            inflight: true,
            spin: Duration::from_micros(100),
            timeout: Duration::from_secs(10),
        }
    }
}

impl BlkOptions {
    /// The handshake that these options need, on the basis of another one.
    #[must_use]
    pub(super) fn wish(&self, mut wish: Wish) -> Wish {
        let mut choose = |wanted: bool, bit: u64| {
            if wanted {
                wish.features |= bit;
            } else {
                wish.features &= !bit;
            }
        };
        choose(self.indirect, feature::RING_INDIRECT_DESC);
        choose(self.event_idx, feature::RING_EVENT_IDX);
        choose(self.packed, feature::RING_PACKED);
        if self.packed {
            wish.required_features |= feature::RING_PACKED;
        }
        wish.config_bytes = wish.config_bytes.or(Some(BlkConfig::BYTES));
        wish
    }
}

/// The configuration of a block device, as far as a driver needs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlkConfig {
    /// Its size in sectors of 512 bytes.
    pub capacity: u64,
    /// The longest piece of memory that it takes, if it has a limit.
    pub size_max: Option<u32>,
    /// The most pieces of memory that it takes in one request, if it has a limit.
    pub seg_max: Option<u32>,
    /// The bytes of its blocks, if it reports them.
    pub block_bytes: Option<u32>,
    /// Its queues, if it reports them.
    pub queues: Option<u16>,
    /// It can't be written.
    pub read_only: bool,
}

impl BlkConfig {
    /// What every device with the features of VIRTIO 1.1 has; older backends return nothing if more is requested.
    const BYTES: u32 = 60;

    /// What a handshake has returned; empty if it returned nothing.
    pub(super) fn of(negotiated: &Negotiated) -> Self {
        let bytes = negotiated.config.as_deref().unwrap_or_default();
        let with = |bit, value: Option<u32>| value.filter(|_| negotiated.has(bit));
        Self {
            capacity: bytes.first_chunk().map_or(0, |capacity| u64::from_le_bytes(*capacity)),
            size_max: with(feature::blk::SIZE_MAX, number(bytes, 8)).filter(|size| *size > 0),
            seg_max: with(feature::blk::SEG_MAX, number(bytes, 12)).filter(|segments| *segments > 0),
            block_bytes: with(feature::blk::BLK_SIZE, number(bytes, 20)),
            queues: number(bytes, 34).filter(|_| negotiated.has(feature::blk::MQ)),
            read_only: negotiated.has(feature::blk::RO),
        }
    }
}

/// The little-endian number at this offset, if it is inside: as many bytes as its type has.
fn number<T: TryFrom<u64>>(bytes: &[u8], at: usize) -> Option<T> {
    let mut wide = [0; 8];
    let size = size_of::<T>();
    wide[..size].copy_from_slice(bytes.get(at..at + size)?);
    T::try_from(u64::from_le_bytes(wide)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fields_whose_feature_was_negotiated_are_believed() {
        let mut config = vec![0xff; 60];
        config[..8].copy_from_slice(&8_u64.to_le_bytes());
        config[20..24].copy_from_slice(&4096_u32.to_le_bytes());
        config[34..36].copy_from_slice(&3_u16.to_le_bytes());
        let features = feature::blk::BLK_SIZE | feature::blk::MQ;
        let negotiated = Negotiated { features, config: Some(config), ..Negotiated::default() };
        let expected = BlkConfig { capacity: 8, block_bytes: Some(4096), queues: Some(3), ..BlkConfig::default() };
        assert_eq!(BlkConfig::of(&negotiated), expected);
        assert_eq!(BlkConfig::of(&Negotiated { config: None, ..negotiated }).capacity, 0);
    }
}

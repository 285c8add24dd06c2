//! What a frontend has sent so far, and what it should not send now.

use super::outcomes::Outcomes;
use super::rules::Rule;
use crate::backend::fault::Offer;
use crate::protocol::{
    FrontendCall, FrontendRequest, Header, MemoryRegion, PackedBase, ProtocolFeatures, VringFile, VringState,
};
use crate::virtio::{DeviceKind, feature, unmet_by_driver};

const FEATURES_OK: u64 = 8;
const DRIVER_OK: u64 = 4;
const PAGE_BYTES: u64 = 4096;

/// A session as a watcher sees it.
#[derive(Debug, Default)]
pub(super) struct SessionView {
    pub offer: Option<Offer>,
    /// What the device is, if that is known.
    kind: Option<DeviceKind>,
    owners: u32,
    asked_protocol: bool,
    features: Option<u64>,
    protocol_features: ProtocolFeatures,
    has_memory: bool,
    status: u64,
    rings: Vec<RingView>,
}

#[derive(Debug, Default, Clone, Copy)]
struct RingView {
    size: bool,
    entries: u32,
    address: bool,
    base: bool,
    enabled: bool,
    runs: bool,
    was_kicked: bool,
}

impl SessionView {
    /// A session with a device of this kind, if that is known.
    pub(super) fn of_device(kind: Option<DeviceKind>) -> Self {
        Self { kind, ..Self::default() }
    }

    /// A message that can be read.
    pub(super) fn message(&mut self, call: &FrontendCall, header: Header, fds: usize, outcomes: &mut Outcomes) {
        let request = call.request();
        let acks = self.protocol_features.contains(ProtocolFeatures::REPLY_ACK);
        if header.flags.needs_reply() {
            let brings_it = matches!(call, FrontendCall::SetProtocolFeatures(message)
                if ProtocolFeatures::from_bits(message.0).contains(ProtocolFeatures::REPLY_ACK));
            outcomes.judge(Rule::NeedReply, acks || brings_it, || {
                format!("{request} has need_reply, but REPLY_ACK was not negotiated")
            });
        }
        match call {
            FrontendCall::SetOwner(_) => {
                self.owners += 1;
                outcomes.held(Rule::Owner);
                outcomes.judge(Rule::OwnerOnce, self.owners == 1, || "SET_OWNER came twice".to_owned());
            }
            FrontendCall::ResetOwner(_) => outcomes.broken(Rule::NoResetOwner, "RESET_OWNER came"),
            FrontendCall::GetProtocolFeatures(_) => {
                self.asked_protocol = true;
                self.judge_protocol_bit(request, outcomes);
            }
            FrontendCall::SetFeatures(message) => self.set_features(message.0, outcomes),
            FrontendCall::SetProtocolFeatures(message) => {
                self.judge_protocol_bit(request, outcomes);
                self.set_protocol_features(ProtocolFeatures::from_bits(message.0), outcomes);
            }
            FrontendCall::SetMemTable(message) => {
                self.has_memory = !message.0.0.is_empty();
                message.0.0.iter().for_each(|region| judge_region(region, outcomes));
            }
            FrontendCall::AddMemReg(message) => {
                self.has_memory = true;
                judge_region(&message.0.0, outcomes);
            }
            FrontendCall::RemMemReg(_) => {
                outcomes.judge(Rule::MemoryNoFd, fds == 0, || "REM_MEM_REG came with a descriptor".to_owned());
            }
            FrontendCall::SetVringNum(message) => self.ring(message.0.index, |ring| {
                ring.size = true;
                ring.entries = message.0.num;
            }),
            FrontendCall::SetVringAddr(message) => self.ring(message.0.index, |ring| ring.address = true),
            FrontendCall::SetVringBase(message) => self.set_base(message.0, outcomes),
            FrontendCall::GetVringBase(message) => judge_stop(request, message.0, outcomes),
            FrontendCall::GetVringBaseSkipDrain(message) => judge_stop(request, message.0, outcomes),
            FrontendCall::SetVringEnable(message) => self.enable(message.0.index, message.0.num, outcomes),
            FrontendCall::SetVringKick(message) => {
                judge_file(message.0, fds, outcomes);
                self.judge_start(message.0.index, outcomes);
            }
            FrontendCall::SetVringCall(message) => judge_file(message.0, fds, outcomes),
            FrontendCall::SetVringErr(message) => judge_file(message.0, fds, outcomes),
            FrontendCall::SetStatus(message) => {
                let becomes_ready = message.0 & DRIVER_OK != 0 && self.status & DRIVER_OK == 0;
                // QEMU sets both at once, which is in order.
                let accepted = (self.status | message.0) & FEATURES_OK != 0 || self.features.is_some();
                if becomes_ready {
                    outcomes.judge(Rule::StatusOrder, accepted, || {
                        format!("status {:#x} has DRIVER_OK without FEATURES_OK", message.0)
                    });
                }
                self.status = message.0;
            }
            _ => {}
        }
    }

    /// A ring runs. Its worker may have seen a kick just before that is known here.
    pub(super) fn started(&mut self, queue: u16) {
        self.ring(queue.into(), |ring| ring.runs = true);
    }

    /// A ring was stopped.
    pub(super) fn stopped(&mut self, queue: u16, outcomes: &mut Outcomes) {
        outcomes.held(Rule::StopFirst);
        let negotiated = self.features.unwrap_or(0) & feature::PROTOCOL_FEATURES != 0;
        self.ring(queue.into(), |ring| {
            if ring.was_kicked {
                outcomes.judge(Rule::EnableComes, ring.enabled || !negotiated, || {
                    format!("ring {queue} was kicked and stopped, but never enabled")
                });
            } else {
                outcomes.broken(Rule::RingKick, format!("ring {queue} was started and stopped without a kick"));
            }
            *ring = RingView { enabled: ring.enabled, ..RingView::default() };
        });
    }

    /// A ring was kicked.
    pub(super) fn kicked(&mut self, queue: u16, outcomes: &mut Outcomes) {
        outcomes.held(Rule::RingKick);
        outcomes.held(Rule::RingEvent);
        outcomes.held(Rule::DataIndex);
        outcomes.held(Rule::DataDescriptors);
        outcomes.held(Rule::DataOrder);
        outcomes.held(Rule::DataBuffers);
        outcomes.held(Rule::MemoryStays);
        if self.features.unwrap_or(0) & feature::RING_INDIRECT_DESC != 0 {
            outcomes.held(Rule::DataIndirect);
        }
        self.ring(queue.into(), |ring| ring.was_kicked = true);
    }

    /// The frontend has disconnected on its own.
    pub(super) fn left(&self, outcomes: &mut Outcomes) {
        if self.features.is_some() && self.owners == 0 {
            outcomes.broken(Rule::Owner, "features were negotiated, but SET_OWNER never came");
        }
        for (ring, place) in self.rings.iter().zip(0..) {
            if ring.runs {
                let because = format!("the frontend disconnected while ring {place} was running");
                outcomes.broken(Rule::StopFirst, because);
            }
        }
    }

    fn ring(&mut self, index: u32, change: impl FnOnce(&mut RingView)) {
        // A backend has at most 256 queues; what is beyond them is refused.
        let Ok(place) = u8::try_from(index).map(usize::from) else { return };
        if self.rings.len() <= place {
            self.rings.resize(place + 1, RingView::default());
        }
        change(&mut self.rings[place]);
    }

    fn judge_protocol_bit(&self, request: FrontendRequest, outcomes: &mut Outcomes) {
        let offers = self.offer.is_none_or(|offer| offer.features & feature::PROTOCOL_FEATURES != 0);
        outcomes.judge(Rule::ProtocolBit, offers, || format!("{request} came, but bit 30 was not offered"));
    }

    fn set_features(&mut self, features: u64, outcomes: &mut Outcomes) {
        let never = features & !self.offer.map_or(u64::MAX, |offer| offer.features);
        outcomes.judge(Rule::FeaturesOffered, never == 0, || format!("the bits {never:#x} were not offered"));
        if self.rings.iter().any(|ring| ring.runs) {
            let changed = (features ^ self.features.unwrap_or(0)) & !feature::LOG_ALL;
            outcomes.judge(Rule::FeaturesStay, changed == 0, || {
                format!("the bits {changed:#x} changed while a ring was running")
            });
        }
        if let Some(kind) = self.kind {
            let unmet = unmet_by_driver(kind, features);
            outcomes.judge(Rule::FeaturesNeed, unmet.is_empty(), || {
                let words: Vec<_> = unmet.iter().map(ToString::to_string).collect();
                format!("SET_FEATURES accepts {}", words.join(", "))
            });
        }
        self.features = Some(features);
    }

    fn set_base(&mut self, state: VringState, outcomes: &mut Outcomes) {
        let VringState { index, num } = state;
        let is_packed = self.features.is_some_and(|features| features & feature::RING_PACKED != 0);
        let mut entries = 0;
        self.ring(index, |ring| {
            ring.base = true;
            entries = ring.entries;
        });
        if is_packed {
            // Of a ring whose size is not known yet any place may be inside.
            let base = PackedBase::from_bits(num);
            let is_inside = entries == 0 || base.is_inside(entries);
            // That a whole lap is under way in a ring that has just been set up is nothing a driver does: the frontend has
            // left the upper half out.
            let is_half = num == PackedBase::START.bits() & 0xffff;
            outcomes.judge(Rule::RingBaseValue, is_inside && !is_half, || {
                format!("the packed ring {index} has {entries} entries, but SET_VRING_BASE is {base}")
            });
        } else {
            outcomes.judge(Rule::RingBaseValue, num <= 0xffff, || {
                format!("SET_VRING_BASE of the split ring {index} is {num:#x}, but bits 16 to 31 are reserved")
            });
        }
    }

    fn set_protocol_features(&mut self, features: ProtocolFeatures, outcomes: &mut Outcomes) {
        outcomes.judge(Rule::ProtocolAsked, self.asked_protocol, || "GET_PROTOCOL_FEATURES did not come".to_owned());
        let offered = self.offer.map_or(ProtocolFeatures::ALL, |offer| offer.protocol_features);
        let never = features.difference(offered);
        outcomes
            .judge(Rule::ProtocolOffered, never == ProtocolFeatures::empty(), || format!("{never} was not offered"));
        if features.contains(ProtocolFeatures::INBAND_NOTIFICATIONS) {
            let needs = ProtocolFeatures::BACKEND_REQ | ProtocolFeatures::REPLY_ACK;
            outcomes.judge(Rule::ProtocolNeeds, features.contains(needs), || {
                format!("INBAND_NOTIFICATIONS without {}", needs.difference(features))
            });
        }
        self.protocol_features = features;
    }

    fn enable(&mut self, index: u32, value: u32, outcomes: &mut Outcomes) {
        outcomes.judge(Rule::EnableValue, value <= 1, || format!("SET_VRING_ENABLE of ring {index} is {value}"));
        let negotiated = self.features.is_some_and(|features| features & feature::PROTOCOL_FEATURES != 0);
        outcomes.judge(Rule::EnableNegotiated, negotiated, || {
            format!("SET_VRING_ENABLE of ring {index} came before bit 30 was negotiated")
        });
        self.ring(index, |ring| ring.enabled |= value == 1);
    }

    fn judge_start(&mut self, index: u8, outcomes: &mut Outcomes) {
        let (has_features, has_memory) = (self.features.is_some(), self.has_memory);
        outcomes.judge(Rule::FeaturesFirst, has_features, || format!("ring {index} starts before SET_FEATURES"));
        outcomes.judge(Rule::MemoryFirst, has_memory, || format!("ring {index} starts without memory"));
        self.ring(index.into(), |ring| {
            if ring.runs {
                return;
            }
            outcomes.judge(Rule::RingBase, ring.base, || format!("ring {index} starts without SET_VRING_BASE"));
            outcomes.judge(Rule::RingOrder, ring.size && ring.address, || {
                format!("SET_VRING_KICK of ring {index} came before SET_VRING_NUM and SET_VRING_ADDR")
            });
            outcomes.held(Rule::RingIndex);
            outcomes.held(Rule::RingInside);
            outcomes.held(Rule::RingAligned);
            outcomes.held(Rule::RingSize);
            outcomes.held(Rule::RingStays);
        });
    }
}

fn judge_region(region: &MemoryRegion, outcomes: &mut Outcomes) {
    for rule in [Rule::MemoryFits, Rule::MemoryApart, Rule::MemorySlots] {
        outcomes.held(rule);
    }
    let is_whole =
        [region.guest_address, region.size, region.user_address].iter().all(|n| n.is_multiple_of(PAGE_BYTES));
    outcomes.judge(Rule::MemoryPages, is_whole, || {
        let MemoryRegion { guest_address, size, user_address, .. } = region;
        format!(
            "the region at {guest_address:#x} ({user_address:#x}) with {size:#x} bytes does not consist of whole pages"
        )
    });
}

fn judge_stop(request: FrontendRequest, state: VringState, outcomes: &mut Outcomes) {
    outcomes
        .judge(Rule::StopNum, state.num == 0, || format!("{request} of ring {} has num {}", state.index, state.num));
}

fn judge_file(file: VringFile, fds: usize, outcomes: &mut Outcomes) {
    outcomes
        .judge(Rule::RingReserved, file.reserved == 0, || format!("the reserved bits {:#x} are set", file.reserved));
    let expected = usize::from(!file.no_descriptor);
    outcomes.judge(Rule::RingFlag, fds == expected, || {
        format!("the message has {fds} descriptors, but bit 8 requires {expected}")
    });
}

//! The rules that a frontend is to follow, as far as a backend can see it.

use crate::check::Level;

/// A rule: its id, how binding it is, the specification's heading, and why it matters.
#[derive(Debug, Clone, Copy)]
pub(super) struct About {
    pub id: &'static str,
    pub level: Level,
    pub section: &'static str,
    pub reason: &'static str,
}

macro_rules! rules {
    ($($rule:ident = $id:literal $level:ident $section:literal $reason:literal;)*) => {
        /// A rule that a frontend is to follow.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) enum Rule {
            $($rule,)*
        }

        impl Rule {
            /// Every rule, in the order of a report.
            pub(super) const ALL: &[Self] = &[$(Self::$rule,)*];

            /// Its id, level, section and reason.
            pub(super) const fn about(self) -> About {
                match self {
                    $(Self::$rule => About { id: $id, level: Level::$level, section: $section, reason: $reason },)*
                }
            }
        }
    };
}

rules! {
    Owner = "handshake.owner" Should "VHOST_USER_SET_OWNER"
        "a backend may start the session only at this message";
    OwnerOnce = "handshake.owner-once" Should "VHOST_USER_SET_OWNER"
        "a session has one owner";
    NoResetOwner = "handshake.no-reset-owner" Should "VHOST_USER_RESET_OWNER"
        "backends differ in which state this message resets";
    Header = "messages.header" Must "Header"
        "with a wrong header a backend cannot find the start of the next message";
    Known = "messages.known" Must "Front-end message types"
        "backends close the connection on unknown messages";
    Payload = "messages.payload" Must "Payload"
        "a payload of another size cannot be decoded";
    Descriptors = "messages.descriptors" Must "Communication"
        "surplus descriptors may leak, and missing ones cannot be replaced";
    NoReply = "messages.no-reply" Must "Header"
        "only a backend sends replies on this connection";
    NeedReply = "messages.need-reply" Must "VHOST_USER_PROTOCOL_F_REPLY_ACK"
        "without the feature the backend sends no reply, and the frontend waits forever";
    Whole = "messages.whole" Must "Communication"
        "a backend discards a message that is not complete";
    InTime = "messages.in-time" Should "Communication"
        "a backend that waits for the rest of a message may serve nothing else";
    FeaturesOffered = "features.offered" Must "VHOST_USER_SET_FEATURES"
        "the driver would use a feature that the device does not have";
    FeaturesNeed = "features.requirements" Must "VIRTIO 1.2, 2.2.1 Driver Requirements: Feature Bits"
        "a driver \"MUST NOT accept a feature which requires another feature which was not accepted\"";
    FeaturesFirst = "features.before-rings" Must "Ring states"
        "the layout of a ring depends on the features";
    FeaturesStay = "features.stay" Must "Migration"
        "only logging may change while a ring runs";
    ProtocolBit = "features.protocol-bit" Must "VHOST_USER_GET_PROTOCOL_FEATURES"
        "a backend without bit 30 does not implement the message";
    ProtocolAsked = "features.protocol-asked" Should "VHOST_USER_SET_PROTOCOL_FEATURES"
        "GET_PROTOCOL_FEATURES is the only way to know what the backend offers";
    ProtocolOffered = "features.protocol-offered" Must "VHOST_USER_SET_PROTOCOL_FEATURES"
        "a protocol feature that was not offered cannot be negotiated";
    ProtocolNeeds = "features.protocol-needs" Must "In-band notifications"
        "in-band notifications require BACKEND_REQ and REPLY_ACK";
    Negotiated = "features.negotiated" Must "Protocol features"
        "a backend does not implement the messages of features that were not negotiated";
    MemoryFirst = "memory.before-rings" Must "Memory access"
        "a ring is in guest memory, which the backend must have first";
    MemoryFits = "memory.fits-its-file" Must "Memory regions description"
        "memory beyond the end of its file cannot be accessed";
    MemoryApart = "memory.regions-apart" Must "Memory access"
        "an address in two regions is ambiguous";
    MemoryPages = "memory.whole-pages" Should "Memory regions description"
        "memory is mapped in whole pages";
    MemorySlots = "memory.slots" Must "VHOST_USER_GET_MAX_MEM_SLOTS"
        "a backend accepts at most as many regions as GET_MAX_MEM_SLOTS returns";
    MemoryKnown = "memory.removes-what-is-there" Must "VHOST_USER_REM_MEM_REG"
        "a region is identified by its guest address, user address and size";
    MemoryNoFd = "memory.removes-without-descriptor" Should "VHOST_USER_REM_MEM_REG"
        "a backend may close the connection";
    MemoryStays = "memory.stays" Must "Memory access"
        "truncating the memory's file removes the memory of its rings";
    RingIndex = "rings.index" Must "Multiple queue support"
        "a backend has only as many queues as GET_QUEUE_NUM returns";
    RingSize = "rings.size" Must "VHOST_USER_SET_VRING_NUM"
        "the size of a split ring is a power of 2, that of any ring at most 32768";
    RingInside = "rings.address-inside" Must "A vring address description"
        "a ring outside guest memory cannot be accessed";
    RingAligned = "rings.address-aligned" Must "A vring address description"
        "a backend reads the fields of a ring with aligned accesses";
    RingBase = "rings.base" Should "VHOST_USER_SET_VRING_BASE"
        "a backend that has served the ring before may continue at another index";
    RingBaseValue = "rings.base-value" Must "VHOST_USER_SET_VRING_BASE"
        "a split ring has a 16-bit available index; a packed ring has two indices inside the ring and two wrap \
         counters";
    RingOrder = "rings.set-up-first" Should "Ring states"
        "the kick descriptor starts the ring, so its size and addresses must be set before";
    RingStays = "rings.stay" Must "Ring states"
        "a running ring keeps its size, addresses and indices";
    RingFlag = "rings.descriptor-flag" Must "VHOST_USER_SET_VRING_KICK"
        "bit 8 is set if and only if the message has no descriptor";
    RingReserved = "rings.reserved-bits" Must "VHOST_USER_SET_VRING_KICK"
        "reserved bits may get a meaning";
    RingKick = "rings.kick-after-start" Should "Ring states"
        "some backends start a ring only at its first kick";
    RingEvent = "rings.event-descriptor" Must "VHOST_USER_SET_VRING_KICK"
        "a backend cannot wait for this file, or its wait returns at once forever";
    EnableValue = "rings.enable-value" Must "VHOST_USER_SET_VRING_ENABLE"
        "the value is 0 or 1";
    EnableNegotiated = "rings.enable-negotiated" Should "VHOST_USER_SET_VRING_ENABLE"
        "the message is undefined before VHOST_USER_F_PROTOCOL_FEATURES is negotiated";
    EnableComes = "rings.enable-comes" Must "Ring states"
        "with VHOST_USER_F_PROTOCOL_FEATURES a ring starts disabled";
    StopNum = "rings.stop-num" Must "VHOST_USER_GET_VRING_BASE"
        "the num of the request is reserved and \"must be set to 0\"";
    StopFirst = "rings.stop-before-close" Should "VHOST_USER_GET_VRING_BASE"
        "a backend may write to memory until the ring is stopped";
    DataIndex = "data.available-index" Must "Split virtqueue"
        "at most as many entries as the ring has can be available";
    DataDescriptors = "data.descriptors" Must "Split virtqueue"
        "a chain must end, and must be inside its table";
    DataOrder = "data.readable-first" Must "Split virtqueue"
        "the readable buffers of a chain come before the writable ones";
    DataBuffers = "data.buffers-inside" Must "Memory access"
        "a buffer outside guest memory cannot be accessed";
    DataIndirect = "data.indirect" Must "Split virtqueue"
        "an indirect table needs INDIRECT_DESC and consists of whole descriptors";
    ConfigRange = "config.range" Must "VHOST_USER_GET_CONFIG"
        "the configuration space has at most 256 bytes";
    ConfigWrite = "config.write" Must "VHOST_USER_SET_CONFIG"
        "a driver writes only writable fields";
    InflightShape = "inflight.shape" Must "Inflight description"
        "the region has a record for each queue, of its size";
    BackendChannel = "backend-channel.socket" Must "VHOST_USER_SET_BACKEND_REQ_FD"
        "the backend's own requests need a stream socket";
    LogInside = "log.fits-its-file" Must "Migration"
        "a page that cannot be marked is lost in the migration";
    StatusOrder = "status.order" Should "VHOST_USER_SET_STATUS"
        "a driver sets DRIVER_OK only after its features were accepted";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_rule_has_an_id_of_its_own_with_a_group() {
        let ids: BTreeSet<_> = Rule::ALL.iter().map(|rule| rule.about().id).collect();
        assert_eq!(ids.len(), Rule::ALL.len());
        assert!(
            ids.iter().all(|id| id.split_once('.').is_some_and(|(group, name)| !group.is_empty() && !name.is_empty()))
        );
        assert!(Rule::ALL.len() >= 25, "{}", Rule::ALL.len());
    }

    #[test]
    fn every_rule_is_listed_with_its_section_and_reason() {
        let lines = Rule::ALL.iter().map(|rule| {
            let About { id, level, section, reason } = rule.about();
            format!("{level} {id}\n    {section}\n    {reason}\n")
        });
        insta::assert_snapshot!(lines.collect::<String>());
    }
}

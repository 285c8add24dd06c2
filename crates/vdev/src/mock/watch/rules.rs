//! The rules that a frontend is to follow, as far as a backend can see it.

use crate::check::Level;

/// A rule: its id, how binding it is, the specification's heading, and why it matters.
#[derive(Debug, Clone, Copy)]
pub struct About {
    pub id: &'static str,
    pub level: Level,
    pub section: &'static str,
    pub reason: &'static str,
}

macro_rules! rules {
    ($($rule:ident = $id:literal $level:ident $section:literal $reason:literal;)*) => {
        /// A rule that a frontend is to follow.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Rule {
            $($rule,)*
        }

        impl Rule {
            /// Every rule, in the order of a report.
            pub const ALL: &[Self] = &[$(Self::$rule,)*];

            /// What it says.
            pub const fn about(self) -> About {
                match self {
                    $(Self::$rule => About { id: $id, level: Level::$level, section: $section, reason: $reason },)*
                }
            }
        }
    };
}

rules! {
    Owner = "handshake.owner" Should "VHOST_USER_SET_OWNER"
        "a backend may take it for the start of the session";
    OwnerOnce = "handshake.owner-once" Should "VHOST_USER_SET_OWNER"
        "a session has one owner";
    NoResetOwner = "handshake.no-reset-owner" Should "VHOST_USER_RESET_OWNER"
        "backends differ in what they forget when it comes";
    Header = "messages.header" Must "Header"
        "a backend can't tell where the next message begins";
    Known = "messages.known" Must "Front-end message types"
        "a backend closes the connection";
    Payload = "messages.payload" Must "Payload"
        "another size is another message";
    Descriptors = "messages.descriptors" Must "Communication"
        "descriptors that belong to no message leak, and those that are missing can't be guessed";
    NoReply = "messages.no-reply" Must "Header"
        "a frontend asks, a backend answers";
    NeedReply = "messages.need-reply" Must "VHOST_USER_PROTOCOL_F_REPLY_ACK"
        "without the feature nobody answers, and the frontend waits for ever";
    Whole = "messages.whole" Must "Communication"
        "a message that ends in the middle was never sent";
    InTime = "messages.in-time" Should "Communication"
        "a backend that waits in the middle of a message serves nobody";
    FeaturesOffered = "features.offered" Must "VHOST_USER_SET_FEATURES"
        "the device does not do what the driver believes";
    FeaturesNeed = "features.requirements" Must "VIRTIO 1.2, 2.2.1 Driver Requirements: Feature Bits"
        "a driver \"MUST NOT accept a feature which requires another feature which was not accepted\"";
    FeaturesFirst = "features.before-rings" Must "Ring states"
        "the layout of a ring depends on them";
    FeaturesStay = "features.stay" Must "Migration"
        "only logging may change while a ring runs";
    ProtocolBit = "features.protocol-bit" Must "VHOST_USER_GET_PROTOCOL_FEATURES"
        "a backend without the bit does not know the message";
    ProtocolAsked = "features.protocol-asked" Should "VHOST_USER_SET_PROTOCOL_FEATURES"
        "whoever does not ask can't know what there is";
    ProtocolOffered = "features.protocol-offered" Must "VHOST_USER_SET_PROTOCOL_FEATURES"
        "what was not offered can't be negotiated";
    ProtocolNeeds = "features.protocol-needs" Must "In-band notifications"
        "in-band notifications need a channel back, and answers";
    Negotiated = "features.negotiated" Must "Protocol features"
        "a message of a feature that was not negotiated is not understood";
    MemoryFirst = "memory.before-rings" Must "Memory access"
        "a ring lies in memory that must be known";
    MemoryFits = "memory.fits-its-file" Must "Memory regions description"
        "what lies beyond the file's end can't be reached";
    MemoryApart = "memory.regions-apart" Must "Memory access"
        "an address must lead to one place";
    MemoryPages = "memory.whole-pages" Should "Memory regions description"
        "memory is shared by the page";
    MemorySlots = "memory.slots" Must "VHOST_USER_GET_MAX_MEM_SLOTS"
        "a backend has said how many regions it takes";
    MemoryKnown = "memory.removes-what-is-there" Must "VHOST_USER_REM_MEM_REG"
        "a region is named by its guest address, user address and size";
    MemoryNoFd = "memory.removes-without-descriptor" Should "VHOST_USER_REM_MEM_REG"
        "a backend may close the connection";
    MemoryStays = "memory.stays" Must "Memory access"
        "a file that is cut short takes a ring's memory away";
    RingIndex = "rings.index" Must "Multiple queue support"
        "a backend has said how many queues it has";
    RingSize = "rings.size" Must "VHOST_USER_SET_VRING_NUM"
        "a split ring has a power of two, no ring more than 32768";
    RingInside = "rings.address-inside" Must "A vring address description"
        "a ring outside memory can't be reached";
    RingAligned = "rings.address-aligned" Must "A vring address description"
        "a ring's parts are read by whole numbers";
    RingBase = "rings.base" Should "VHOST_USER_SET_VRING_BASE"
        "a backend that has served the ring before may begin elsewhere";
    RingBaseValue = "rings.base-value" Must "VHOST_USER_SET_VRING_BASE"
        "the base of a split ring has 16 bits, that of a packed ring two indices inside the ring";
    RingOrder = "rings.set-up-first" Should "Ring states"
        "the kick descriptor starts the ring, which must be complete by then";
    RingStays = "rings.stay" Must "Ring states"
        "a ring that runs keeps its size, place and base";
    RingFlag = "rings.descriptor-flag" Must "VHOST_USER_SET_VRING_KICK"
        "bit 8 says whether a descriptor comes along";
    RingReserved = "rings.reserved-bits" Must "VHOST_USER_SET_VRING_KICK"
        "bits without a meaning may get one";
    RingKick = "rings.kick-after-start" Should "Ring states"
        "some backends start a ring at its first kick alone";
    RingEvent = "rings.event-descriptor" Must "VHOST_USER_SET_VRING_KICK"
        "what can't be waited for wakes nobody, or wakes for ever";
    EnableValue = "rings.enable-value" Must "VHOST_USER_SET_VRING_ENABLE"
        "it is 0 or 1";
    EnableNegotiated = "rings.enable-negotiated" Should "VHOST_USER_SET_VRING_ENABLE"
        "it means nothing before VHOST_USER_F_PROTOCOL_FEATURES is negotiated";
    EnableComes = "rings.enable-comes" Must "Ring states"
        "with VHOST_USER_F_PROTOCOL_FEATURES a ring begins disabled";
    StopNum = "rings.stop-num" Must "VHOST_USER_GET_VRING_BASE"
        "the num of the request is reserved and \"must be set to 0\"";
    StopFirst = "rings.stop-before-close" Should "VHOST_USER_GET_VRING_BASE"
        "a backend may write to memory until the ring is stopped";
    DataIndex = "data.available-index" Must "Split virtqueue"
        "more entries than the ring has can't be available";
    DataDescriptors = "data.descriptors" Must "Split virtqueue"
        "a chain must end, and lie in its table";
    DataOrder = "data.readable-first" Must "Split virtqueue"
        "what a device reads stands before what it writes";
    DataBuffers = "data.buffers-inside" Must "Memory access"
        "a buffer outside memory can't be reached";
    DataIndirect = "data.indirect" Must "Split virtqueue"
        "an indirect table was negotiated, and is made of whole descriptors";
    ConfigRange = "config.range" Must "VHOST_USER_GET_CONFIG"
        "the configuration space has 256 bytes";
    ConfigWrite = "config.write" Must "VHOST_USER_SET_CONFIG"
        "a driver writes writable fields alone";
    InflightShape = "inflight.shape" Must "Inflight description"
        "there is a record for each queue, of its size";
    BackendChannel = "backend-channel.socket" Must "VHOST_USER_SET_BACKEND_REQ_FD"
        "the backend's own requests need a stream of bytes";
    LogInside = "log.fits-its-file" Must "Migration"
        "a page that can't be marked is lost";
    StatusOrder = "status.order" Should "VHOST_USER_SET_STATUS"
        "a driver is ready only after its features were accepted";
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
}

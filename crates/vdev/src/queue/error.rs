//! What can be wrong with a ring: its set-up, and each way in which the other side can break its protocol.

/// Why a ring can't go on. Each names the ring.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// No ring has this size.
    #[error("ring {ring} cannot have {size} descriptors")]
    Size {
        /// The ring.
        ring: u32,
        /// The size.
        size: u16,
    },
    /// A part of the ring is not in guest memory.
    #[error("ring {ring} is not in guest memory: {bytes} bytes of `{part}` at {address:#x}")]
    RingOutside {
        /// The ring.
        ring: u32,
        /// Which part.
        part: &'static str,
        /// Where it would begin.
        address: u64,
        /// Its bytes.
        bytes: usize,
    },
    /// A part of the ring is at an address that it can't have.
    #[error("ring {ring} is not aligned: `{part}` at {address:#x} is not at a multiple of {alignment}")]
    Unaligned {
        /// The ring.
        ring: u32,
        /// Which part.
        part: &'static str,
        /// Where it begins.
        address: u64,
        /// Of what it should be a multiple.
        alignment: u64,
    },
    /// A place in the ring that it doesn't have.
    #[error("ring {ring} cannot begin at index {base:#x}")]
    Base {
        /// The ring.
        ring: u32,
        /// The base, as `SET_VRING_BASE` has it.
        base: u32,
    },
    /// A peer has truncated the memory of the ring or of its buffers.
    #[error("the memory of ring {ring} was truncated")]
    Cut {
        /// The ring.
        ring: u32,
    },

    // What a device finds.
    /// The available index has a value that it can't have.
    #[error("the available index of ring {ring} jumped from {from} to {to}, by more than its {size} descriptors")]
    AvailableJump {
        /// The ring.
        ring: u32,
        /// The next entry to take.
        from: u16,
        /// The index.
        to: u16,
        /// The ring's size.
        size: u16,
    },
    /// A descriptor that is not in its table.
    #[error("ring {ring} refers to descriptor {descriptor} of {size}")]
    Descriptor {
        /// The ring.
        ring: u32,
        /// The descriptor.
        descriptor: u16,
        /// How many there are.
        size: usize,
    },
    /// More descriptors are in a chain than there are.
    #[error("the chain at descriptor {head} of ring {ring} does not end")]
    Endless {
        /// The ring.
        ring: u32,
        /// Its first descriptor.
        head: u16,
    },
    /// A chain that takes descriptors which were made available before, and were not used since.
    #[error("the chain at descriptor {head} of ring {ring} is available twice")]
    AvailableTwice {
        /// The ring.
        ring: u32,
        /// Its first descriptor.
        head: u16,
    },
    /// A chain that was made available before all of it was.
    #[error("the chain at descriptor {head} of ring {ring} continues with a descriptor that is not available")]
    Unfinished {
        /// The ring.
        ring: u32,
        /// Its first descriptor.
        head: u16,
    },
    /// A buffer to be read stands behind one to be written.
    #[error("the chain at descriptor {head} of ring {ring} has a readable buffer after a writable one")]
    ReadableBehindWritable {
        /// The ring.
        ring: u32,
        /// Its first descriptor.
        head: u16,
    },
    /// A chain of more than 4 GiB.
    #[error("the chain at descriptor {head} of ring {ring} has more than 4 GiB")]
    TooLong {
        /// The ring.
        ring: u32,
        /// Its first descriptor.
        head: u16,
    },
    /// A chain of more buffers than a device takes.
    #[error("the chain at descriptor {head} of ring {ring} has more than {max} buffers")]
    TooManyBuffers {
        /// The ring.
        ring: u32,
        /// Its first descriptor.
        head: u16,
        /// How many it may have.
        max: usize,
    },
    /// A buffer that is not in guest memory.
    #[error("a buffer of ring {ring} is not in guest memory: {bytes} bytes at {address:#x}")]
    BufferOutside {
        /// The ring.
        ring: u32,
        /// Its guest address.
        address: u64,
        /// Its bytes.
        bytes: u32,
    },
    /// An indirect table, and indirect tables were not negotiated.
    #[error("ring {ring} has an indirect table, which was not negotiated")]
    IndirectNotNegotiated {
        /// The ring.
        ring: u32,
    },
    /// An indirect table in the middle of a chain.
    #[error("ring {ring} has a chain that continues after an indirect table")]
    IndirectWithNext {
        /// The ring.
        ring: u32,
    },
    /// An indirect table in an indirect table.
    #[error("ring {ring} has an indirect table in an indirect table")]
    IndirectNested {
        /// The ring.
        ring: u32,
    },
    /// An indirect table that is not made of descriptors, or of too many.
    #[error("ring {ring} has an indirect table of {bytes} bytes, not of 1 to {max} descriptors")]
    IndirectSize {
        /// The ring.
        ring: u32,
        /// Its bytes.
        bytes: u32,
        /// Descriptors that it may have.
        max: usize,
    },

    // What a driver finds.
    /// There is no room for the request now; there is when others have come back.
    #[error("ring {ring} is full")]
    Full {
        /// The ring.
        ring: u32,
    },
    /// A request that never fits: it has no buffers, or too many.
    #[error("a request of {buffers} buffers does not fit ring {ring}, which takes 1 to {max}")]
    Buffers {
        /// The ring.
        ring: u32,
        /// Its buffers.
        buffers: usize,
        /// What a request may have.
        max: usize,
    },
    /// The used index has a value that it can't have.
    #[error("the used index of ring {ring} jumped from {from} to {to}, but {outstanding} are in flight")]
    UsedJump {
        /// The ring.
        ring: u32,
        /// The next entry to take.
        from: u16,
        /// The index.
        to: u16,
        /// How many can be used at most.
        outstanding: u16,
    },
    /// Something was used that the device does not have.
    #[error("ring {ring} returned {id}, which is not in flight")]
    UnknownId {
        /// The ring.
        ring: u32,
        /// The descriptor, or the buffer's id in a packed ring.
        id: u32,
    },
    /// More was written than there was room for.
    #[error("ring {ring} returned {written} bytes written to {id}, which has room for {writable}")]
    UsedLength {
        /// The ring.
        ring: u32,
        /// The descriptor, or the buffer's id in a packed ring.
        id: u16,
        /// The device's value.
        written: u32,
        /// What there was room for.
        writable: u64,
    },
    /// The process has no descriptors left for its events.
    #[error("no descriptors are left for the events of ring {ring}")]
    NoEvents {
        /// The ring.
        ring: u32,
    },
    /// An arena has no room left.
    #[error("an arena has no room for {bytes} bytes, {left} are left")]
    ArenaFull {
        /// The requested shape.
        bytes: usize,
        /// What it has.
        left: u64,
    },

    // What a backend finds in the memory for requests in flight.
    /// It can't be mapped, or is too short.
    #[error("the inflight region is not a record of {queues} queues of {size}: {reason}")]
    InflightRegion {
        /// Queues.
        queues: u16,
        /// Entries of each.
        size: u16,
        /// Why.
        reason: String,
    },
    /// What is recorded of a ring can't be.
    #[error("the inflight region has an invalid record of ring {ring}: {reason}")]
    Inflight {
        /// The ring.
        ring: u32,
        /// Why.
        reason: &'static str,
    },
}

impl QueueError {
    /// The ring that it is about, if any.
    pub(crate) const fn ring(&self) -> Option<u32> {
        match self {
            Self::Size { ring, .. }
            | Self::RingOutside { ring, .. }
            | Self::Unaligned { ring, .. }
            | Self::Base { ring, .. }
            | Self::Cut { ring, .. }
            | Self::AvailableJump { ring, .. }
            | Self::Descriptor { ring, .. }
            | Self::Endless { ring, .. }
            | Self::AvailableTwice { ring, .. }
            | Self::Unfinished { ring, .. }
            | Self::ReadableBehindWritable { ring, .. }
            | Self::TooLong { ring, .. }
            | Self::TooManyBuffers { ring, .. }
            | Self::BufferOutside { ring, .. }
            | Self::IndirectNotNegotiated { ring, .. }
            | Self::IndirectWithNext { ring, .. }
            | Self::IndirectNested { ring, .. }
            | Self::IndirectSize { ring, .. }
            | Self::Full { ring, .. }
            | Self::Buffers { ring, .. }
            | Self::UsedJump { ring, .. }
            | Self::UnknownId { ring, .. }
            | Self::UsedLength { ring, .. }
            | Self::NoEvents { ring, .. }
            | Self::Inflight { ring, .. } => Some(*ring),
            Self::ArenaFull { .. } | Self::InflightRegion { .. } => None,
        }
    }
}

//! What stands behind a header ("Payload" in the specification). Each type decodes exactly what it encodes; decoding
//! takes any bytes and allocates no more than they hold.

use std::fmt;

use super::header::PAYLOAD_BYTES_MAX;

/// Regions of one memory table.
pub const REGIONS_MAX: usize = 8;
/// Descriptors that one message may carry.
#[cfg(feature = "testing")]
pub const DESCRIPTORS_MAX: usize = 8;

/// The bytes of a message after its header.
pub trait Payload: Sized {
    /// Appends the bytes.
    fn encode(&self, to: &mut Vec<u8>);

    /// Decodes these bytes.
    ///
    /// # Errors
    /// If they are too few, too many, or contradict themselves.
    fn decode(bytes: &[u8]) -> Result<Self, PayloadError>;
}

/// Why bytes are no payload of the kind that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Another number of bytes.
    #[error("the payload has {found} bytes, not {expected}")]
    Size {
        /// What the message takes.
        expected: usize,
        /// What came.
        found: usize,
    },
    /// A field that holds the number of what follows is wrong.
    #[error("`{field}` is {value}, more than {max}")]
    Bound {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The largest value that is allowed here.
        max: u64,
    },
    /// A field has a value without a meaning.
    #[error("`{field}` has the undefined value {value}")]
    Meaning {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

/// Reads numbers off the front of bytes whose length was checked.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.0.split_first_chunk().expect("the size was checked");
        self.0 = rest;
        *taken
    }

    fn u8(&mut self) -> u8 {
        let [byte] = self.take();
        byte
    }

    fn u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }
}

fn sized(bytes: &[u8], expected: usize) -> Result<Reader<'_>, PayloadError> {
    if bytes.len() == expected { Ok(Reader(bytes)) } else { Err(PayloadError::Size { expected, found: bytes.len() }) }
}

fn at_least(bytes: &[u8], expected: usize) -> Result<Reader<'_>, PayloadError> {
    if bytes.len() >= expected { Ok(Reader(bytes)) } else { Err(PayloadError::Size { expected, found: bytes.len() }) }
}

/// A struct of numbers that stands on the socket as it stands here.
macro_rules! fixed_payload {
    ($(#[$attribute:meta])* $name:ident, $size:literal { $($(#[doc = $doc:literal])* $field:ident: $type:ident,)* } $(pad $pad:literal)?) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name {
            $($(#[doc = $doc])* pub $field: $type,)*
        }

        impl Payload for $name {
            fn encode(&self, to: &mut Vec<u8>) {
                $(to.extend_from_slice(&self.$field.to_ne_bytes());)*
                $(to.extend_from_slice(&[0; $pad]);)?
            }

            fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
                let mut reader = sized(bytes, $size)?;
                Ok(Self { $($field: reader.$type(),)* })
            }
        }
    };
}

/// No payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Empty;

impl Payload for Empty {
    fn encode(&self, _to: &mut Vec<u8>) {}

    fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
        sized(bytes, 0).map(|_| Self)
    }
}

impl Payload for u64 {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.to_ne_bytes());
    }

    fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
        Ok(sized(bytes, 8)?.u64())
    }
}

fixed_payload! {
    /// A ring and a number ("A vring state description").
    VringState, 8 {
        /// The ring.
        index: u32,
        /// A size, a base, 0 or 1, depending on the message.
        num: u32,
    }
}

/// The base of a packed ring, which is the `num` of its vring state ("Vring descriptor indices for packed virtqueues"): 15 bits
/// and a wrap counter of the available side, and the same of the used side above them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PackedBase {
    /// The descriptor that the device takes next.
    pub available: u16,
    /// The driver's ring wrap counter.
    pub available_wrap: bool,
    /// The descriptor that the device uses next.
    pub used: u16,
    /// The device's ring wrap counter.
    pub used_wrap: bool,
}

impl PackedBase {
    /// The base of a ring whose driver has just set it up: both indices 0, both wrap counters 1.
    pub const START: Self = Self { available: 0, available_wrap: true, used: 0, used_wrap: true };

    /// As a vring state has it.
    pub(crate) const fn from_bits(num: u32) -> Self {
        Self {
            available: (num & 0x7fff) as u16,
            available_wrap: num >> 15 & 1 == 1,
            used: (num >> 16 & 0x7fff) as u16,
            used_wrap: num >> 31 == 1,
        }
    }

    /// As a vring state has it.
    pub const fn bits(self) -> u32 {
        self.available as u32
            | (self.available_wrap as u32) << 15
            | (self.used as u32) << 16
            | (self.used_wrap as u32) << 31
    }

    /// Whether both indices are those of a ring with so many entries, and the available side is at most the ring ahead of the
    /// used side.
    pub(crate) const fn is_inside(self, entries: u32) -> bool {
        let (available, used) = (self.available as u32, self.used as u32);
        let fits = if self.available_wrap == self.used_wrap { available >= used } else { available <= used };
        available < entries && used < entries && fits
    }
}

/// `available 3 (wrap counter 0), used 5 (wrap counter 1)`.
impl fmt::Display for PackedBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { available, available_wrap, used, used_wrap } = *self;
        let [of_available, of_used] = [available_wrap, used_wrap].map(u8::from);
        write!(f, "available {available} (wrap counter {of_available}), used {used} (wrap counter {of_used})")
    }
}

fixed_payload! {
    /// The place of a ring ("A vring address description").
    VringAddress, 40 {
        /// The ring.
        index: u32,
        /// Bit 0: writes to the used ring are logged.
        flags: u32,
        /// User address of the descriptor table; of the descriptor ring in a packed ring.
        descriptor: u64,
        /// User address of the used ring; of the device's event area in a packed ring.
        used: u64,
        /// User address of the available ring; of the driver's event area in a packed ring.
        available: u64,
        /// Guest address at which writes to the used ring are logged.
        log: u64,
    }
}

impl VringAddress {
    /// In `flags`: writes to the used ring are logged.
    pub const LOG: u32 = 1;
}

fixed_payload! {
    /// A piece of guest memory ("Memory regions description").
    MemoryRegion, 32 {
        /// Its address in the guest.
        guest_address: u64,
        /// Its size in bytes.
        size: u64,
        /// Its address in the frontend.
        user_address: u64,
        /// Where it begins in its file.
        mmap_offset: u64,
    }
}

/// A piece of guest memory that comes or goes alone ("Single memory region description").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SingleRegion(pub MemoryRegion);

impl Payload for SingleRegion {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&[0; 8]);
        self.0.encode(to);
    }

    fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
        let mut reader = sized(bytes, 40)?;
        reader.u64();
        MemoryRegion::decode(reader.0).map(Self)
    }
}

/// All of guest memory, at most [`REGIONS_MAX`] pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct MemoryTable(pub Vec<MemoryRegion>);

impl Payload for MemoryTable {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&u32::try_from(self.0.len()).unwrap_or(u32::MAX).to_ne_bytes());
        to.extend_from_slice(&[0; 4]);
        for region in &self.0 {
            region.encode(to);
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
        let mut reader = at_least(bytes, 8)?;
        let count = reader.u32();
        reader.u32();
        if count as usize > REGIONS_MAX {
            return Err(PayloadError::Bound { field: "num regions", value: count.into(), max: REGIONS_MAX as u64 });
        }
        let expected = 8 + count as usize * 32;
        // libvhost-user sends the whole table, of which only the first regions count.
        let whole = 8 + REGIONS_MAX * 32;
        if bytes.len() != expected && bytes.len() != whole {
            return Err(PayloadError::Size { expected, found: bytes.len() });
        }
        let regions = reader.0.chunks_exact(32).take(count as usize);
        regions.map(MemoryRegion::decode).collect::<Result<_, _>>().map(Self)
    }
}

fixed_payload! {
    /// The log of dirty pages ("Log description").
    Log, 16 {
        /// Bytes of the log, one bit for each page of 4 KiB.
        size: u64,
        /// Where it begins in its file.
        offset: u64,
    }
}

/// Who may do what at an address of the IOMMU's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum IotlbPermission {
    /// Nothing.
    None = 0,
    /// Read.
    Read = 1,
    /// Write.
    Write = 2,
    /// Both.
    ReadWrite = 3,
}

/// What an IOTLB message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum IotlbKind {
    /// The backend has no translation.
    Miss = 1,
    /// Here is one.
    Update = 2,
    /// A translation is no longer valid.
    Invalidate = 3,
    /// An access was not allowed.
    AccessFail = 4,
}

/// A translation of the IOMMU's ("An IOTLB message").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Iotlb {
    /// The guest's I/O virtual address.
    pub iova: u64,
    /// Its bytes.
    pub size: u64,
    /// Its address in the frontend.
    pub user_address: u64,
    /// What may be done there.
    pub permission: IotlbPermission,
    /// What this is about.
    pub kind: IotlbKind,
}

/// The size of `struct vhost_iotlb_msg` in C, with its tail padding.
const IOTLB_BYTES: usize = 32;

impl Payload for Iotlb {
    fn encode(&self, to: &mut Vec<u8>) {
        for number in [self.iova, self.size, self.user_address] {
            number.encode(to);
        }
        to.extend_from_slice(&[self.permission as u8, self.kind as u8, 0, 0, 0, 0, 0, 0]);
    }

    fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
        let mut reader = sized(bytes, IOTLB_BYTES)?;
        let [iova, size, user_address] = [reader.u64(), reader.u64(), reader.u64()];
        let permission = match reader.u8() {
            0 => IotlbPermission::None,
            1 => IotlbPermission::Read,
            2 => IotlbPermission::Write,
            3 => IotlbPermission::ReadWrite,
            other => return Err(PayloadError::Meaning { field: "permissions", value: other.into() }),
        };
        let kind = match reader.u8() {
            1 => IotlbKind::Miss,
            2 => IotlbKind::Update,
            3 => IotlbKind::Invalidate,
            4 => IotlbKind::AccessFail,
            other => return Err(PayloadError::Meaning { field: "type", value: other.into() }),
        };
        Ok(Self { iova, size, user_address, permission, kind })
    }
}

/// A piece of the device's configuration ("Virtio device config space").
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Config {
    /// Where it begins.
    pub offset: u32,
    /// 0: a write of the guest's; 1: a migration, which may set fields that the guest can't.
    pub flags: u32,
    /// Its bytes. In a request of `GET_CONFIG` only their number counts.
    pub bytes: Vec<u8>,
}

impl Config {
    /// The largest configuration space that QEMU requests.
    pub const BYTES_MAX: usize = 256;
    /// In `flags`: part of a migration.
    pub(crate) const MIGRATION: u32 = 1;
}

impl Payload for Config {
    fn encode(&self, to: &mut Vec<u8>) {
        let size = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        for number in [self.offset, size, self.flags] {
            to.extend_from_slice(&number.to_ne_bytes());
        }
        to.extend_from_slice(&self.bytes);
    }

    fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
        let mut reader = at_least(bytes, 12)?;
        let [offset, size, flags] = [reader.u32(), reader.u32(), reader.u32()];
        if size as usize != reader.0.len() {
            return Err(PayloadError::Size { expected: (size as usize).saturating_add(12), found: bytes.len() });
        }
        Ok(Self { offset, flags, bytes: reader.0.to_vec() })
    }
}

fixed_payload! {
    /// A page of the device's that the guest may notify itself ("Vring area description").
    VringArea, 24 {
        /// The ring, and bit 8 if the message has no descriptor.
        ring: u64,
        /// Bytes.
        size: u64,
        /// Where it begins in its file.
        offset: u64,
    }
}

/// Memory in which requests under way are recorded ("Inflight description").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Inflight {
    /// Bytes.
    pub mmap_size: u64,
    /// Where it begins in its file.
    pub mmap_offset: u64,
    /// How many queues it records.
    pub num_queues: u16,
    /// Entries of each.
    pub queue_size: u16,
}

/// The size of the C struct, whose last four bytes are padding. QEMU and libvhost-user send and take only this.
const INFLIGHT_BYTES: usize = 24;
/// The same struct, packed, as some backends send it.
const INFLIGHT_BYTES_PACKED: usize = 20;

impl Payload for Inflight {
    fn encode(&self, to: &mut Vec<u8>) {
        self.mmap_size.encode(to);
        self.mmap_offset.encode(to);
        to.extend_from_slice(&self.num_queues.to_ne_bytes());
        to.extend_from_slice(&self.queue_size.to_ne_bytes());
        to.extend_from_slice(&[0; INFLIGHT_BYTES - INFLIGHT_BYTES_PACKED]);
    }

    fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
        let mut reader =
            if bytes.len() == INFLIGHT_BYTES { Reader(bytes) } else { sized(bytes, INFLIGHT_BYTES_PACKED)? };
        Ok(Self {
            mmap_size: reader.u64(),
            mmap_offset: reader.u64(),
            num_queues: reader.u16(),
            queue_size: reader.u16(),
        })
    }
}

/// A ring, and whether a descriptor comes with it (`SET_VRING_KICK`, `_CALL`, `_ERR`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct VringFile {
    /// The ring, 0 to 255.
    pub index: u8,
    /// No descriptor: the side that waits for the event polls.
    pub no_descriptor: bool,
    /// Bits without a meaning, as they came.
    pub reserved: u64,
}

impl VringFile {
    const NO_DESCRIPTOR: u64 = 1 << 8;

    /// A ring whose descriptor comes along.
    pub const fn with_descriptor(index: u8) -> Self {
        Self { index, no_descriptor: false, reserved: 0 }
    }

    /// A ring that is polled.
    pub const fn polled(index: u8) -> Self {
        Self { index, no_descriptor: true, reserved: 0 }
    }
}

impl Payload for VringFile {
    fn encode(&self, to: &mut Vec<u8>) {
        let flag = if self.no_descriptor { Self::NO_DESCRIPTOR } else { 0 };
        (u64::from(self.index) | flag | self.reserved).encode(to);
    }

    fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
        let number = u64::decode(bytes)?;
        let [index, ..] = number.to_le_bytes();
        Ok(Self {
            index,
            no_descriptor: number & Self::NO_DESCRIPTOR != 0,
            reserved: number & !(Self::NO_DESCRIPTOR | 0xff),
        })
    }
}

/// Parameters of a crypto session. They are a struct of QEMU's own whose layout the specification leaves open, so they
/// are kept as bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct CryptoSession(pub Vec<u8>);

impl Payload for CryptoSession {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.0);
    }

    fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
        let max = PAYLOAD_BYTES_MAX as usize;
        if bytes.len() > max {
            return Err(PayloadError::Size { expected: max, found: bytes.len() });
        }
        Ok(Self(bytes.to_vec()))
    }
}

/// The name of an object that devices share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SharedObject {
    /// Its UUID.
    pub uuid: [u8; 16],
}

impl Payload for SharedObject {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.uuid);
    }

    fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
        Ok(Self { uuid: sized(bytes, 16)?.take() })
    }
}

fixed_payload! {
    /// How the backend's own state moves ("Device state transfer parameters").
    DeviceStateTransfer, 8 {
        /// 0: the backend saves; 1: it loads.
        direction: u32,
        /// 0: while the device is stopped, the only one there is.
        phase: u32,
    }
}

/// The sizes of VIRTIO shared memory regions; 0 if the region does not exist ("VIRTIO Shared Memory Region configuration").
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct SharedMemoryConfig {
    /// How many of the sizes are not 0.
    pub regions: u32,
    /// The sizes, each at its region's id.
    pub sizes: Vec<u64>,
}

impl Payload for SharedMemoryConfig {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.regions.to_ne_bytes());
        to.extend_from_slice(&[0; 4]);
        for size in &self.sizes {
            size.encode(to);
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
        let mut reader = at_least(bytes, 8)?;
        let regions = reader.u32();
        reader.u32();
        let count = reader.0.len() / 8;
        if reader.0.len() % 8 != 0 {
            return Err(PayloadError::Size { expected: 8 + (count + 1) * 8, found: bytes.len() });
        }
        let sizes = (0..count).map(|_| reader.u64()).collect();
        Ok(Self { regions, sizes })
    }
}

/// A piece of a file that belongs into a VIRTIO shared memory region ("MMAP request").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SharedMemoryMap {
    /// The region's id.
    pub region: u8,
    /// Where it begins in its file.
    pub fd_offset: u64,
    /// Where it begins in the region.
    pub region_offset: u64,
    /// Bytes.
    pub size: u64,
    /// Bit 0: may be written.
    pub flags: u64,
}

impl Payload for SharedMemoryMap {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&[self.region, 0, 0, 0, 0, 0, 0, 0]);
        for number in [self.fd_offset, self.region_offset, self.size, self.flags] {
            number.encode(to);
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
        let mut reader = sized(bytes, 40)?;
        let region = reader.u8();
        let _padding: [u8; 7] = reader.take();
        let [fd_offset, region_offset, size, flags] = [reader.u64(), reader.u64(), reader.u64(), reader.u64()];
        Ok(Self { region, fd_offset, region_offset, size, flags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_base_has_both_indices_and_wrap_counters() {
        let base = PackedBase::from_bits(0x8005_0003);
        assert_eq!(base, PackedBase { available: 3, available_wrap: false, used: 5, used_wrap: true });
        assert_eq!(base.bits(), 0x8005_0003);
    }
}

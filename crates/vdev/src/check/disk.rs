//! A blk device as a driver has it: requests made of descriptors in any layout ("Block Device" in the VIRTIO
//! specification).
//!
//! ```text
//!    header 16 bytes: type, 0, sector │ data, in or out │ status 1 byte: 0 OK, 1 IOERR, 2 UNSUPP
//! ```

use super::context::{Context, USUAL, usual_features};
use super::guest::Guest;
use super::link::Link;
use super::outcome::{Outcome, Stop};
use super::ring::{Descriptor, SplitRing, Used};
use crate::protocol::ProtocolFeatures;
use crate::protocol::frontend::SetFeatures;

/// What the suite needs of a disk.
pub(super) const SECTORS_NEEDED: u64 = 8192;
/// Bytes of a sector.
pub(super) const SECTOR: u64 = 512;

/// Requests by type.
pub(super) mod kind {
    /// Read.
    pub(crate) const IN: u32 = 0;
    /// Write.
    pub(crate) const OUT: u32 = 1;
    /// Make what was written last.
    pub(crate) const FLUSH: u32 = 4;
    /// The device's name, 20 bytes.
    pub(crate) const GET_ID: u32 = 8;
    /// Forget sectors.
    pub(crate) const DISCARD: u32 = 11;
    /// Fill sectors with zeros.
    pub(crate) const WRITE_ZEROES: u32 = 13;
}

/// The status of a request.
pub(super) mod status {
    /// Done.
    pub(crate) const OK: u8 = 0;
    /// Failed.
    pub(crate) const IOERR: u8 = 1;
    /// The device does not know such requests.
    pub(crate) const UNSUPP: u8 = 2;
    /// What the driver puts there, to see whether the device writes.
    pub(crate) const UNWRITTEN: u8 = 0xa5;
}

/// How a disk is opened.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    /// Size of the ring.
    pub size: u16,
    /// Which ring.
    pub queue: u32,
    /// Where it begins.
    pub base: u16,
    /// Virtio features that the case needs beyond the usual ones.
    pub features: u64,
    /// Virtio features that the case does without.
    pub without: u64,
    /// Protocol features that the case needs beyond the usual ones.
    pub protocol: ProtocolFeatures,
    /// Whether the ring is started.
    pub start: bool,
    /// Guest address and size of each region.
    pub regions: &'static [(u64, u64)],
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            size: 128,
            queue: 0,
            base: 0,
            features: 0,
            without: 0,
            protocol: ProtocolFeatures::empty(),
            start: true,
            regions: &[(0, Guest::BYTES)],
        }
    }
}

/// A disk with one ring that runs.
#[derive(Debug)]
pub(super) struct Disk {
    /// The session.
    pub link: Link,
    /// The memory.
    pub guest: Guest,
    /// The ring.
    pub ring: SplitRing,
    /// Its sectors.
    pub capacity: u64,
    /// The sectors that a case may write.
    pub scratch: u64,
    header: u64,
    status: u64,
    data: u64,
    timeout: std::time::Duration,
}

/// Bytes that one request moves at most.
pub(super) const DATA_BYTES: u64 = 1 << 20;

impl Disk {
    /// A session with a ring of 128 that runs.
    pub(super) fn open(context: &mut Context<'_>) -> Outcome<Self> {
        Self::open_with(context, &Setup::default())
    }

    /// A session as a case needs it.
    pub(super) fn open_with(context: &mut Context<'_>, setup: &Setup) -> Outcome<Self> {
        let link = context.open_with(USUAL | setup.protocol)?;
        Self::on(context, link, setup)
    }

    /// The device behind a session without virtio features yet.
    pub(super) fn on(context: &Context<'_>, mut link: Link, setup: &Setup) -> Outcome<Self> {
        let features = (usual_features(link.offered) | setup.features) & !setup.without;
        link.require(&SetFeatures(features), &[])?;
        let mut guest = Guest::with_regions(setup.regions)?;
        guest.share(&mut link)?;
        let mut ring = SplitRing::new(&mut guest, setup.queue, setup.size)?;
        ring.start_at(setup.base);
        if setup.start {
            ring.start(&mut link)?;
        }
        let header = guest.take(16, 16);
        let status = guest.take(1, 16);
        let data = guest.take(DATA_BYTES, 4096);
        let capacity = context.facts.capacity_sectors();
        let scratch = capacity / 2 / 8 * 8;
        Ok(Self { link, guest, ring, capacity, scratch, header, status, data, timeout: context.timeout() })
    }

    /// A header in memory; its guest address.
    pub(super) fn header(&self, kind: u32, sector: u64) -> u64 {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        self.guest.write(self.header, &bytes);
        self.header
    }

    /// The place of the status; it holds a value that no device writes.
    pub(super) fn status_at(&self) -> u64 {
        self.guest.write(self.status, &[status::UNWRITTEN]);
        self.status
    }

    /// The status as it is.
    pub(super) fn status(&self) -> u8 {
        self.guest.read(self.status, 1)[0]
    }

    /// Where data may be placed.
    pub(super) const fn data_at(&self) -> u64 {
        self.data
    }

    /// Has a chain done and checks that the device gives back this very one.
    pub(super) fn submit(&mut self, descriptors: &[Descriptor]) -> Outcome<Used> {
        self.ring.send(0, descriptors)?;
        self.complete(0)
    }

    /// Waits for the chain with this head.
    pub(super) fn complete(&mut self, head: u32) -> Outcome<Used> {
        let used = self.ring.wait_used(&mut self.link, self.timeout)?;
        self.link.note(format!("ring {}: used head {}, {} bytes written", self.ring.index, used.head, used.written));
        if used.head != head {
            return Stop::fail(format!("the used ring has head {}, but {head} was made available", used.head));
        }
        Ok(used)
    }

    /// A request in the usual layout. `data` is at [`data_at`](Self::data_at).
    pub(super) fn request(&mut self, kind: u32, sector: u64, data: Option<Descriptor>) -> Outcome<(u8, Used)> {
        let header = Descriptor::readable(self.header(kind, sector), 16);
        let status = Descriptor::writable(self.status_at(), 1);
        self.link.done(format!(
            "ring {}: request type {kind}, sector {sector}, {} bytes",
            self.ring.index,
            data.map_or(0, |data| data.bytes)
        ));
        let chain: Vec<_> = [Some(header), data, Some(status)].into_iter().flatten().collect();
        let used = self.submit(&chain)?;
        Ok((self.status(), used))
    }

    /// Reads a sector by the chain at `first` of the table, for when the entries before are taken.
    pub(super) fn read_at(&mut self, first: u16, sector: u64) -> Outcome {
        let header = Descriptor::readable(self.header(kind::IN, sector), 16);
        let chain = [header, Descriptor::writable(self.data, 512), Descriptor::writable(self.status_at(), 1)];
        self.ring.send(first, &chain)?;
        self.complete(first.into())?;
        require_status(self.status(), status::OK, "a read")
    }

    /// Reads sectors.
    pub(super) fn read(&mut self, sector: u64, bytes: usize) -> Outcome<Vec<u8>> {
        self.guest.write(self.data, &vec![0xee; bytes]);
        let (status, _) = self.request(kind::IN, sector, Some(Descriptor::writable(self.data, size(bytes))))?;
        require_status(status, status::OK, "a read")?;
        Ok(self.guest.read(self.data, bytes))
    }

    /// Writes sectors.
    pub(super) fn write(&mut self, sector: u64, bytes: &[u8]) -> Outcome {
        self.guest.write(self.data, bytes);
        let (status, _) = self.request(kind::OUT, sector, Some(Descriptor::readable(self.data, size(bytes.len()))))?;
        require_status(status, status::OK, "a write")
    }

    /// The file's bytes must be these.
    pub(super) fn require_contents(&mut self, sector: u64, expected: &[u8], what: &str) -> Outcome {
        let found = self.read(sector, expected.len())?;
        same_bytes(&found, expected, what)
    }
}

/// Runs a case on sectors that it may write; their contents are restored if the backend still serves requests.
pub(super) fn on_scratch(context: &mut Context<'_>, setup: &Setup, run: impl FnOnce(&mut Disk) -> Outcome) -> Outcome {
    let mut disk = Disk::open_with(context, setup)?;
    let kept = disk.read(disk.scratch, SCRATCH_BYTES)?;
    let outcome = run(&mut disk);
    // A backend that was started for this case alone takes its disk as the next finds it.
    if outcome.is_ok() || !context.target.is_spawned() {
        let put_back = disk.write(disk.scratch, &kept);
        return outcome.and(put_back);
    }
    outcome
}

/// Bytes that a case may write.
pub(super) const SCRATCH_BYTES: usize = 256 << 10;

/// Bytes that are different at every place and forevery seed.
pub(super) fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut pattern = Vec::with_capacity(bytes + 8);
    while pattern.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        pattern.extend_from_slice(&state.to_le_bytes());
    }
    pattern.truncate(bytes);
    pattern
}

/// Fails unless the status is this one.
pub(super) fn require_status(found: u8, expected: u8, what: &str) -> Outcome {
    if found == expected {
        return Ok(());
    }
    let name = |status| match status {
        status::OK => "OK (0)".to_owned(),
        status::IOERR => "IOERR (1)".to_owned(),
        status::UNSUPP => "UNSUPP (2)".to_owned(),
        status::UNWRITTEN => "not written".to_owned(),
        other => other.to_string(),
    };
    Stop::fail(format!("the status of {what} is {}, not {}", name(found), name(expected)))
}

/// Fails unless all bytes are the same.
pub(super) fn same_bytes(found: &[u8], expected: &[u8], what: &str) -> Outcome {
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        None => Ok(()),
        Some(at) => Stop::fail(format!("{what}: byte {at} is {:#04x}, not {:#04x}", found[at], expected[at])),
    }
}

/// A number of bytes as a descriptor has it.
pub(super) fn size(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a request is small")
}

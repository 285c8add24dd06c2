//! All of a guest's memory, as one side has it. It never changes: a peer that adds or removes a region gets another one,
//! and threads that use the old one keep it, whole, until they drop it.

use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::area::Area;
use super::error::MemoryError;
use super::region::Region;
use crate::protocol::MemoryRegion;

/// A piece of guest memory that was found to be there: which region, where in it, how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The region's place in the memory that found it.
    region: usize,
    /// Where in it.
    offset: usize,
    /// How much.
    bytes: usize,
}

impl Span {
    /// How many bytes it has.
    pub const fn bytes(self) -> usize {
        self.bytes
    }

    /// The part of it that is `bytes` long, from `offset` on, as far as it is inside.
    #[must_use]
    pub(crate) fn part(self, offset: usize, bytes: usize) -> Self {
        let offset = offset.min(self.bytes);
        Self { offset: self.offset + offset, bytes: bytes.min(self.bytes - offset), ..self }
    }
}

/// All of a guest's memory.
#[derive(Debug, Clone, Default)]
pub struct GuestMemory {
    regions: Arc<[Arc<Region>]>,
}

impl GuestMemory {
    /// Regions a guest may have: what `GET_MAX_MEM_SLOTS` of our backends returns.
    pub(crate) const SLOTS_MAX: usize = 32;

    /// Memory of these regions.
    ///
    /// # Errors
    /// If two of them share an address, or there are too many.
    pub fn new(regions: Vec<Arc<Region>>) -> Result<Self, MemoryError> {
        if regions.len() > Self::SLOTS_MAX {
            return Err(MemoryError::TooManyRegions { max: Self::SLOTS_MAX });
        }
        for address in [|region: &MemoryRegion| region.guest_address, |region: &MemoryRegion| region.user_address] {
            let mut sorted: Vec<_> = regions.iter().map(|region| region.description()).collect();
            sorted.sort_by_key(|region| address(region));
            for pair in sorted.windows(2) {
                let (first, second) = (pair[0], pair[1]);
                if address(first) + first.size > address(second) {
                    return Err(MemoryError::Overlap { address: address(second) });
                }
            }
        }
        Ok(Self { regions: regions.into() })
    }

    /// The same with one more region.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with(&self, region: Region) -> Result<Self, MemoryError> {
        Self::new(self.regions.iter().cloned().chain([Arc::new(region)]).collect())
    }

    /// The same without the region that has this guest address, user address and size.
    ///
    /// # Errors
    /// If there is no such region.
    pub(crate) fn without(&self, gone: &MemoryRegion) -> Result<Self, MemoryError> {
        let key = |region: &MemoryRegion| (region.guest_address, region.user_address, region.size);
        let is_it = |region: &Arc<Region>| key(region.description()) == key(gone);
        if !self.regions.iter().any(is_it) {
            return Err(MemoryError::UnknownRegion { guest_address: gone.guest_address });
        }
        Ok(Self { regions: self.regions.iter().filter(|region| !is_it(region)).cloned().collect() })
    }

    /// Its regions.
    pub(crate) fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Whether this is that memory itself, not only one like it: spans of one are good in the other.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.regions, &other.regions)
    }

    /// Whether a peer has truncated one of the files, so that nothing here can be trusted.
    pub(crate) fn is_cut(&self) -> bool {
        self.regions.iter().any(|region| region.is_cut())
    }

    /// The bytes at a guest address, all of them in one region.
    ///
    /// # Errors
    /// If they are not.
    pub fn at_guest(&self, address: u64, bytes: usize) -> Result<Span, MemoryError> {
        self.find("guest", address, bytes, |region| region.guest_address)
    }

    /// The bytes at a user address, all of them in one region.
    ///
    /// # Errors
    /// If they are not.
    pub(crate) fn at_user(&self, address: u64, bytes: usize) -> Result<Span, MemoryError> {
        self.find("user", address, bytes, |region| region.user_address)
    }

    /// Adds the bytes at a guest address to `spans`, one for each region that has some of them.
    ///
    /// # Errors
    /// If some of them are in no region.
    pub(crate) fn push_guest(&self, address: u64, bytes: usize, spans: &mut Vec<Span>) -> Result<(), MemoryError> {
        let (mut at, mut left) = (address, bytes);
        while left > 0 {
            let Ok(first) = self.at_guest(at, 1) else {
                return Err(MemoryError::Outside { kind: "guest", address, bytes: bytes as u64 });
            };
            let room = self.regions[first.region].description().size - first.offset as u64;
            let here = left.min(usize::try_from(room).unwrap_or(usize::MAX));
            spans.push(Span { bytes: here, ..first });
            left -= here;
            at = at.wrapping_add(here as u64);
        }
        Ok(())
    }

    /// The bytes of a span that this memory has found.
    ///
    /// # Errors
    /// If the span is another memory's and there is nothing like it here, or a peer has cut its file short: then what
    /// would be written is kept from growing in this process alone.
    pub(crate) fn slice(&self, span: Span) -> Result<VolatileSlice<'_>, MemoryError> {
        match self.regions.get(span.region) {
            Some(region) if region.is_cut() => {
                Err(MemoryError::Cut { guest_address: region.description().guest_address })
            }
            Some(region) => region.slice(span.offset, span.bytes),
            None => Err(MemoryError::Outside { kind: "guest", address: 0, bytes: span.bytes as u64 }),
        }
    }

    /// A span with its region, to be kept.
    ///
    /// # Errors
    /// If the span is another memory's and there is nothing like it here, or a peer has cut its file short.
    pub fn area(&self, span: Span) -> Result<Area, MemoryError> {
        self.slice(span)?;
        Ok(Area::new(Arc::clone(&self.regions[span.region]), span.offset, span.bytes))
    }

    /// The guest address of a span that this memory has found.
    pub(crate) fn guest_address(&self, span: Span) -> u64 {
        let region = self.regions.get(span.region).map_or(0, |region| region.description().guest_address);
        region.wrapping_add(span.offset as u64)
    }

    fn find(
        &self,
        kind: &'static str,
        address: u64,
        bytes: usize,
        start: impl Fn(&MemoryRegion) -> u64,
    ) -> Result<Span, MemoryError> {
        for (index, region) in self.regions.iter().enumerate() {
            let description = region.description();
            let offset = address.wrapping_sub(start(description));
            if offset < description.size && bytes as u64 <= description.size - offset {
                let offset = usize::try_from(offset).expect("a mapped region fits this process");
                return Ok(Span { region: index, offset, bytes });
            }
        }
        Err(MemoryError::Outside { kind, address, bytes: bytes as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::SharedFile;
    use vm_memory::Bytes as _;

    fn memory(places: &[(u64, u64)]) -> GuestMemory {
        let regions = places.iter().map(|(address, size)| Arc::new(Region::create(*address, *size).expect("memory").0));
        GuestMemory::new(regions.collect()).expect("no overlap")
    }

    #[test]
    fn addresses_lead_to_their_region_alone() {
        let memory = memory(&[(0, 0x2000), (0x10000, 0x1000)]);
        let span = memory.at_guest(0x10800, 0x800).expect("is there");
        memory.slice(span).expect("is there").write_slice(b"kiln", 0).expect("fits");
        let user = memory.regions()[1].description().user_address + 0x800;
        let mut bytes = [0; 4];
        let same = memory.at_user(user, 4).expect("is there");
        memory.slice(same).expect("is there").read_slice(&mut bytes, 0).expect("fits");
        assert_eq!(&bytes, b"kiln");
        assert_eq!(memory.guest_address(same), 0x10800);
        for (address, bytes) in [(0x1fff, 2), (0x2000, 1), (0x10800, 0x801), (u64::MAX, 1), (0, usize::MAX)] {
            assert!(memory.at_guest(address, bytes).is_err(), "{address:#x} {bytes}");
        }
    }

    #[test]
    fn bytes_over_a_border_are_one_span_for_each_region() {
        let memory = memory(&[(0, 0x1000), (0x1000, 0x1000), (0x3000, 0x1000)]);
        let mut spans = Vec::new();
        memory.push_guest(0xff0, 0x20, &mut spans).expect("lies in two");
        assert_eq!(spans.iter().map(|span| span.bytes()).collect::<Vec<_>>(), [0x10, 0x10]);
        assert!(memory.push_guest(0x1ff0, 0x20, &mut spans).is_err());
        assert!(memory.push_guest(0, usize::MAX, &mut spans).is_err());
    }

    #[test]
    fn what_is_no_memory_is_refused() {
        let map = |size, mmap_offset, guest_address| {
            let file = SharedFile::new(0x2000).expect("a file");
            Region::map(MemoryRegion { guest_address, size, user_address: 0x5000, mmap_offset }, file)
        };
        assert!(map(0x1000, 0x1000, 0).is_ok());
        assert!(matches!(map(0, 0, 0), Err(MemoryError::EmptyRegion { .. })));
        assert!(matches!(map(0x2001, 0, 0), Err(MemoryError::PastFile { .. })));
        assert!(matches!(map(0x1000, 0x1001, 0), Err(MemoryError::PastFile { .. })));
        assert!(matches!(map(u64::MAX, 0, 1), Err(MemoryError::EndlessRegion { .. })));
        let (pipe, _other) = std::io::pipe().expect("a pipe");
        let region = MemoryRegion { guest_address: 0, size: 1, user_address: 0, mmap_offset: 0 };
        let refused = Region::map(region, SharedFile::from_peer(pipe.into()));
        assert!(matches!(refused, Err(MemoryError::NoFile { .. })));
    }

    #[test]
    fn a_region_begins_at_any_offset_of_its_file() {
        let file = SharedFile::new(0x3000).expect("a file");
        let whole = MemoryRegion { guest_address: 0, size: 0x3000, user_address: 0, mmap_offset: 0 };
        let part = MemoryRegion { guest_address: 0, size: 0x1000, user_address: 0, mmap_offset: 0x1234 };
        let whole = Region::map(whole, file.try_clone().expect("clones")).expect("maps");
        let part = Region::map(part, file).expect("maps");
        whole.slice(0x1234, 4).expect("fits").copy_from(b"here");
        let mut bytes = [0; 4];
        part.slice(0, 4).expect("fits").copy_to(&mut bytes);
        assert_eq!(&bytes, b"here");
        assert!(part.slice(0xfff, 2).is_err());
    }

    #[test]
    fn regions_that_share_addresses_are_refused_and_go_by_name() {
        let first = memory(&[(0, 0x2000)]);
        let overlap = first.with(Region::create(0x1000, 0x1000).expect("memory").0);
        assert!(matches!(overlap, Err(MemoryError::Overlap { address: 0x1000 })));
        let both = first.with(Region::create(0x2000, 0x1000).expect("memory").0).expect("has room");
        let gone = *first.regions()[0].description();
        assert_eq!(both.without(&gone).expect("is there").regions().len(), 1);
        assert!(matches!(both.without(&MemoryRegion { size: 1, ..gone }), Err(MemoryError::UnknownRegion { .. })));
    }

    #[test]
    fn a_file_that_is_truncated_ends_no_process() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(0x4000).expect("grows");
        let shared = SharedFile::from_peer(file.try_clone().expect("clones").into());
        let region = MemoryRegion { guest_address: 0, size: 0x4000, user_address: 0, mmap_offset: 0 };
        let region = Region::map(region, shared).expect("maps");
        region.slice(0x2000, 1).expect("fits").copy_from(&[7_u8]);
        file.set_len(0x1000).expect("shrinks");
        assert!(!region.is_cut());
        let mut byte = [1_u8];
        region.slice(0x2000, 1).expect("fits").copy_to(&mut byte);
        assert_eq!(byte, [0]);
        assert!(region.is_cut());
        region.slice(0, 1).expect("fits").copy_from(&[7_u8]);
    }

    /// The kernel's list of this process's mappings of this file.
    fn mappings_at(region: &Region) -> usize {
        let address = region.slice(0, 1).expect("is there").ptr_guard().as_ptr() as usize;
        let (start, end) = (address, address + usize::try_from(region.description().size).expect("fits"));
        let maps = std::fs::read_to_string("/proc/self/maps").expect("is there");
        let number = |text: &str| usize::from_str_radix(text, 16).expect("a number");
        let bounds = maps.lines().filter_map(|line| line.split_once(' ')?.0.split_once('-'));
        bounds.filter(|(from, to)| number(from) < end && number(to) > start).count()
    }

    #[test]
    fn however_a_file_is_cut_the_process_has_few_mappings_more() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(256 * 4096).expect("grows");
        let region = MemoryRegion { guest_address: 0, size: 256 * 4096, user_address: 0, mmap_offset: 0 };
        let shared = SharedFile::from_peer(file.try_clone().expect("clones").into());
        let memory = GuestMemory::new(vec![Arc::new(Region::map(region, shared).expect("maps"))]).expect("memory");
        // A page after the other, every second one, as a chain of buffers would have it.
        for page in (1..256_u64).rev().step_by(2) {
            file.set_len(page * 4096).expect("shrinks");
            let region = &memory.regions()[0];
            region.slice(page as usize * 4096, 1).expect("fits").copy_from(&[1_u8]);
        }
        assert!(mappings_at(&memory.regions()[0]) <= 3);
        let span = memory.at_guest(0, 16).expect("is there");
        assert!(matches!(memory.slice(span), Err(MemoryError::Cut { guest_address: 0 })));
    }

    #[test]
    fn memory_in_huge_pages_that_are_not_there_ends_no_process_and_is_unmapped() {
        use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
        const HUGE: u64 = 2 << 20;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let file = memfd_create("huge", flags).expect("a kernel with huge pages, if only none are set aside");
        ftruncate(&file, HUGE * 2).expect("grows");
        let place = MemoryRegion { guest_address: 0, size: 0x1000, user_address: 0, mmap_offset: HUGE - 0x1000 };
        let region = Region::map(place, SharedFile::from_peer(file)).expect("maps, as nothing is set aside for it");
        let address = region.slice(0, 1).expect("fits").ptr_guard().as_ptr() as usize;
        region.slice(0, 4).expect("fits").copy_from(b"here");
        let mut bytes = [0; 4];
        region.slice(0, 4).expect("fits").copy_to(&mut bytes);
        assert_eq!(&bytes, b"here");
        drop(region);
        let maps = std::fs::read_to_string("/proc/self/maps").expect("is there");
        assert!(!maps.contains("memfd:huge"), "nothing of it is left at {address:#x}");
    }
}

//! Guest memory for a case: regions that are shared with the backend, and pieces of them given out one after the other.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use vm_memory::Bytes as _;

use super::link::Link;
use super::outcome::Outcome;
use crate::memory::{Area, GuestMemory, MemoryError, Region, SharedFile};
use crate::protocol::frontend::SetMemTable;
use crate::protocol::{MemoryRegion, MemoryTable};

const GIVEN: &str = "only what was given out is reached";

/// Guest memory for a case.
#[derive(Debug)]
pub(super) struct Guest {
    memory: GuestMemory,
    files: Vec<SharedFile>,
    /// For each region, the start of what is still free.
    free: Vec<u64>,
}

impl Guest {
    /// The size of the one region that most cases have.
    pub(super) const BYTES: u64 = 16 << 20;

    /// One region from guest address 0 on.
    pub(super) fn new() -> Outcome<Self> {
        Self::with_regions(&[(0, Self::BYTES)])
    }

    /// Regions at these guest addresses, of these sizes.
    pub(super) fn with_regions(places: &[(u64, u64)]) -> Outcome<Self> {
        let created: Vec<_> =
            places.iter().map(|(address, bytes)| Region::create(*address, *bytes)).collect::<Result<_, _>>()?;
        let (regions, files): (Vec<_>, _) = created.into_iter().unzip();
        let memory = GuestMemory::new(regions.into_iter().map(Arc::new).collect())?;
        Ok(Self { memory, files, free: vec![0; places.len()] })
    }

    /// Regions that are mapped from files in a given way.
    pub(super) fn with_mapped(regions: Vec<(MemoryRegion, SharedFile)>) -> Outcome<Self> {
        let mut mapped = Vec::new();
        let mut files = Vec::new();
        for (description, file) in regions {
            mapped.push(Arc::new(Region::map(description, file.try_clone()?)?));
            files.push(file);
        }
        let free = vec![0; files.len()];
        Ok(Self { memory: GuestMemory::new(mapped)?, files, free })
    }

    /// Adds a region, without telling the backend.
    pub(super) fn add(&mut self, guest_address: u64, bytes: u64) -> Outcome<MemoryRegion> {
        let (region, file) = Region::create(guest_address, bytes)?;
        let description = *region.description();
        self.memory = self.memory.with(region)?;
        self.files.push(file);
        self.free.push(0);
        Ok(description)
    }

    /// The description of a region that the backend gets.
    pub(super) fn region(&self, index: usize) -> MemoryRegion {
        *self.memory.regions()[index].description()
    }

    /// The file of a region.
    pub(super) fn file(&self, index: usize) -> &SharedFile {
        &self.files[index]
    }

    /// The table of all regions.
    pub(super) fn table(&self) -> SetMemTable {
        SetMemTable(MemoryTable((0..self.files.len()).map(|index| self.region(index)).collect()))
    }

    /// The descriptors that go with it.
    pub(super) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.files.iter().map(|file| file.as_fd()).collect()
    }

    /// Sends it to the backend.
    pub(super) fn share(&self, link: &mut Link) -> Outcome {
        link.require(&self.table(), &self.fds())
    }

    /// Gives out a piece of the first region; its guest address.
    pub(super) fn take(&mut self, bytes: u64, alignment: u64) -> u64 {
        self.take_in(0, bytes, alignment)
    }

    /// Gives out a piece of a region; its guest address.
    pub(super) fn take_in(&mut self, region: usize, bytes: u64, alignment: u64) -> u64 {
        let description = self.region(region);
        let address = (description.guest_address + self.free[region]).next_multiple_of(alignment);
        self.free[region] = address + bytes - description.guest_address;
        assert!(self.free[region] <= description.size, "a case needs no more memory than it has");
        address
    }

    /// Gives out a piece with these bytes in it.
    pub(super) fn put(&mut self, bytes: &[u8]) -> u64 {
        let address = self.take(bytes.len() as u64, 16);
        self.write(address, bytes);
        address
    }

    /// Bytes into the memory.
    pub(super) fn write(&self, address: u64, bytes: &[u8]) {
        let mut spans = Vec::new();
        self.memory.push_guest(address, bytes.len(), &mut spans).expect(GIVEN);
        let mut rest = bytes;
        for span in spans {
            let (here, after) = rest.split_at(span.bytes());
            self.memory.slice(span).expect(GIVEN).write_slice(here, 0).expect(GIVEN);
            rest = after;
        }
    }

    /// Bytes out of the memory.
    pub(super) fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut spans = Vec::new();
        self.memory.push_guest(address, bytes, &mut spans).expect(GIVEN);
        let mut all = Vec::with_capacity(bytes);
        for span in spans {
            let mut here = vec![0; span.bytes()];
            self.memory.slice(span).expect(GIVEN).read_slice(&mut here, 0).expect(GIVEN);
            all.append(&mut here);
        }
        all
    }

    /// A piece that is held for long.
    pub(super) fn area(&self, address: u64, bytes: usize) -> Result<Area, MemoryError> {
        self.memory.area(self.memory.at_guest(address, bytes)?)
    }
}

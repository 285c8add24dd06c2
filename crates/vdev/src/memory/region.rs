//! One piece of guest memory, mapped from a file that two processes share.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, MemfdFlags, SealFlags, fcntl_add_seals, fstat, fstatfs, ftruncate, memfd_create};
use vm_memory::volatile_memory::VolatileMemory as _;
use vm_memory::{FileOffset, MmapRegion, VolatileSlice};

use super::error::MemoryError;
use super::fault::Guard;
use crate::protocol::MemoryRegion;

/// A file in memory that can be handed to another process.
#[derive(Debug)]
pub struct SharedFile(OwnedFd);

impl SharedFile {
    /// A new file of zeros that never shrinks.
    ///
    /// # Errors
    /// If the system has no room for it.
    pub fn new(bytes: u64) -> Result<Self, MemoryError> {
        let fd = memfd_create("kiln-memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(std::io::Error::from)?;
        ftruncate(&fd, bytes).map_err(std::io::Error::from)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::SEAL).map_err(std::io::Error::from)?;
        Ok(Self(fd))
    }

    /// A file that came from a peer.
    pub const fn from_peer(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The same file under another descriptor.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn try_clone(&self) -> Result<Self, MemoryError> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl AsFd for SharedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One piece of guest memory. It is unmapped when the last that holds it is dropped.
#[derive(Debug)]
pub struct Region {
    description: MemoryRegion,
    // Before the mapping, and so dropped before it: the place may be another mapping's at once.
    guard: Guard,
    mapping: MmapRegion<()>,
    /// The region's offset in the mapping, which begins at a page.
    lead: usize,
}

impl Region {
    /// Maps a region that a peer describes. The file must be as long as the description.
    ///
    /// # Errors
    /// If it is not, or can't be mapped.
    pub fn map(description: MemoryRegion, file: SharedFile) -> Result<Self, MemoryError> {
        let MemoryRegion { guest_address, size, user_address, mmap_offset } = description;
        if size == 0 {
            return Err(MemoryError::EmptyRegion { guest_address });
        }
        let endless = MemoryError::EndlessRegion { guest_address, size };
        let ends = [guest_address, user_address, mmap_offset].map(|start| start.checked_add(size));
        let [Some(_), Some(_), Some(end)] = ends else { return Err(endless) };
        let stat = fstat(&file).map_err(std::io::Error::from)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let file_bytes = stat.st_size.try_into().unwrap_or(0);
                if end > file_bytes {
                    return Err(MemoryError::PastFile { guest_address, end, file_bytes });
                }
            }
            // Memory of a device has no size.
            FileType::CharacterDevice => {}
            _ => return Err(MemoryError::NoFile { guest_address }),
        }
        let (page, is_huge) = page_bytes(&file, guest_address)?;
        let start = mmap_offset & !(page - 1);
        let lead = mmap_offset - start;
        // What lies in huge pages is mapped, and unmapped, in whole ones, of which such a file consists.
        let bytes = if is_huge { (lead + size).checked_next_multiple_of(page) } else { Some(lead + size) };
        let (Ok(lead), Some(Ok(bytes))) = (usize::try_from(lead), bytes.map(usize::try_from)) else {
            return Err(endless);
        };
        let mapping = MmapRegion::from_file(FileOffset::new(File::from(file.0), start), bytes)
            .map_err(|error| MemoryError::Map { guest_address, source: std::io::Error::other(error) })?;
        let guard = Guard::new(mapping.as_ptr() as usize, mapping.size(), page as usize);
        Ok(Self { description, guard, mapping, lead })
    }

    /// New memory of zeros for a guest, and the file to share it by. Its user address is its address in this process.
    ///
    /// # Errors
    /// If the system has no room for it.
    pub fn create(guest_address: u64, size: u64) -> Result<(Self, SharedFile), MemoryError> {
        let file = SharedFile::new(size)?;
        let description = MemoryRegion { guest_address, size, user_address: 0, mmap_offset: 0 };
        let mut region = Self::map(description, file.try_clone()?)?;
        region.description.user_address = region.mapping.as_ptr() as u64;
        Ok((region, file))
    }

    /// The description that was sent to the peer, or came from it.
    pub const fn description(&self) -> &MemoryRegion {
        &self.description
    }

    /// Whether the file has become shorter since: what was read beyond its end was made up.
    pub(super) fn is_cut(&self) -> bool {
        self.guard.is_cut()
    }

    /// Some of its bytes, counted from its start; zeros if it was truncated there.
    ///
    /// # Errors
    /// If they are not all in it.
    pub fn slice(&self, offset: usize, bytes: usize) -> Result<VolatileSlice<'_>, MemoryError> {
        let size = self.mapping.size() - self.lead;
        if offset > size || bytes > size - offset {
            return Err(MemoryError::Outside {
                kind: "guest",
                address: self.description.guest_address.wrapping_add(offset as u64),
                bytes: bytes as u64,
            });
        }
        Ok(self.mapping.get_slice(self.lead + offset, bytes).expect("lies in the mapping, as was just checked"))
    }
}

const PAGE_BYTES: u64 = 4096;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
const FUSE_MAGIC: u64 = 0x6573_5546;

/// The size of a file's pages, and whether they are huge ones.
fn page_bytes(file: &SharedFile, guest_address: u64) -> Result<(u64, bool), MemoryError> {
    let stat = fstatfs(file).map_err(std::io::Error::from)?;
    match stat.f_type as u64 {
        HUGETLBFS_MAGIC => {
            let page = u64::try_from(stat.f_bsize).unwrap_or(PAGE_BYTES);
            Ok((if page.is_power_of_two() { page } else { PAGE_BYTES }, true))
        }
        // A peer may serve such a file itself, and a thread that touches it waits for the peer, out of reach of any deadline.
        FUSE_MAGIC => Err(MemoryError::NoFile { guest_address }),
        _ => Ok((PAGE_BYTES, false)),
    }
}

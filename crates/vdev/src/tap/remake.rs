//! Descriptors for a replay: those that a frontend passed in the recording, made again; and memory in which no ring
//! has anything to do.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;

use super::descriptor::Descriptor;
use crate::memory::SharedFile;
use crate::protocol::{MemoryRegion, VringAddress};
use crate::socket::Event;

/// The largest file that is made; it has no pages until they are touched.
const FILE_BYTES_MAX: u64 = 1 << 40;
/// Regions and rings that are remembered.
const KEPT_MAX: usize = 512;

/// A descriptor that was made again, and what we keep of it.
pub(super) struct Remade {
    /// What is passed on.
    pub fd: OwnedFd,
    /// Our end, if it is a socket or pipe.
    pub ours: Option<OwnedFd>,
}

/// Makes a descriptor like the one that was recorded. `is_written` selects the end of a pipe that the backend gets.
pub(super) fn remake(descriptor: &Descriptor, is_written: bool) -> io::Result<Remade> {
    let alone = |fd| Ok(Remade { fd, ours: None });
    match descriptor {
        Descriptor::Eventfd => alone(Event::new()?.as_fd().try_clone_to_owned()?),
        Descriptor::Memfd { bytes } | Descriptor::File { bytes } => {
            if *bytes > FILE_BYTES_MAX {
                return Err(io::Error::other(format!("a file of {bytes} bytes is larger than a replay creates")));
            }
            let file = SharedFile::new(*bytes).map_err(io::Error::other)?;
            alone(file.as_fd().try_clone_to_owned()?)
        }
        Descriptor::Socket => {
            let (ours, theirs) = UnixStream::pair()?;
            Ok(Remade { fd: theirs.into(), ours: Some(ours.into()) })
        }
        Descriptor::Pipe => {
            let (read, write) = io::pipe()?;
            let (fd, ours) = if is_written { (write.into(), read.into()) } else { (read.into(), write.into()) };
            Ok(Remade { fd, ours: Some(ours) })
        }
        Descriptor::Device | Descriptor::Userfaultfd | Descriptor::Other => {
            alone(File::options().read(true).write(true).open("/dev/null")?.into())
        }
    }
}

/// The guest memory of a replay, and the rings in it.
#[derive(Default)]
pub(super) struct Memory {
    regions: Vec<(MemoryRegion, File)>,
    rings: Vec<Ring>,
}

struct Ring {
    index: u32,
    address: Option<VringAddress>,
    base: u32,
}

impl Memory {
    /// Forgets all regions.
    pub(super) fn clear(&mut self) {
        self.regions.clear();
    }

    /// Remembers a region.
    pub(super) fn add(&mut self, region: MemoryRegion, file: &OwnedFd) {
        if self.regions.len() < KEPT_MAX
            && let Ok(file) = file.try_clone()
        {
            self.regions.push((region, file.into()));
        }
    }

    /// Forgets a region.
    pub(super) fn remove(&mut self, gone: &MemoryRegion) {
        self.regions.retain(|(region, _)| region.guest_address != gone.guest_address);
    }

    /// Remembers the place of a ring.
    pub(super) fn set_address(&mut self, address: VringAddress) {
        if let Some(ring) = self.ring(address.index) {
            ring.address = Some(address);
        }
    }

    /// Remembers the base of a ring.
    pub(super) fn set_base(&mut self, index: u32, base: u32) {
        if let Some(ring) = self.ring(index) {
            ring.base = base;
        }
    }

    fn ring(&mut self, index: u32) -> Option<&mut Ring> {
        if let Some(at) = self.rings.iter().position(|ring| ring.index == index) {
            return self.rings.get_mut(at);
        }
        if self.rings.len() == KEPT_MAX {
            return None;
        }
        self.rings.push(Ring { index, address: None, base: 0 });
        self.rings.last_mut()
    }

    /// Makes a split ring one that has nothing to do: both its indices are its base. Data was not recorded, and zeros
    /// would be read as 65 thousand requests.
    pub(super) fn quiet(&self, index: u32, is_guest: bool) {
        let Some(ring) = self.rings.iter().find(|ring| ring.index == index) else { return };
        let (Some(address), Ok(base)) = (ring.address, u16::try_from(ring.base)) else { return };
        for area in [address.available, address.used] {
            let place = self.regions.iter().find_map(|(region, file)| {
                let start = if is_guest { region.guest_address } else { region.user_address };
                let offset = area.checked_sub(start).filter(|offset| *offset < region.size)?;
                Some((file, region.mmap_offset.checked_add(offset)?.checked_add(2)?))
            });
            if let Some((file, at)) = place {
                // A place that the file does not have is one that the backend refuses.
                let _ = file.write_at(&base.to_le_bytes(), at);
            }
        }
    }
}

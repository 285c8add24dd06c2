//! Sends guest memory to the backend: all of it in one table, or piece by piece (`CONFIGURE_MEM_SLOTS`).

use std::os::fd::{AsFd as _, BorrowedFd};

use super::error::FrontendError;
use super::session::Frontend;
use crate::memory::SharedFile;
use crate::protocol::{
    MemoryRegion, MemoryTable, ProtocolFeatures, REGIONS_MAX, SingleRegion,
    frontend::{AddMemReg, RemMemReg, SetMemTable},
};

/// A piece of guest memory with its file.
#[derive(Debug)]
pub struct SharedRegion {
    /// Its addresses.
    pub region: MemoryRegion,
    /// What the backend maps.
    pub file: SharedFile,
}

impl Frontend {
    /// Shares all of guest memory, in place of what was shared before: by piece if that was negotiated, otherwise as
    /// one table. The session keeps the files, so that it can share them again after a reconnect.
    ///
    /// # Errors
    /// If there are more pieces than the backend takes, or it refuses one.
    pub fn share_memory(&mut self, memory: Vec<SharedRegion>) -> Result<(), FrontendError> {
        for old in std::mem::take(&mut self.memory) {
            if self.said.memory && self.has_protocol(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
                self.rem_mem_reg(&old.region)?;
            }
        }
        self.memory = memory;
        self.share_again()
    }

    /// Shares what the session keeps, on a connection that does not know it.
    pub(super) fn share_again(&mut self) -> Result<(), FrontendError> {
        let memory = std::mem::take(&mut self.memory);
        let shared = self.share(&memory);
        self.memory = memory;
        shared
    }

    fn share(&mut self, memory: &[SharedRegion]) -> Result<(), FrontendError> {
        if !self.has_protocol(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            let regions: Vec<_> = memory.iter().map(|shared| shared.region).collect();
            let fds: Vec<_> = memory.iter().map(|shared| shared.file.as_fd()).collect();
            return self.set_mem_table(&regions, &fds);
        }
        if let Some(slots) = self.negotiated.memory_slots {
            self.bound("ADD_MEM_REG", "regions", memory.len() as u64, slots)?;
        }
        memory.iter().try_for_each(|shared| self.add_mem_reg(&shared.region, shared.file.as_fd()))
    }

    /// `SET_MEM_TABLE`: all of guest memory, a descriptor for each region.
    ///
    /// # Errors
    /// If it comes before `SET_FEATURES`, has too many regions or not as many descriptors, or the backend refuses.
    pub(super) fn set_mem_table(
        &mut self,
        regions: &[MemoryRegion],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), FrontendError> {
        self.need_features("SET_MEM_TABLE")?;
        self.bound("SET_MEM_TABLE", "regions", regions.len() as u64, REGIONS_MAX as u64)?;
        self.bound("SET_MEM_TABLE", "descriptors", fds.len() as u64, regions.len() as u64)?;
        self.after(fds.len() == regions.len(), "SET_MEM_TABLE", "each region has its descriptor")?;
        self.tell(None, &SetMemTable(MemoryTable(regions.to_vec())), fds)?;
        self.said.memory = true;
        Ok(())
    }

    /// `ADD_MEM_REG`: one more piece of guest memory.
    ///
    /// # Errors
    /// If `CONFIGURE_MEM_SLOTS` was not negotiated, or the backend refuses.
    fn add_mem_reg(&mut self, region: &MemoryRegion, file: BorrowedFd<'_>) -> Result<(), FrontendError> {
        self.need("ADD_MEM_REG", ProtocolFeatures::CONFIGURE_MEM_SLOTS, "CONFIGURE_MEM_SLOTS")?;
        self.need_features("ADD_MEM_REG")?;
        self.tell(None, &AddMemReg(SingleRegion(*region)), &[file])?;
        self.said.memory = true;
        Ok(())
    }

    /// `REM_MEM_REG`: one piece less. Its descriptor is not sent along, as the specification requires.
    ///
    /// # Errors
    /// If `CONFIGURE_MEM_SLOTS` was not negotiated, or the backend refuses.
    fn rem_mem_reg(&mut self, region: &MemoryRegion) -> Result<(), FrontendError> {
        self.need("REM_MEM_REG", ProtocolFeatures::CONFIGURE_MEM_SLOTS, "CONFIGURE_MEM_SLOTS")?;
        self.tell(None, &RemMemReg(SingleRegion(*region)), &[])
    }
}

//! Memory that the frontend shares: the guest's, the dirty log, and the record of requests under way.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use super::messages::{Answer, DONE, Session};
use crate::backend::refusal::Refusal;
use crate::memory::{DirtyLog, GuestMemory, Region, SharedFile};
use crate::protocol::{Inflight, Log, MemoryRegion, MemoryTable, Payload as _};
use crate::queue::{InflightRegion, RingKind};
use crate::socket::Event;
use crate::virtio::feature;

impl Session<'_> {
    pub(super) fn set_mem_table(&mut self, table: &MemoryTable, fds: Vec<OwnedFd>) -> Result<Answer, Refusal> {
        if table.0.len() != fds.len() {
            return Err(Refusal::Descriptors { found: fds.len(), expected: table.0.len() });
        }
        let regions =
            table.0.iter().zip(fds).map(|(region, fd)| Region::map(*region, SharedFile::from_peer(fd)).map(Arc::new));
        let memory = GuestMemory::new(regions.collect::<Result<_, _>>()?)?;
        self.set_memory(memory)
    }

    pub(super) fn add_mem_reg(&mut self, region: MemoryRegion, fd: Option<OwnedFd>) -> Result<Answer, Refusal> {
        let Some(fd) = fd else { return Err(Refusal::Descriptors { found: 0, expected: 1 }) };
        let memory = self.memory.with(Region::map(region, SharedFile::from_peer(fd))?)?;
        self.set_memory(memory)
    }

    pub(super) fn rem_mem_reg(&mut self, region: &MemoryRegion) -> Result<Answer, Refusal> {
        let memory = self.memory.without(region)?;
        self.set_memory(memory)
    }

    fn set_memory(&mut self, memory: GuestMemory) -> Result<Answer, Refusal> {
        self.check_rings(&memory)?;
        self.memory = memory;
        self.update_memory()?;
        Ok(Answer::Done)
    }

    pub(super) fn set_log_base(&mut self, log: &Log, fd: Option<OwnedFd>) -> Result<Answer, Refusal> {
        let Some(fd) = fd else { return Err(Refusal::Descriptors { found: 0, expected: 1 }) };
        self.log = Some(Arc::new(DirtyLog::map(log, SharedFile::from_peer(fd))?));
        self.update_logs()?;
        Ok(Answer::of(&DONE))
    }

    pub(super) fn set_log_fd(&mut self, fd: Option<OwnedFd>) -> Result<Answer, Refusal> {
        let Some(fd) = fd else { return Err(Refusal::Descriptors { found: 0, expected: 1 }) };
        self.log_changed = Some(Arc::new(Event::from_peer(fd)?));
        self.update_logs()?;
        Ok(Answer::Done)
    }

    pub(super) fn get_inflight_fd(&mut self, wanted: &Inflight) -> Result<Answer, Refusal> {
        self.check_inflight(wanted)?;
        let (region, file) = InflightRegion::create(self.kind(), wanted.num_queues, wanted.queue_size)?;
        let mut payload = Vec::new();
        region.description().encode(&mut payload);
        let fd = file.as_fd().try_clone_to_owned()?;
        self.inflight = Some(region);
        Ok(Answer::Reply(payload, Some(fd)))
    }

    pub(super) fn set_inflight_fd(&mut self, description: &Inflight, fd: Option<OwnedFd>) -> Result<Answer, Refusal> {
        let Some(fd) = fd else { return Err(Refusal::Descriptors { found: 0, expected: 1 }) };
        self.check_inflight(description)?;
        self.inflight = Some(InflightRegion::map(self.kind(), description, SharedFile::from_peer(fd))?);
        Ok(Answer::Done)
    }

    fn kind(&self) -> RingKind {
        if self.features() & feature::RING_PACKED != 0 { RingKind::Packed } else { RingKind::Split }
    }

    fn check_inflight(&self, wanted: &Inflight) -> Result<(), Refusal> {
        if let Some(ring) = self.running().next() {
            return Err(Refusal::Running { ring });
        }
        if wanted.num_queues == 0 || wanted.num_queues > self.device.queues() {
            return Err(Refusal::Value { field: "num queues", value: wanted.num_queues.into() });
        }
        if wanted.queue_size == 0 || wanted.queue_size > self.device.queue_size_max() {
            return Err(Refusal::Value { field: "queue size", value: wanted.queue_size.into() });
        }
        Ok(())
    }
}

//! Rings: how they are set up, started and stopped, and what may change while they run.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FileType, fstat};

use super::messages::{Answer, Session};
use crate::backend::notify::Notify;
use crate::backend::observe::SessionEvent;
use crate::backend::queues::Queue;
use crate::backend::refusal::Refusal;
use crate::backend::worker::{Command, Kick, RingLog, Worker};
use crate::memory::GuestMemory;
use crate::protocol::{ProtocolFeatures as P, VringAddress, VringFile, VringState};
use crate::queue::{AddressSpace, DeviceRing, RingAreas, RingKind, RingLayout};
use crate::socket::Event;
use crate::virtio::feature;

/// A ring, as far as the session has its parts.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    size: Option<u16>,
    address: Option<VringAddress>,
    base: u32,
    /// What its worker is to be kicked by; the worker has it while the ring runs.
    kick: Option<Kick>,
    call: Teller,
    error: Teller,
    /// What `SET_VRING_ENABLE` set, if it came.
    enable: Option<bool>,
    runs: bool,
}

impl Ring {
    /// Forgets what a driver has set up. The call and error descriptors stay: frontends send them once.
    pub(super) fn reset(&mut self) {
        let Self { call, error, .. } = std::mem::take(self);
        *self = Self { call, error, ..Self::default() };
    }
}

/// How the frontend is notified.
#[derive(Debug, Default)]
enum Teller {
    /// It has not sent this.
    #[default]
    Unset,
    /// It polls.
    Polls,
    /// By this.
    Event(Event),
}

const SPLIT_BASE_MAX: u32 = 0xffff;
/// The flags of `SET_VRING_ADDR` that are defined.
const FLAGS_KNOWN: u32 = VringAddress::LOG;

impl Session<'_> {
    /// The rings that run.
    pub(super) fn running(&self) -> impl Iterator<Item = u16> + '_ {
        let places = self.rings.iter().zip(0_u16..);
        places.filter(|(ring, _)| ring.runs).map(|(_, place)| place)
    }

    fn place(&self, index: u32) -> Result<u16, Refusal> {
        let queues = self.device.queues();
        match u16::try_from(index) {
            Ok(place) if place < queues => Ok(place),
            _ => Err(Refusal::NoRing { index, queues }),
        }
    }

    fn stopped(&self, index: u32) -> Result<u16, Refusal> {
        let ring = self.place(index)?;
        if self.rings[usize::from(ring)].runs { Err(Refusal::Running { ring }) } else { Ok(ring) }
    }

    fn is_packed(&self) -> bool {
        self.features() & feature::RING_PACKED != 0
    }

    fn layout(&self, size: u16) -> RingLayout {
        let has = |feature| self.features() & feature != 0;
        RingLayout {
            kind: if self.is_packed() { RingKind::Packed } else { RingKind::Split },
            size,
            event_idx: has(feature::RING_EVENT_IDX),
            indirect: has(feature::RING_INDIRECT_DESC),
        }
    }

    fn space(&self) -> AddressSpace {
        if self.has(P::GPA_ADDRESSES) { AddressSpace::Guest } else { AddressSpace::User }
    }

    pub(super) fn set_vring_num(&mut self, state: VringState) -> Result<Answer, Refusal> {
        let ring = self.place(state.index)?;
        let wrong = Refusal::Value { field: "num", value: state.num.into() };
        let Ok(size) = u16::try_from(state.num) else { return Err(wrong) };
        if size == 0 || size > self.device.queue_size_max() || !(self.is_packed() || size.is_power_of_two()) {
            return Err(wrong);
        }
        let known = &mut self.rings[usize::from(ring)];
        if known.runs && known.size != Some(size) {
            return Err(Refusal::Running { ring });
        }
        let before = known.size.replace(size);
        self.start_or_undo(ring, |known| known.size = before)
    }

    pub(super) fn set_vring_addr(&mut self, address: VringAddress) -> Result<Answer, Refusal> {
        let ring = self.place(address.index)?;
        if address.flags & !FLAGS_KNOWN != 0 {
            return Err(Refusal::Value { field: "flags", value: address.flags.into() });
        }
        let known = &self.rings[usize::from(ring)];
        if known.runs {
            // Only logging may be changed: the ring stays where it is.
            let place = |address: &VringAddress| (address.descriptor, address.used, address.available);
            if known.address.as_ref().map(place) != Some(place(&address)) {
                return Err(Refusal::Running { ring });
            }
            self.rings[usize::from(ring)].address = Some(address);
            self.update_logs()?;
            return Ok(Answer::Done);
        }
        if self.memory.regions().is_empty() {
            return Err(Refusal::NotSet { ring, missing: "SET_MEM_TABLE" });
        }
        if let Some(size) = known.size {
            RingAreas::find(&self.layout(size), &address, self.space(), &self.memory)?;
        }
        let before = self.rings[usize::from(ring)].address.replace(address);
        self.start_or_undo(ring, |known| known.address = before)
    }

    pub(super) fn set_vring_base(&mut self, state: VringState) -> Result<Answer, Refusal> {
        let ring = self.stopped(state.index)?;
        if !self.is_packed() && state.num > SPLIT_BASE_MAX {
            return Err(Refusal::Value { field: "num", value: state.num.into() });
        }
        self.rings[usize::from(ring)].base = state.num;
        Ok(Answer::Done)
    }

    pub(super) fn get_vring_base(&mut self, state: VringState) -> Result<Answer, Refusal> {
        let ring = self.place(state.index)?;
        self.stop(ring)?;
        let base = self.rings[usize::from(ring)].base;
        let num = self.options.faults.as_ref().map_or(base, |faults| faults.base(ring, base));
        Ok(Answer::of(&VringState { index: state.index, num }))
    }

    pub(super) fn set_vring_kick(&mut self, file: VringFile, fd: Option<OwnedFd>) -> Result<Answer, Refusal> {
        let ring = self.place(file.index.into())?;
        let kick = event(file, fd)?.map_or(Kick::Polled, Kick::Event);
        if self.rings[usize::from(ring)].runs {
            self.tell(ring, Command::Kick(ring, kick))?;
            return Ok(Answer::Done);
        }
        let before = self.rings[usize::from(ring)].kick.replace(kick);
        self.start_or_undo(ring, |known| known.kick = before)
    }

    pub(super) fn set_vring_call(&mut self, file: VringFile, fd: Option<OwnedFd>) -> Result<Answer, Refusal> {
        let ring = self.place(file.index.into())?;
        self.rings[usize::from(ring)].call = event(file, fd)?.map_or(Teller::Polls, Teller::Event);
        if self.rings[usize::from(ring)].runs {
            let call = self.notify(&self.rings[usize::from(ring)].call)?;
            self.tell(ring, Command::Call(ring, call))?;
        }
        Ok(Answer::Done)
    }

    pub(super) fn set_vring_err(&mut self, file: VringFile, fd: Option<OwnedFd>) -> Result<Answer, Refusal> {
        let ring = self.place(file.index.into())?;
        self.rings[usize::from(ring)].error = event(file, fd)?.map_or(Teller::Polls, Teller::Event);
        if self.rings[usize::from(ring)].runs {
            let error = self.notify(&self.rings[usize::from(ring)].error)?;
            self.tell(ring, Command::Error(ring, error))?;
        }
        Ok(Answer::Done)
    }

    pub(super) fn set_vring_enable(&mut self, state: VringState) -> Result<Answer, Refusal> {
        let ring = self.place(state.index)?;
        let enabled = match state.num {
            0 => false,
            1 => true,
            other => return Err(Refusal::Value { field: "num", value: other.into() }),
        };
        self.enable(ring, enabled)?;
        Ok(Answer::Done)
    }

    /// `RESET_OWNER`, which is deprecated: the rings have no effects from now on, the session continues.
    pub(super) fn disable_all(&mut self) -> Result<Answer, Refusal> {
        for ring in 0..self.device.queues() {
            self.enable(ring, false)?;
        }
        Ok(Answer::Done)
    }

    fn enable(&mut self, ring: u16, enabled: bool) -> Result<(), Refusal> {
        self.rings[usize::from(ring)].enable = Some(enabled);
        if self.rings[usize::from(ring)].runs {
            self.tell(ring, Command::Enable(ring, enabled))?;
        }
        Ok(())
    }

    /// A kick by message, which also starts the ring.
    pub(super) fn vring_kick(&mut self, state: VringState) -> Result<Answer, Refusal> {
        let ring = self.place(state.index)?;
        if state.num != 0 {
            return Err(Refusal::Value { field: "num", value: state.num.into() });
        }
        let known = &mut self.rings[usize::from(ring)];
        if known.runs {
            self.tell(ring, Command::Kicked(ring))?;
            return Ok(Answer::Done);
        }
        for (missing, is_set) in [("SET_VRING_NUM", known.size.is_some()), ("SET_VRING_ADDR", known.address.is_some())]
        {
            if !is_set {
                return Err(Refusal::NotSet { ring, missing });
            }
        }
        known.kick.get_or_insert(Kick::Message);
        self.start_or_undo(ring, |known| known.kick = None)
    }

    /// Starts a ring if all of it is set; if that fails, the last change is undone.
    fn start_or_undo(&mut self, ring: u16, undo: impl FnOnce(&mut Ring)) -> Result<Answer, Refusal> {
        match self.start_if_ready(ring) {
            Ok(()) => Ok(Answer::Done),
            Err(refusal) => {
                undo(&mut self.rings[usize::from(ring)]);
                Err(refusal)
            }
        }
    }

    /// Starts a ring if it does not run, and its size, addresses, kick and memory are known.
    pub(super) fn start_if_ready(&mut self, ring: u16) -> Result<(), Refusal> {
        let known = &self.rings[usize::from(ring)];
        let (Some(size), Some(address)) = (known.size, known.address) else { return Ok(()) };
        if known.runs || known.kick.is_none() || self.memory.regions().is_empty() {
            return Ok(());
        }
        let layout = self.layout(size);
        let (base, memory) = (known.base, self.memory.clone());
        let mut device_ring = DeviceRing::new_in(self.space(), ring.into(), layout, &address, base, memory)?;
        let (log, log_changed) = self.ring_log(&address);
        device_ring.set_log(log);
        let inflight = self.inflight.as_ref().map(|region| region.queue(ring)).transpose()?;
        let resubmits = inflight.is_some();
        if let Some(inflight) = inflight {
            device_ring.set_inflight(inflight)?;
        }
        let negotiated = self.features() & feature::PROTOCOL_FEATURES != 0;
        let enabled = known.enable.unwrap_or(!negotiated);
        let mut queue = Box::new(Queue::new(ring, device_ring));
        queue.enabled = enabled;
        queue.call = self.notify(&known.call)?;
        queue.faults.clone_from(&self.options.faults);
        queue.log_changed = log_changed;
        queue.resubmits = resubmits;
        let error = self.notify(&known.error)?;
        self.ensure_worker(ring)?;
        let kick = self.rings[usize::from(ring)].kick.take().expect("was there");
        self.tell(ring, Command::Start(queue, kick, error))?;
        self.rings[usize::from(ring)].runs = true;
        self.options.observer.event(&SessionEvent::RingStarted { queue: ring, size, enabled });
        Ok(())
    }

    /// Stops a ring: when this returns it does nothing any more, and its base is known.
    pub(super) fn stop(&mut self, ring: u16) -> Result<(), Refusal> {
        let known = &mut self.rings[usize::from(ring)];
        known.kick = None;
        if !std::mem::take(&mut known.runs) {
            return Ok(());
        }
        let base = self.tell(ring, Command::Stop(ring))?;
        self.rings[usize::from(ring)].base = base;
        self.options.observer.event(&SessionEvent::RingStopped { queue: ring, base });
        Ok(())
    }

    /// Whether the rings that run are in this memory too.
    pub(super) fn check_rings(&self, memory: &GuestMemory) -> Result<(), Refusal> {
        for ring in self.running() {
            let known = &self.rings[usize::from(ring)];
            if let (Some(size), Some(address)) = (known.size, &known.address) {
                let address = VringAddress { index: ring.into(), ..*address };
                RingAreas::find(&self.layout(size), &address, self.space(), memory)?;
            }
        }
        Ok(())
    }

    /// Sends new memory to all workers, then starts the rings that have waited for it.
    pub(super) fn update_memory(&mut self) -> Result<(), Refusal> {
        for worker in self.workers.values() {
            worker.tell(Command::Memory(self.memory.clone()))?;
        }
        for ring in 0..self.device.queues() {
            self.start_if_ready(ring)?;
        }
        Ok(())
    }

    /// Sends the log, or its end, to the workers of the rings that run.
    pub(super) fn update_logs(&mut self) -> Result<(), Refusal> {
        for ring in self.running().collect::<Vec<_>>() {
            if let Some(address) = self.rings[usize::from(ring)].address {
                self.tell(ring, Command::Log(ring, self.ring_log(&address)))?;
            }
        }
        Ok(())
    }

    /// Sends the way to notify to the workers of the rings that run, after the backend's channel has changed.
    pub(super) fn update_tellers(&mut self) -> Result<(), Refusal> {
        for ring in self.running().collect::<Vec<_>>() {
            let known = &self.rings[usize::from(ring)];
            let (call, error) = (self.notify(&known.call)?, self.notify(&known.error)?);
            self.tell(ring, Command::Call(ring, call))?;
            self.tell(ring, Command::Error(ring, error))?;
        }
        Ok(())
    }

    fn ring_log(&self, address: &VringAddress) -> RingLog {
        if self.features() & feature::LOG_ALL == 0 {
            return (None, None);
        }
        let used = (address.flags & VringAddress::LOG != 0).then_some(address.log);
        let log = self.log.as_ref().map(|log| (Arc::clone(log), used));
        (log, self.log_changed.clone())
    }

    fn notify(&self, teller: &Teller) -> Result<Notify, Refusal> {
        Ok(match (teller, &self.backend_channel) {
            (Teller::Event(event), _) => Notify::Event(event.try_clone()?),
            (Teller::Unset, Some(channel)) if self.has(P::INBAND_NOTIFICATIONS) => Notify::InBand(Arc::clone(channel)),
            (Teller::Unset | Teller::Polls, _) => Notify::Never,
        })
    }

    fn ensure_worker(&mut self, ring: u16) -> Result<(), Refusal> {
        let number = self.device.worker_of(ring);
        if self.workers.contains_key(&number) {
            return Ok(());
        }
        let handler = self.device.start(number, self.features())?;
        let name = format!("{}-{number}", self.device.kind().name());
        let looks_unasked = self.options.faults.as_ref().is_none_or(|faults| faults.looks_unasked());
        let poll_time = if looks_unasked { self.device.poll_time() } else { Duration::ZERO };
        let patience = self.options.stop_timeout;
        let worker = Worker::start(name, handler, poll_time, patience, Arc::clone(&self.options.observer))?;
        self.workers.insert(number, worker);
        Ok(())
    }

    fn tell(&self, ring: u16, command: Command) -> Result<u32, Refusal> {
        let worker = self.workers.get(&self.device.worker_of(ring)).expect("a ring that runs has a worker");
        Ok(worker.tell(command)?)
    }
}

/// What comes with `SET_VRING_KICK`, `_CALL` and `_ERR`: a descriptor, or the flag that there is no descriptor.
fn event(file: VringFile, fd: Option<OwnedFd>) -> Result<Option<Event>, Refusal> {
    if file.reserved != 0 {
        return Err(Refusal::Value { field: "u64", value: file.reserved });
    }
    match (file.no_descriptor, fd) {
        (true, None) => Ok(None),
        (true, Some(_)) => Err(Refusal::Descriptors { found: 1, expected: 0 }),
        (false, None) => Err(Refusal::Descriptors { found: 0, expected: 1 }),
        (false, Some(fd)) => {
            let kind = FileType::from_raw_mode(fstat(&fd).map_err(std::io::Error::from)?.st_mode);
            if matches!(kind, FileType::RegularFile | FileType::Directory | FileType::BlockDevice) {
                return Err(Refusal::DescriptorKind("event"));
            }
            Ok(Some(Event::from_peer(fd)?))
        }
    }
}

//! The rules of the specification that a message breaks, judged by all messages before it in its session.
//!
//! It sees what a man in the middle sees: no rings and no memory, but every promise that the two sides made each other. What it
//! keeps has bounds, whatever is in a recording.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use super::decode::Known;
use super::descriptor::Descriptor;
use super::entry::{Recorded, Side, TapChannel};
use crate::protocol::{
    BackendRequest, Config, Flags, FrontendCall, FrontendRequest, Header, Inflight, MemoryRegion, PackedBase, Payload,
    ProtocolFeatures, VringAddress, VringFile, VringState,
};
use crate::virtio::{Candidate, DeviceKind, feature, plausible, unmet_by_driver, unmet_by_offer};

/// Requests of one channel that wait for an answer; more are forgotten, the oldest first.
const PENDING_MAX: usize = 1024;
/// Regions of memory that are known at once.
const REGIONS_KEPT: usize = 512;
const RING_SIZE_MAX: u32 = 32768;

/// A rule that a message breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Who broke it.
    pub by: Side,
    /// The place of the rule in the specification, by heading or message.
    pub section: &'static str,
    /// What happened.
    pub what: String,
}

/// A request that an answer was found to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answered {
    /// The time of the request.
    pub asked_us: u64,
    /// Whether the reply is only a status (`REPLY_ACK`).
    pub is_acknowledgement: bool,
}

/// What is known of a session.
#[derive(Debug, Default)]
pub(super) struct Witness {
    kind: Option<DeviceKind>,
    offered: Option<u64>,
    accepted: Option<u64>,
    protocol_offered: Option<ProtocolFeatures>,
    protocol_accepted: ProtocolFeatures,
    queues: Option<u64>,
    config: Vec<u8>,
    regions: Vec<MemoryRegion>,
    has_memory: bool,
    rings: BTreeMap<u8, KnownRing>,
    pending: [VecDeque<Pending>; 2],
}

#[derive(Debug, Default)]
struct KnownRing {
    size: Option<u32>,
    has_address: bool,
}

#[derive(Debug)]
struct Pending {
    request: u32,
    name: &'static str,
    asked_us: u64,
    /// It has a reply even without `need_reply`.
    has_reply: bool,
    needs_reply: bool,
    /// `REPLY_ACK` was negotiated at the time of the request.
    with_reply_ack: bool,
    config: Option<(u32, usize)>,
}

/// Collects what a message breaks.
struct Findings<'a> {
    by: Side,
    found: &'a mut Vec<Violation>,
}

impl Findings<'_> {
    fn add(&mut self, section: &'static str, what: impl Into<String>) {
        self.found.push(Violation { by: self.by, section, what: what.into() });
    }
}

impl Witness {
    /// A session of which nothing is known but, maybe, the kind of its device.
    pub(super) fn new(kind: Option<DeviceKind>) -> Self {
        Self { kind, ..Self::default() }
    }

    /// The kind of device: as given, otherwise a guess from the backend's replies.
    pub(super) fn kind(&self) -> Option<DeviceKind> {
        self.kind.or_else(|| self.guess().map(|guess| guess.kind))
    }

    /// What is known to decode its messages by.
    pub(super) fn known(&self) -> Known {
        Known { kind: self.kind(), packed_rings: self.has_packed_rings() }
    }

    fn has_packed_rings(&self) -> bool {
        self.accepted.is_some_and(|bits| bits & feature::RING_PACKED != 0)
    }

    /// A guess at the kind from the backend's replies.
    pub(super) fn guess(&self) -> Option<Candidate> {
        plausible(self.offered?, self.queues, &self.config).into_iter().next()
    }

    /// Takes in a message: what it breaks, and which request it answers.
    pub(super) fn see(&mut self, time_us: u64, message: &Recorded, found: &mut Vec<Violation>) -> Option<Answered> {
        let header = Header {
            request: message.request,
            flags: Flags::from_bits(message.flags),
            payload_bytes: message.payload.len().try_into().unwrap_or(u32::MAX),
        };
        let mut findings = Findings { by: message.from, found };
        if let Err(error) = header.check() {
            findings.add("Header", error.to_string());
        }
        let is_answer = message.from != message.channel.asker();
        if is_answer != header.flags.is_reply() {
            let what = if is_answer { "a reply without the reply flag" } else { "a request with the reply flag" };
            findings.add("Header", what);
        }
        match (message.channel, is_answer) {
            (channel, true) => self.see_answer(channel, message, &mut findings),
            (TapChannel::Main, false) => {
                self.see_request(time_us, message, header.flags, &mut findings);
                None
            }
            (TapChannel::Backend, false) => {
                self.see_backend_request(time_us, message, header.flags, &mut findings);
                None
            }
        }
    }

    /// A session is over: the requests that never got a reply.
    pub(super) fn end(&mut self, found: &mut Vec<Violation>) {
        for channel in [TapChannel::Main, TapChannel::Backend] {
            for pending in std::mem::take(&mut self.pending[channel as usize]) {
                if pending.must_be_answered() {
                    let by = channel.asker().peer();
                    let what = format!("{} got no reply", pending.name);
                    found.push(Violation { by, section: "Communication", what });
                }
            }
        }
    }

    fn ask(&mut self, channel: TapChannel, pending: Pending) {
        if pending.has_reply || pending.needs_reply {
            let queue = &mut self.pending[channel as usize];
            if queue.len() == PENDING_MAX {
                queue.pop_front();
            }
            queue.push_back(pending);
        }
    }

    fn see_request(&mut self, time_us: u64, message: &Recorded, flags: Flags, findings: &mut Findings<'_>) {
        let known = FrontendRequest::from_number(message.request);
        let has_reply_ack = self.protocol_accepted.contains(ProtocolFeatures::REPLY_ACK);
        let mut pending = Pending {
            request: message.request,
            name: known.map_or("an unknown request", FrontendRequest::name),
            asked_us: time_us,
            has_reply: known.is_some_and(FrontendRequest::has_reply),
            needs_reply: flags.needs_reply(),
            with_reply_ack: has_reply_ack,
            config: None,
        };
        if known == Some(FrontendRequest::SetLogBase) && !self.protocol_accepted.contains(ProtocolFeatures::LOG_SHMFD) {
            pending.has_reply = false;
        }
        if flags.needs_reply() && !has_reply_ack {
            findings.add("VHOST_USER_PROTOCOL_F_REPLY_ACK", "has need_reply, but REPLY_ACK was not negotiated");
        }
        let Some(request) = known else {
            findings.add("Front-end message types", format!("request {} does not exist", message.request));
            self.ask(TapChannel::Main, pending);
            return;
        };
        if let Some(needed) = needed(request).filter(|needed| !self.protocol_accepted.contains(*needed)) {
            findings.add("Protocol features", format!("{request} needs {needed}, which was not negotiated"));
        }
        let count = message.fds.len();
        if !request.descriptors().contains(&count) {
            let allowed = request.descriptors();
            let what = format!("{request} has {count} descriptors, not {} to {}", allowed.start(), allowed.end());
            findings.add("Communication", what);
        }
        match FrontendCall::decode(request, &message.payload) {
            Ok(call) => {
                if let FrontendCall::GetConfig(config) = &call {
                    pending.config = Some((config.0.offset, config.0.bytes.len()));
                }
                self.see_call(&call, &message.fds, findings);
            }
            Err(error) => findings.add("Payload", format!("{request}: {error}")),
        }
        self.ask(TapChannel::Main, pending);
    }

    fn see_call(&mut self, call: &FrontendCall, fds: &[Descriptor], findings: &mut Findings<'_>) {
        use FrontendCall as Call;
        match call {
            Call::SetFeatures(bits) => {
                let never = bits.0 & !self.offered.unwrap_or(u64::MAX);
                // LOG_ALL is switched on for a migration, whatever the guest's driver was offered.
                if never & !feature::LOG_ALL != 0 {
                    findings.add("SET_FEATURES", format!("accepts {never:#x}, which was never offered"));
                }
                if let Some(kind) = self.kind() {
                    for unmet in unmet_by_driver(kind, bits.0) {
                        findings.add(unmet.section, format!("accepts {unmet}"));
                    }
                }
                self.accepted = Some(bits.0);
            }
            Call::SetProtocolFeatures(bits) => {
                let bits = ProtocolFeatures::from_bits(bits.0);
                if self.offered.is_some_and(|offered| offered & feature::PROTOCOL_FEATURES == 0) {
                    findings.add("Protocol features", "the backend did not offer PROTOCOL_FEATURES");
                }
                let never = bits.difference(self.protocol_offered.unwrap_or(bits));
                if never != ProtocolFeatures::empty() {
                    findings.add("SET_PROTOCOL_FEATURES", format!("accepts {never}, which was never offered"));
                }
                self.protocol_accepted = bits;
            }
            Call::SetMemTable(table) => {
                let regions = &table.0.0;
                if regions.len() != fds.len() {
                    let what = format!("{} regions with {} descriptors", regions.len(), fds.len());
                    findings.add("Memory regions description", what);
                }
                self.regions.clear();
                for (place, region) in regions.iter().enumerate() {
                    self.see_region(region, fds.get(place), findings);
                }
                self.has_memory = true;
            }
            Call::AddMemReg(region) => {
                self.see_region(&region.0.0, fds.first(), findings);
                self.has_memory = true;
            }
            Call::RemMemReg(region) => {
                let gone = &region.0.0;
                let same = |one: &MemoryRegion| one.guest_address == gone.guest_address && one.size == gone.size;
                if !self.regions.iter().any(same) {
                    findings
                        .add("REM_MEM_REG", format!("there is no region at guest address {:#x}", gone.guest_address));
                }
                self.regions.retain(|one| !same(one));
            }
            Call::SetVringNum(state) => {
                let (index, size) = (state.0.index, state.0.num);
                if size == 0 || size > RING_SIZE_MAX || !(self.has_packed_rings() || size.is_power_of_two()) {
                    findings.add("SET_VRING_NUM", format!("ring {index} has the invalid size {size}"));
                }
                if let Some(ring) = self.ring(index, findings) {
                    ring.size = Some(size);
                }
            }
            Call::SetVringAddr(address) => self.see_ring_address(&address.0, findings),
            Call::SetVringKick(file) => {
                self.see_ring_file(file.0, fds, findings);
                let has_memory = self.has_memory;
                let ring = self.ring(file.0.index.into(), findings);
                if ring.is_some_and(|ring| !ring.has_address || ring.size.is_none()) || !has_memory {
                    let what =
                        format!("ring {} is started before its size, addresses and memory are set", file.0.index);
                    findings.add("Ring states", what);
                }
            }
            Call::SetVringCall(file) => self.see_ring_file(file.0, fds, findings),
            Call::SetVringErr(file) => self.see_ring_file(file.0, fds, findings),
            Call::SetVringEnable(state) => {
                self.ring(state.0.index, findings);
                if state.0.num > 1 {
                    findings.add("SET_VRING_ENABLE", format!("{} is neither 0 nor 1", state.0.num));
                }
                if self.accepted.is_none_or(|bits| bits & feature::PROTOCOL_FEATURES == 0) {
                    let what = "sent before PROTOCOL_FEATURES was negotiated by SET_FEATURES";
                    findings.add("SET_VRING_ENABLE", what);
                }
            }
            Call::SetVringBase(state) => self.see_base("SET_VRING_BASE", state.0, findings),
            Call::GetVringBase(state) => self.see_stop("GET_VRING_BASE", state.0, findings),
            Call::GetVringBaseSkipDrain(state) => self.see_stop("GET_VRING_BASE_SKIP_DRAIN", state.0, findings),
            _ => {}
        }
    }

    fn see_region(&mut self, region: &MemoryRegion, fd: Option<&Descriptor>, findings: &mut Findings<'_>) {
        const SECTION: &str = "Memory regions description";
        let at = region.guest_address;
        match fd {
            Some(Descriptor::Memfd { bytes } | Descriptor::File { bytes }) => {
                if region.mmap_offset.checked_add(region.size).is_none_or(|end| end > *bytes) {
                    findings.add(SECTION, format!("the region at guest address {at:#x} is longer than its file"));
                }
            }
            Some(Descriptor::Device | Descriptor::Other) | None => {}
            Some(other) => findings.add(SECTION, format!("the region at guest address {at:#x} is a {}", other.words())),
        }
        if region.size == 0 || at.checked_add(region.size).is_none() {
            findings.add(SECTION, format!("the region at guest address {at:#x} has an invalid size"));
        }
        let overlaps = |other: &MemoryRegion| {
            at < other.guest_address.saturating_add(other.size) && other.guest_address < at.saturating_add(region.size)
        };
        if self.regions.iter().any(overlaps) {
            findings.add(SECTION, format!("the region at guest address {at:#x} overlaps another"));
        }
        if self.regions.len() < REGIONS_KEPT {
            self.regions.push(*region);
        }
    }

    fn see_ring_address(&mut self, address: &VringAddress, findings: &mut Findings<'_>) {
        const SECTION: &str = "SET_VRING_ADDR";
        let index = address.index;
        let is_guest = self.protocol_accepted.contains(ProtocolFeatures::GPA_ADDRESSES);
        let parts =
            [("descriptor", address.descriptor, 16), ("available", address.available, 2), ("used", address.used, 4)];
        for (name, place, alignment) in parts {
            let holds = |region: &MemoryRegion| {
                let start = if is_guest { region.guest_address } else { region.user_address };
                place.checked_sub(start).is_some_and(|offset| offset < region.size)
            };
            if self.has_memory && !self.regions.iter().any(holds) {
                findings.add(SECTION, format!("the {name} area of ring {index} at {place:#x} is outside all regions"));
            }
            if place % alignment != 0 {
                let what = format!("the {name} area of ring {index} at {place:#x} is not aligned to {alignment}");
                findings.add(SECTION, what);
            }
        }
        if let Some(ring) = self.ring(index, findings) {
            ring.has_address = true;
        }
    }

    /// The base of a ring, from either side.
    fn see_base(&mut self, section: &'static str, state: VringState, findings: &mut Findings<'_>) {
        let VringState { index, num } = state;
        let is_packed = self.has_packed_rings();
        let Some(ring) = self.ring(index, findings) else { return };
        if is_packed {
            let base = PackedBase::from_bits(num);
            if let Some(size) = ring.size.filter(|size| !base.is_inside(*size)) {
                findings.add(section, format!("packed ring {index} has {size} entries, but its indices are {base}"));
            }
        } else if num > 0xffff {
            findings
                .add(section, format!("the index of split ring {index} is {num:#x}, but bits 16 to 31 are reserved"));
        }
    }

    fn see_base_reply(&mut self, section: &'static str, payload: &[u8], findings: &mut Findings<'_>) {
        if let Ok(state) = VringState::decode(payload) {
            self.see_base(section, state, findings);
        }
    }

    fn see_stop(&mut self, section: &'static str, state: VringState, findings: &mut Findings<'_>) {
        self.ring(state.index, findings);
        if state.num != 0 {
            findings.add(section, format!("num is {}, but it is reserved and must be 0", state.num));
        }
    }

    fn see_ring_file(&mut self, file: VringFile, fds: &[Descriptor], findings: &mut Findings<'_>) {
        const SECTION: &str = "A vring descriptor index";
        let VringFile { index, no_descriptor, reserved } = file;
        if no_descriptor != fds.is_empty() {
            let what = if no_descriptor {
                "has a descriptor, but bit 8 is set"
            } else {
                "has no descriptor, but bit 8 is clear"
            };
            findings.add(SECTION, format!("the event of ring {index} {what}"));
        }
        if reserved != 0 {
            findings.add(SECTION, format!("reserved bits are set: {reserved:#x}"));
        }
        self.ring(index.into(), findings);
    }

    /// The ring with this number, if it exists.
    fn ring(&mut self, index: u32, findings: &mut Findings<'_>) -> Option<&mut KnownRing> {
        // Backends of network cards differ in what they count: queues, or pairs of them.
        let count = self.queues.filter(|_| self.kind().is_some_and(|kind| kind != DeviceKind::Net));
        if count.is_some_and(|count| u64::from(index) >= count) {
            findings.add(
                "Multiple queue support",
                format!("ring {index} does not exist: the backend has {} queues", count.unwrap_or(0)),
            );
        }
        match u8::try_from(index) {
            Ok(index) => Some(self.rings.entry(index).or_default()),
            Err(_) => {
                findings.add("Multiple queue support", format!("ring {index} does not exist"));
                None
            }
        }
    }

    fn see_backend_request(&mut self, time_us: u64, message: &Recorded, flags: Flags, findings: &mut Findings<'_>) {
        let known = BackendRequest::from_number(message.request);
        self.ask(
            TapChannel::Backend,
            Pending {
                request: message.request,
                name: known.map_or("an unknown request", BackendRequest::name),
                asked_us: time_us,
                has_reply: known.is_some_and(BackendRequest::has_reply),
                needs_reply: flags.needs_reply(),
                with_reply_ack: self.protocol_accepted.contains(ProtocolFeatures::REPLY_ACK),
                config: None,
            },
        );
        let Some(request) = known else {
            findings.add("Back-end message types", format!("request {} does not exist", message.request));
            return;
        };
        let needed = match request {
            BackendRequest::IotlbMsg | BackendRequest::ConfigChangeMsg => ProtocolFeatures::BACKEND_REQ,
            BackendRequest::VringHostNotifierMsg => ProtocolFeatures::HOST_NOTIFIER,
            BackendRequest::VringCall | BackendRequest::VringErr => ProtocolFeatures::INBAND_NOTIFICATIONS,
            BackendRequest::SharedObjectAdd
            | BackendRequest::SharedObjectRemove
            | BackendRequest::SharedObjectLookup => ProtocolFeatures::SHARED_OBJECT,
            BackendRequest::ShmemMap | BackendRequest::ShmemUnmap => ProtocolFeatures::SHMEM,
        };
        if !self.protocol_accepted.contains(needed) {
            findings.add("Protocol features", format!("{request} needs {needed}, which was not negotiated"));
        }
        if !message.fds.is_empty() && !self.protocol_accepted.contains(ProtocolFeatures::BACKEND_SEND_FD) {
            findings.add("Back-end communication", "has a descriptor, but BACKEND_SEND_FD was not negotiated");
        }
        if let Err(error) = crate::protocol::BackendCall::decode(request, &message.payload) {
            findings.add("Payload", format!("{request}: {error}"));
        }
    }

    fn see_answer(&mut self, channel: TapChannel, message: &Recorded, findings: &mut Findings<'_>) -> Option<Answered> {
        let queue = &mut self.pending[channel as usize];
        let Some(place) = queue.iter().position(|pending| pending.request == message.request) else {
            findings.add("Communication", format!("replies to request {}, which was not sent", message.request));
            return None;
        };
        for skipped in queue.drain(..place) {
            if skipped.must_be_answered() {
                findings.add("Communication", format!("{} got no reply in its turn", skipped.name));
            }
        }
        let asked = queue.pop_front()?;
        let is_acknowledgement = !asked.has_reply;
        if is_acknowledgement && !asked.with_reply_ack {
            findings.add("VHOST_USER_PROTOCOL_F_REPLY_ACK", "a reply, but REPLY_ACK was not negotiated");
        }
        if channel == TapChannel::Main {
            self.see_reply(&asked, is_acknowledgement, message, findings);
        }
        Some(Answered { asked_us: asked.asked_us, is_acknowledgement })
    }

    fn see_reply(
        &mut self,
        asked: &Pending,
        is_acknowledgement: bool,
        message: &Recorded,
        findings: &mut Findings<'_>,
    ) {
        use FrontendRequest as Request;
        if is_acknowledgement {
            if let Err(error) = u64::decode(&message.payload) {
                findings.add("VHOST_USER_PROTOCOL_F_REPLY_ACK", format!("{}: {error}", asked.name));
            }
            return;
        }
        let number = u64::decode(&message.payload).ok();
        match Request::from_number(message.request) {
            Some(Request::GetFeatures) => {
                self.offered = number.or(self.offered);
                if let (Some(kind), Some(offered)) = (self.kind(), number) {
                    for unmet in unmet_by_offer(kind, offered) {
                        findings.add(unmet.section, format!("offers {unmet}"));
                    }
                }
            }
            Some(Request::GetVringBase) => self.see_base_reply("GET_VRING_BASE", &message.payload, findings),
            Some(Request::GetVringBaseSkipDrain) => {
                self.see_base_reply("GET_VRING_BASE_SKIP_DRAIN", &message.payload, findings);
            }
            Some(Request::GetProtocolFeatures) => {
                self.protocol_offered = number.map(ProtocolFeatures::from_bits).or(self.protocol_offered);
            }
            Some(Request::GetQueueNum) => self.queues = number.or(self.queues),
            Some(Request::GetConfig) => {
                if let (Ok(config), Some((offset, size))) = (Config::decode(&message.payload), asked.config) {
                    if !config.bytes.is_empty() && (config.offset, config.bytes.len()) != (offset, size) {
                        let what =
                            format!("{} bytes at offset {}, not the requested ones", config.bytes.len(), config.offset);
                        findings.add("GET_CONFIG", what);
                    }
                    if config.offset == 0
                        && config.bytes.len() <= Config::BYTES_MAX
                        && config.bytes.len() > self.config.len()
                    {
                        self.config = config.bytes;
                    }
                }
            }
            Some(Request::GetInflightFd) => {
                let has_memory = Inflight::decode(&message.payload).is_ok_and(|inflight| inflight.mmap_size > 0);
                if has_memory && message.fds.len() != 1 {
                    findings.add("GET_INFLIGHT_FD", "the region has no descriptor");
                }
            }
            _ => {}
        }
        if let Some(error) = super::decode::decode(message, Known::default()).error {
            findings.add("Payload", format!("the reply to {}: {error}", asked.name));
        }
    }
}

impl Pending {
    const fn must_be_answered(&self) -> bool {
        self.has_reply || (self.needs_reply && self.with_reply_ack)
    }
}

/// The protocol feature without which a request may not be made.
const fn needed(request: FrontendRequest) -> Option<ProtocolFeatures> {
    use FrontendRequest as Request;
    Some(match request {
        Request::GetQueueNum => ProtocolFeatures::MQ,
        Request::SendRarp => ProtocolFeatures::RARP,
        Request::NetSetMtu => ProtocolFeatures::NET_MTU,
        Request::SetBackendReqFd => ProtocolFeatures::BACKEND_REQ,
        Request::SetVringEndian => ProtocolFeatures::CROSS_ENDIAN,
        Request::GetConfig | Request::SetConfig => ProtocolFeatures::CONFIG,
        Request::CreateCryptoSession | Request::CloseCryptoSession => ProtocolFeatures::CRYPTO_SESSION,
        Request::PostcopyAdvise | Request::PostcopyListen | Request::PostcopyEnd => ProtocolFeatures::PAGEFAULT,
        Request::GetInflightFd | Request::SetInflightFd => ProtocolFeatures::INFLIGHT_SHMFD,
        Request::ResetDevice => ProtocolFeatures::RESET_DEVICE,
        Request::VringKick => ProtocolFeatures::INBAND_NOTIFICATIONS,
        Request::GetMaxMemSlots | Request::AddMemReg | Request::RemMemReg => ProtocolFeatures::CONFIGURE_MEM_SLOTS,
        Request::SetStatus | Request::GetStatus => ProtocolFeatures::STATUS,
        Request::GetSharedObject => ProtocolFeatures::SHARED_OBJECT,
        Request::SetDeviceStateFd | Request::CheckDeviceState => ProtocolFeatures::DEVICE_STATE,
        Request::GetShmemConfig => ProtocolFeatures::SHMEM,
        Request::GetVringBaseSkipDrain => ProtocolFeatures::GET_VRING_BASE_SKIP_DRAIN,
        _ => return None,
    })
}

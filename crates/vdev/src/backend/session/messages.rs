//! What a message goes through: its form, what was negotiated, what it does, and the reply.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use super::negotiate;
use super::rings::Ring;
use crate::backend::device::Device;
use crate::backend::fault::{AnswerFault, Offer};
use crate::backend::notify::BackendChannel;
use crate::backend::observe::SessionEvent;
use crate::backend::refusal::{Refusal, SessionError};
use crate::backend::server::Options;
use crate::backend::worker::Worker;
use crate::memory::{DirtyLog, GuestMemory};
use crate::protocol::{FrontendCall, FrontendRequest, Header, Payload, ProtocolFeatures};
use crate::queue::InflightRegion;
use crate::socket::{Channel, Event, Flow, RawMessage, wait_readable};

/// The reply to a message that has no reply of its own.
pub(super) const DONE: u64 = 0;
pub(super) const REFUSED: u64 = 1;

/// What a message led to.
pub(super) enum Answer {
    /// It was done, and has no answer of its own.
    Done,
    /// Its own answer.
    Reply(Vec<u8>, Option<OwnedFd>),
}

impl Answer {
    pub(super) fn of(payload: &impl Payload) -> Self {
        let mut bytes = Vec::new();
        payload.encode(&mut bytes);
        Self::Reply(bytes, None)
    }
}

/// One frontend's session.
pub(in crate::backend) struct Session<'a> {
    /// By the device's numbers. They come first, so that they have ended before the frontend sees that the session has:
    /// then no worker writes to its memory any more.
    pub(super) workers: BTreeMap<u16, Worker>,
    pub(super) channel: Channel,
    pub(super) device: &'a Arc<dyn Device>,
    pub(super) options: &'a Options,
    pub(super) offer: Offer,
    /// What `SET_FEATURES` set, if it came.
    pub(super) features: Option<u64>,
    pub(super) protocol_features: ProtocolFeatures,
    pub(super) status: u8,
    pub(super) memory: GuestMemory,
    pub(super) log: Option<Arc<DirtyLog>>,
    pub(super) log_changed: Option<Arc<Event>>,
    pub(super) inflight: Option<InflightRegion>,
    pub(super) backend_channel: Option<Arc<BackendChannel>>,
    pub(super) rings: Vec<Ring>,
    /// Where the state of another device comes from, until CHECK_DEVICE_STATE comes.
    pub(super) incoming_state: Option<Flow>,
    /// Whether the state that was saved last has reached the frontend.
    pub(super) state_is_good: bool,
}

impl<'a> Session<'a> {
    pub(in crate::backend) fn new(channel: Channel, device: &'a Arc<dyn Device>, options: &'a Options) -> Self {
        let mut offer = negotiate::offer(device.as_ref());
        if let Some(faults) = &options.faults {
            faults.offer(&mut offer);
        }
        Self {
            workers: BTreeMap::new(),
            channel,
            device,
            options,
            offer,
            features: None,
            protocol_features: ProtocolFeatures::empty(),
            status: 0,
            memory: GuestMemory::default(),
            log: None,
            log_changed: None,
            inflight: None,
            backend_channel: None,
            rings: (0..device.queues()).map(|_| Ring::default()).collect(),
            incoming_state: None,
            state_is_good: true,
        }
    }

    /// Takes messages until the frontend disconnects or the server is stopped.
    pub(in crate::backend) fn run(&mut self, stop: &Event, config_changed: &Event) -> Result<(), SessionError> {
        self.options.observer.event(&SessionEvent::Offered { offer: &self.offer });
        loop {
            let waited = wait_readable([stop.as_fd(), config_changed.as_fd(), self.channel.as_fd()], None);
            let [is_stopped, is_changed, _] = waited.map_err(|error| self.io(error))?;
            if is_stopped {
                return Ok(());
            }
            if is_changed && config_changed.take().map_err(|error| self.io(error))? {
                self.tell_config_changed();
                continue;
            }
            let message = self.channel.receive()?;
            self.options.observer.event(&SessionEvent::Received {
                header: message.header,
                payload: &message.payload,
                fds: message.fds.len(),
            });
            let faults = self.options.faults.as_ref();
            match faults.and_then(|faults| faults.message(message.header.request)) {
                None => self.take(message, &AnswerFault::default())?,
                Some(fault) => self.take_wrong(message, &fault, stop)?,
            }
        }
    }

    /// Handles a message, and replies.
    pub(super) fn take(&mut self, message: RawMessage, fault: &AnswerFault) -> Result<(), SessionError> {
        let Header { request: number, flags, .. } = message.header;
        let handled = self.follow(message);
        // A message may have negotiated that it is answered.
        let wants_reply = flags.needs_reply() && self.protocol_features.contains(ProtocolFeatures::REPLY_ACK);
        match handled {
            Ok((request, answer)) => {
                self.options.observer.event(&SessionEvent::Handled { request });
                match answer {
                    Answer::Reply(payload, fd) => self.answer(number, &payload, fd.as_ref(), fault),
                    Answer::Done if wants_reply => self.answer(number, &DONE.to_ne_bytes(), None, fault),
                    Answer::Done => Ok(()),
                }
            }
            Err(refusal) => self.refuse(number, refusal, wants_reply, REFUSED, fault),
        }
    }

    /// Reports to the frontend that its message was refused; if that is not possible, the session ends.
    pub(super) fn refuse(
        &mut self,
        request: u32,
        refusal: Refusal,
        wants_reply: bool,
        code: u64,
        fault: &AnswerFault,
    ) -> Result<(), SessionError> {
        // A message with a reply of its own has no reply for an error, except for those whose reply is a status.
        let can_be_told = wants_reply
            && !refusal.ends_session()
            && FrontendRequest::from_number(request).is_none_or(|request| !request.has_reply() || is_status(request));
        let event = SessionEvent::Refused { request, refusal: &refusal, told: can_be_told };
        self.options.observer.event(&event);
        if can_be_told {
            return self.answer(request, &code.to_ne_bytes(), None, fault);
        }
        Err(SessionError::Refused { socket: self.channel.name().to_owned(), request, source: refusal })
    }

    /// Checks a message's form, then has it done.
    fn follow(&mut self, message: RawMessage) -> Result<(FrontendRequest, Answer), Refusal> {
        let RawMessage { header, payload, fds } = message;
        if header.flags.is_reply() {
            return Err(Refusal::Value { field: "flags", value: header.flags.bits().into() });
        }
        let request = FrontendRequest::from_number(header.request).ok_or(Refusal::Unknown(header.request))?;
        self.check_negotiated(request)?;
        if !request.descriptors().contains(&fds.len()) {
            return Err(Refusal::Descriptors { found: fds.len(), expected: *request.descriptors().start() });
        }
        let call = FrontendCall::decode(request, &payload)?;
        let answer = self.dispatch(call, fds)?;
        Ok((request, answer))
    }

    fn dispatch(&mut self, call: FrontendCall, mut fds: Vec<OwnedFd>) -> Result<Answer, Refusal> {
        use FrontendCall as Call;
        match call {
            Call::GetFeatures(_) => Ok(Answer::of(&self.offer.features)),
            Call::SetFeatures(message) => self.set_features(message.0),
            Call::SetOwner(_) => Ok(Answer::Done),
            Call::ResetOwner(_) => self.disable_all(),
            Call::GetProtocolFeatures(_) => Ok(Answer::of(&self.offer.protocol_features.bits())),
            Call::SetProtocolFeatures(message) => self.set_protocol_features(message.0),
            Call::GetQueueNum(_) => Ok(Answer::of(&self.offer.queues)),
            Call::SetStatus(message) => self.set_status(message.0),
            Call::GetStatus(_) => Ok(Answer::of(&u64::from(self.status))),
            Call::ResetDevice(_) => self.reset_device(),

            Call::SetMemTable(message) => self.set_mem_table(&message.0, fds),
            Call::GetMaxMemSlots(_) => Ok(Answer::of(&(GuestMemory::SLOTS_MAX as u64))),
            Call::AddMemReg(message) => self.add_mem_reg(message.0.0, fds.pop()),
            // A descriptor that came along is closed when `fds` is dropped.
            Call::RemMemReg(message) => self.rem_mem_reg(&message.0.0),
            Call::SetLogBase(message) => self.set_log_base(&message.0, fds.pop()),
            Call::SetLogFd(_) => self.set_log_fd(fds.pop()),
            Call::GetInflightFd(message) => self.get_inflight_fd(&message.0),
            Call::SetInflightFd(message) => self.set_inflight_fd(&message.0, fds.pop()),

            Call::SetVringNum(message) => self.set_vring_num(message.0),
            Call::SetVringAddr(message) => self.set_vring_addr(message.0),
            Call::SetVringBase(message) => self.set_vring_base(message.0),
            Call::GetVringBase(message) => self.get_vring_base(message.0),
            Call::SetVringKick(message) => self.set_vring_kick(message.0, fds.pop()),
            Call::SetVringCall(message) => self.set_vring_call(message.0, fds.pop()),
            Call::SetVringErr(message) => self.set_vring_err(message.0, fds.pop()),
            Call::SetVringEnable(message) => self.set_vring_enable(message.0),
            Call::VringKick(message) => self.vring_kick(message.0),

            Call::GetConfig(message) => Ok(self.get_config(&message.0)),
            Call::SetConfig(message) => self.set_config(&message.0),
            Call::NetSetMtu(message) => self.set_mtu(message.0),
            Call::SendRarp(message) => self.send_rarp(message.0),
            Call::SetBackendReqFd(_) => self.set_backend_req_fd(fds.pop()),
            Call::SetDeviceStateFd(message) => Ok(self.set_device_state_fd(message.0, fds.pop())),
            Call::CheckDeviceState(_) => Ok(self.check_device_state()),

            // What is never offered: `check_negotiated` has refused it.
            Call::IotlbMsg(_)
            | Call::SetVringEndian(_)
            | Call::CreateCryptoSession(_)
            | Call::CloseCryptoSession(_)
            | Call::PostcopyAdvise(_)
            | Call::PostcopyListen(_)
            | Call::PostcopyEnd(_)
            | Call::GpuSetSocket(_)
            | Call::GetSharedObject(_)
            | Call::GetShmemConfig(_)
            | Call::GetVringBaseSkipDrain(_) => Err(Refusal::OfNoUse),
        }
    }

    /// Sends a reply, or something else if a script requires it.
    pub(super) fn answer(
        &mut self,
        request: u32,
        payload: &[u8],
        fd: Option<&OwnedFd>,
        fault: &AnswerFault,
    ) -> Result<(), SessionError> {
        if *fault == AnswerFault::default() {
            let fd = fd.map(OwnedFd::as_fd);
            return Ok(self.channel.answer(request, payload, fd.as_slice())?);
        }
        self.answer_wrong(request, payload, fd, fault)
    }

    pub(super) fn on_purpose(&self) -> SessionError {
        SessionError::OnPurpose { socket: self.channel.name().to_owned() }
    }

    pub(super) fn io(&self, source: std::io::Error) -> SessionError {
        let socket = self.channel.name().to_owned();
        SessionError::Socket(crate::socket::SocketError::Io { socket, doing: "waiting".to_owned(), source })
    }
}

/// Whether a request's own reply is a status.
const fn is_status(request: FrontendRequest) -> bool {
    use FrontendRequest as R;
    matches!(request, R::SetLogBase | R::IotlbMsg | R::PostcopyEnd | R::SetDeviceStateFd | R::CheckDeviceState)
}

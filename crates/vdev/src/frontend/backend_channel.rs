//! Requests of the backend, on a channel of its own. Nothing that comes there is trusted: messages, descriptors and
//! what is kept of them have bounds, and a backend that sends something wrong loses the channel.

#[cfg(feature = "testing")]
mod taken;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::error::FrontendError;
use super::session::Said;
use super::vring::RINGS_MAX;
use crate::protocol::{
    BackendCall, BackendRequest, Iotlb, IotlbKind, PAYLOAD_BYTES_MAX, ProtocolFeatures, SharedObject,
};
use crate::socket::{Channel, RawMessage};

/// Notices that are kept until the caller takes them; a backend that sends more is refused.
const NOTICES_MAX: usize = 64;
/// Shared objects that are known of at most.
const OBJECTS_MAX: usize = 64;

/// The answer to a request that we did.
const DONE: u64 = 0;
/// The answer to one that we did not.
const REFUSED: u64 = 1;

/// What a backend has sent on its own channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The configuration is another: read it again.
    ConfigChanged,
    /// The backend lacks a translation (`IOTLB_MSG`).
    IotlbMiss(Iotlb),
    /// The backend was denied an access that it tried.
    IotlbAccessFail(Iotlb),
    /// The backend has an object of this UUID (`GET_SHARED_OBJECT`).
    ObjectAdded([u8; 16]),
    /// It can be had no more.
    ObjectRemoved([u8; 16]),
    /// The backend closed its channel.
    Closed,
}

/// Our end of the backend's channel and what was sent there.
#[derive(Debug, Default)]
pub(super) struct BackendSide {
    channel: Option<Channel>,
    notices: VecDeque<Notice>,
    /// Rings that were called and rings with an error, a bit each (`INBAND_NOTIFICATIONS`).
    called: RingSet,
    failed: RingSet,
    /// The objects that the backend has added, and those that we offer with their descriptor.
    objects: BTreeMap<[u8; 16], Option<OwnedFd>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct RingSet([u64; RINGS_MAX as usize / 64]);

impl RingSet {
    fn insert(&mut self, ring: u32) {
        self.0[ring as usize / 64] |= 1 << (ring % 64);
    }
}

impl BackendSide {
    pub(super) const fn channel(&self) -> Option<&Channel> {
        self.channel.as_ref()
    }

    /// A new channel; returns the backend's end.
    pub(super) fn open(&mut self, name: String, timeout: Duration) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        self.channel = Some(Channel::new(ours, name, timeout));
        Ok(theirs)
    }

    /// Forgets the connection and what came on it. What we offer stays.
    pub(super) fn close(&mut self) {
        self.channel = None;
        self.notices.clear();
        (self.called, self.failed) = (RingSet::default(), RingSet::default());
        self.objects.retain(|_, offered| offered.is_some());
    }

    /// Receives one request, which is there, and replies if it requests that.
    pub(super) fn serve_one(&mut self, socket: &str, said: &mut Said) -> Result<(), FrontendError> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        let message = match channel.receive() {
            Ok(message) => message,
            Err(error) if error.is_closed() => {
                self.channel = None;
                self.note(Notice::Closed);
                return Ok(());
            }
            Err(error) => return Err(self.give_up(socket, error.to_string())),
        };
        let RawMessage { header, payload, fds } = message;
        debug_assert!(header.payload_bytes <= PAYLOAD_BYTES_MAX);
        if header.flags.is_reply() {
            return Err(self.give_up(socket, format!("a reply to message {}, which was not sent", header.request)));
        }
        let Some(request) = BackendRequest::from_number(header.request) else {
            return Err(self.give_up(socket, format!("message {}, which does not exist", header.request)));
        };
        if !request.descriptors().contains(&fds.len()) {
            return Err(self.give_up(socket, format!("{request} with {} descriptors", fds.len())));
        }
        let call = match BackendCall::decode(request, &payload) {
            Ok(call) => call,
            Err(error) => return Err(self.give_up(socket, format!("{request}: {error}"))),
        };
        // Whatever came along is closed: nothing that we do keeps a descriptor of the backend's.
        drop(fds);
        let code = self.act(&call, said.protocol);
        if header.flags.needs_reply() || request.has_reply() {
            self.reply(socket, &call, code)?;
        }
        Ok(())
    }

    fn reply(&mut self, socket: &str, call: &BackendCall, code: u64) -> Result<(), FrontendError> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        let found = match call {
            BackendCall::SharedObjectLookup(message) => self.objects.get(&message.0.uuid).and_then(Option::as_ref),
            _ => None,
        };
        let fd: Option<BorrowedFd<'_>> = found.map(|fd| fd.as_fd());
        let sent = channel.answer(call.request().number(), &code.to_ne_bytes(), fd.as_slice());
        sent.or_else(|error| {
            if error.is_closed() {
                // A backend that hangs up before the reply does not need it; the next read reports the end.
                return Ok(());
            }
            Err(self.give_up(socket, error.to_string()))
        })
    }

    /// Does what is requested, or refuses.
    fn act(&mut self, call: &BackendCall, protocol: ProtocolFeatures) -> u64 {
        let agreed = |features| protocol.contains(features);
        match call {
            BackendCall::ConfigChangeMsg(_) if agreed(ProtocolFeatures::CONFIG) => {
                // One notice is enough for any number of changes.
                if self.notices.contains(&Notice::ConfigChanged) {
                    return DONE;
                }
                self.note(Notice::ConfigChanged)
            }
            BackendCall::VringCall(message) if agreed(ProtocolFeatures::INBAND_NOTIFICATIONS) => {
                told(message.0.index, &mut self.called)
            }
            BackendCall::VringErr(message) if agreed(ProtocolFeatures::INBAND_NOTIFICATIONS) => {
                told(message.0.index, &mut self.failed)
            }
            BackendCall::IotlbMsg(message) => match message.0.kind {
                IotlbKind::Miss => self.note(Notice::IotlbMiss(message.0)),
                IotlbKind::AccessFail => self.note(Notice::IotlbAccessFail(message.0)),
                IotlbKind::Update | IotlbKind::Invalidate => REFUSED,
            },
            BackendCall::SharedObjectAdd(message) if agreed(ProtocolFeatures::SHARED_OBJECT) => {
                self.add_object(message.0)
            }
            BackendCall::SharedObjectRemove(message) if agreed(ProtocolFeatures::SHARED_OBJECT) => {
                self.remove_object(message.0)
            }
            BackendCall::SharedObjectLookup(message) if agreed(ProtocolFeatures::SHARED_OBJECT) => {
                match self.objects.get(&message.0.uuid) {
                    Some(Some(_)) => DONE,
                    _ => REFUSED,
                }
            }
            // There is no guest here whose address space a page of the device's could go into.
            BackendCall::VringHostNotifierMsg(_) | BackendCall::ShmemMap(_) | BackendCall::ShmemUnmap(_) => REFUSED,
            // What was not agreed on.
            _ => REFUSED,
        }
    }

    fn add_object(&mut self, object: SharedObject) -> u64 {
        if self.objects.contains_key(&object.uuid) || self.objects.len() >= OBJECTS_MAX {
            return REFUSED;
        }
        let code = self.note(Notice::ObjectAdded(object.uuid));
        if code == DONE {
            self.objects.insert(object.uuid, None);
        }
        code
    }

    fn remove_object(&mut self, object: SharedObject) -> u64 {
        // What we offer is not the backend's to remove.
        if !matches!(self.objects.get(&object.uuid), Some(None)) {
            return REFUSED;
        }
        self.objects.remove(&object.uuid);
        self.note(Notice::ObjectRemoved(object.uuid))
    }

    fn note(&mut self, notice: Notice) -> u64 {
        if self.notices.len() >= NOTICES_MAX {
            return REFUSED;
        }
        self.notices.push_back(notice);
        DONE
    }

    fn give_up(&mut self, socket: &str, what: String) -> FrontendError {
        self.channel = None;
        FrontendError::BackendChannel { socket: socket.to_owned(), what }
    }
}

fn told(ring: u32, rings: &mut RingSet) -> u64 {
    if ring >= RINGS_MAX {
        return REFUSED;
    }
    rings.insert(ring);
    DONE
}

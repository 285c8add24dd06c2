//! What the function of a case works with: connections to the backend, and ways to check that it still works.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::facts::Facts;
use super::link::{Link, SharedTrace};
use super::outcome::{Outcome, Stop};
use super::process::{self, wait_until};
use super::target::Target;
use super::trace::Trace;
use super::verdict::Resources;
use crate::protocol::frontend::{GetProtocolFeatures, SetFeatures, SetOwner, SetProtocolFeatures};
use crate::protocol::{Empty, ProtocolFeatures};
use crate::virtio::{DeviceKind, feature};

/// Protocol features that a session negotiates if a case does not choose others.
pub(super) const USUAL: ProtocolFeatures =
    ProtocolFeatures::MQ.union(ProtocolFeatures::REPLY_ACK).union(ProtocolFeatures::CONFIG);

/// Virtio features that a session leaves out if a case does not choose others: each changes how rings are read.
const UNUSUAL: u64 = feature::LOG_ALL
    | feature::RING_EVENT_IDX
    | feature::RING_PACKED
    | feature::ACCESS_PLATFORM
    | feature::IN_ORDER
    | feature::ORDER_PLATFORM
    | feature::SR_IOV
    | feature::NOTIFICATION_DATA
    | feature::NOTIF_CONFIG_DATA
    | feature::RING_RESET
    | feature::ADMIN_VQ
    | feature::NOTIFY_ON_EMPTY;

/// How long a backend is given to crash from the contents of a ring.
const REACTS_WITHIN: Duration = Duration::from_millis(30);

/// What the function of a case works with.
#[derive(Debug)]
pub struct Context<'a> {
    /// Who is checked.
    pub target: &'a mut Target,
    /// Its facts.
    pub facts: &'a Facts,
    /// What kind of device it is.
    pub device: Option<DeviceKind>,
    trace: SharedTrace,
}

impl<'a> Context<'a> {
    /// For a new case.
    pub(super) fn new(target: &'a mut Target, facts: &'a Facts, device: Option<DeviceKind>) -> Self {
        Self { target, facts, device, trace: Rc::new(RefCell::new(Trace::default())) }
    }

    /// The messages of this case.
    pub(super) fn take_trace(&self) -> Trace {
        self.trace.take()
    }

    /// Whether the backend has sent nothing in this case.
    pub(super) fn trace_is_one_sided(&self) -> bool {
        !self.trace.borrow().has_received()
    }

    /// Adds a line to the trace.
    pub(super) fn note(&self, text: impl Into<String>) {
        self.trace.borrow_mut().note(text);
    }

    /// The longest that anything is waited for.
    pub(super) const fn timeout(&self) -> Duration {
        self.target.timeout()
    }

    /// A connection without a message.
    pub(super) fn connect(&mut self) -> Outcome<Link> {
        let channel = self.target.connect()?;
        self.note("connected");
        Ok(Link::new(channel, Rc::clone(&self.trace)).timeout_once_heard(self.target.timeout()))
    }

    /// A connection after others, which has been served once.
    pub(super) fn connect_again(&mut self) -> Outcome<Link> {
        let channel = self.target.connect_served()?;
        self.note("connected again and sent GET_FEATURES");
        Ok(Link::new(channel, Rc::clone(&self.trace)))
    }

    /// A session with the usual protocol features, and no virtio features set.
    pub(super) fn open(&mut self) -> Outcome<Link> {
        self.open_with(USUAL)
    }

    /// A session with those of these protocol features that the backend offers.
    pub(super) fn open_with(&mut self, wish: ProtocolFeatures) -> Outcome<Link> {
        let mut link = self.connect()?;
        negotiate(&mut link, wish)?;
        Ok(link)
    }

    /// As [`open_with`](Self::open_with), after another connection.
    pub(super) fn open_again(&mut self, wish: ProtocolFeatures) -> Outcome<Link> {
        let mut link = self.connect_again()?;
        negotiate(&mut link, wish)?;
        Ok(link)
    }

    /// A session with the usual features of both kinds.
    pub(super) fn open_device(&mut self) -> Outcome<Link> {
        let mut link = self.open()?;
        let features = usual_features(link.offered);
        link.require(&SetFeatures(features), &[])?;
        Ok(link)
    }

    /// A session up to the point where rings are set up, after others.
    pub(super) fn open_again_device(&mut self) -> Outcome<Link> {
        let mut link = if self.trace_is_one_sided() { self.open()? } else { self.open_again(USUAL)? };
        let features = usual_features(link.offered);
        link.require(&SetFeatures(features), &[])?;
        Ok(link)
    }

    /// After a hostile message: the backend still answers here, or has closed this connection; then it serves a new
    /// client, or, if it is of the kind that serves one only, exits on its own.
    pub(super) fn survives_messages(&mut self, mut link: Link) -> Outcome {
        link.is_alive()?;
        drop(link);
        self.serves_again()
    }

    /// After something hostile in memory, which the backend may find a little later.
    pub(super) fn survives_rings(&mut self, mut link: Link) -> Outcome {
        link.channel().is_readable(REACTS_WITHIN)?;
        self.survives_messages(link)
    }

    /// The backend serves a new client and its ring, or, if it is of the kind that serves one only, has ended without a crash.
    pub(super) fn serves_again(&mut self) -> Outcome {
        if let Some(crash) = self.target.crash(false) {
            return Err(Stop::Closed(format!("the process ended: {crash}")));
        }
        if !self.facts.ends_with_client {
            return super::works::still_works(self);
        }
        let timeout = self.timeout();
        let Some(process) = self.target.process() else { return Ok(()) };
        match process.wait(timeout) {
            Some(_) => Ok(()),
            None => Err(Stop::Hang("its client disconnected, but it does not exit".to_owned())),
        }
    }

    /// What the backend's process holds.
    pub(super) fn resources(&self) -> Outcome<Resources> {
        let resources = self.target.pid().and_then(process::resources);
        resources.ok_or_else(|| Stop::Skip("the backend's process cannot be inspected".to_owned()))
    }

    /// Waits until the backend holds no more than `limit` descriptors; returns how many it holds.
    pub(super) fn descriptors_fall_to(&self, limit: u64) -> Outcome<u64> {
        // A backend that serves one client only may have ended meanwhile, and holds nothing then.
        let mut held = self.resources().map_or(0, |resources| resources.descriptors);
        wait_until(Duration::from_millis(500), || {
            held = self.resources().map_or(0, |resources| resources.descriptors);
            held <= limit
        });
        Ok(held)
    }
}

/// Those of the offered virtio features that a session negotiates if a case does not choose others.
pub(super) const fn usual_features(offered: u64) -> u64 {
    offered & !UNUSUAL
}

/// The start of a session: owner, features, protocol features.
pub(super) fn negotiate(link: &mut Link, wish: ProtocolFeatures) -> Outcome {
    link.send(&SetOwner(Empty), &[])?;
    link.offered = link.features()?;
    if link.offered & feature::PROTOCOL_FEATURES == 0 {
        return Ok(());
    }
    let offered = ProtocolFeatures::from_bits(link.call(&GetProtocolFeatures(Empty))?);
    let taken = offered.intersection(wish);
    link.send(&SetProtocolFeatures(taken.bits()), &[])?;
    link.protocol = taken;
    Ok(())
}

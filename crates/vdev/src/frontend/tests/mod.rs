//! Sessions against a stand-in that sends what a test requires: right, wrong, half, or nothing.

mod backend_channel;
mod blk;
mod hostile;
mod order;
mod session;

use std::time::Duration;

use super::{Frontend, Options};
use crate::protocol::{Flags, Message, Payload, ProtocolFeatures, frontend as message};
use crate::socket::{Channel, RawMessage};

const TIMEOUT: Duration = Duration::from_secs(5);

/// A frontend whose backend is this closure, on a thread of its own that ends with the test.
fn session<T>(
    options: &Options,
    backend: impl FnOnce(Standin) + Send + 'static,
    test: impl FnOnce(&mut Frontend) -> T,
) -> T {
    let (ours, theirs) = Channel::pair(TIMEOUT).expect("two sockets");
    let thread = std::thread::spawn(move || backend(Standin { channel: theirs, acknowledge: false }));
    let mut frontend = Frontend::from_channel(ours, options);
    let value = test(&mut frontend);
    drop(frontend);
    thread.join().expect("the stand-in saw what it expected");
    value
}

fn quick() -> Options {
    Options { timeout: Duration::from_millis(100), ..Options::default() }
}

/// The backend's side: expects messages one by one and answers them.
struct Standin {
    channel: Channel,
    /// Whether `REPLY_ACK` was negotiated.
    acknowledge: bool,
}

impl Standin {
    /// The next message, which is of this kind.
    fn expect<M: Message + std::fmt::Debug>(&mut self) -> (M, RawMessage) {
        let raw = self.channel.receive().expect("a message");
        assert_eq!(raw.header.request, M::REQUEST.number(), "instead of {}", M::REQUEST);
        (M::decode(&raw.payload).expect("its payload"), raw)
    }

    /// The next message, done; acknowledged if that is requested.
    fn done<M: Message + std::fmt::Debug>(&mut self) -> (M, RawMessage) {
        let (message, raw) = self.expect::<M>();
        assert_eq!(raw.header.flags.needs_reply(), self.acknowledge, "{}", M::REQUEST);
        if raw.header.flags.needs_reply() {
            self.channel.acknowledge(M::REQUEST.number(), 0).expect("is taken");
        }
        (message, raw)
    }

    /// The next message, answered with this.
    fn answered<M: Message + std::fmt::Debug>(&mut self, reply: &impl Payload) -> M {
        let (message, _) = self.expect::<M>();
        self.reply::<M>(reply);
        message
    }

    fn reply<M: Message>(&mut self, reply: &impl Payload) {
        let mut bytes = Vec::new();
        reply.encode(&mut bytes);
        self.channel.answer(M::REQUEST.number(), &bytes, &[]).expect("is taken");
    }

    /// The first messages of a handshake, in which all of this is offered.
    fn negotiate(&mut self, features: u64, protocol: ProtocolFeatures) -> ProtocolFeatures {
        self.done::<message::SetOwner>();
        self.answered::<message::GetFeatures>(&features);
        self.answered::<message::GetProtocolFeatures>(&protocol.bits());
        let (chosen, _) = self.done::<message::SetProtocolFeatures>();
        let chosen = ProtocolFeatures::from_bits(chosen.0);
        self.acknowledge = chosen.contains(ProtocolFeatures::REPLY_ACK);
        chosen
    }

    /// A handshake in which all of this is offered; returns the backend's own channel if it has one.
    fn handshake(&mut self, features: u64, protocol: ProtocolFeatures) -> Option<Channel> {
        let chosen = self.negotiate(features, protocol);
        if chosen.contains(ProtocolFeatures::MQ) {
            self.answered::<message::GetQueueNum>(&2_u64);
        }
        if chosen.contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            self.answered::<message::GetMaxMemSlots>(&8_u64);
        }
        let own = chosen.contains(ProtocolFeatures::BACKEND_REQ).then(|| {
            let (_, mut raw) = self.done::<message::SetBackendReqFd>();
            Channel::new(raw.fds.pop().expect("its descriptor").into(), "own", TIMEOUT)
        });
        self.done::<message::SetFeatures>();
        own
    }

    /// Sends a header of a reply and nothing else.
    fn reply_header(&mut self, request: u32, bits: u32, payload_bytes: u32) {
        let header = crate::protocol::Header { request, flags: Flags::from_bits(bits), payload_bytes };
        self.channel.send_bytes(&header.encode(), &[]).expect("is taken");
    }

    /// Waits until the frontend has disconnected.
    fn gone(&mut self) {
        assert!(self.channel.receive().expect_err("nothing more is said").is_closed());
    }
}

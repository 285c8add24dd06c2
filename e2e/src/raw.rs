//! A raw link: sends any bytes and returns every frame that arrives.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kiln_wire::{Decoder, Fault, Frame, Hello, Kind, Message, StreamId, VERSION};

use crate::wait::WAIT_DEADLINE;

const READ_BYTES: usize = 64 << 10;

/// One end of a byte stream to an agent.
#[derive(Debug)]
pub struct RawLink {
    stream: UnixStream,
    decoder: Decoder,
}

/// One frame that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawFrame {
    /// What the payload is.
    pub kind: Kind,
    /// The stream that it belongs to.
    pub stream: u32,
    /// The payload.
    pub payload: Vec<u8>,
}

impl RawFrame {
    /// The frame's message.
    ///
    /// # Panics
    /// If `kiln_wire` can't parse it.
    pub fn message(&self) -> Message<'_> {
        let frame = Frame { kind: self.kind, stream: StreamId(self.stream), payload: &self.payload };
        Message::parse(frame).expect("the agent sends messages of the protocol")
    }

    /// The fault of an `Error` frame.
    ///
    /// # Panics
    /// If it is another frame.
    pub fn fault(&self) -> Fault {
        match self.message() {
            Message::Error(fault) => fault,
            other => panic!("expected Error on stream {}, got {other:?}", self.stream),
        }
    }
}

impl RawLink {
    /// Uses a stream on which nothing was sent yet.
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(WAIT_DEADLINE)).expect("a deadline that is not zero");
        stream.set_write_timeout(Some(WAIT_DEADLINE)).expect("a deadline that is not zero");
        Self { stream, decoder: Decoder::new() }
    }

    /// Exchanges Hellos and returns the agent's.
    pub fn greet(&mut self) -> Hello {
        self.send(0, &Self::hello(VERSION));
        match self.frame().message() {
            Message::Hello(hello) => hello,
            other => panic!("expected Hello, got {other:?}"),
        }
    }

    /// A host's Hello.
    pub fn hello(version: u16) -> Message<'static> {
        Message::Hello(Hello { version, agent: "e2e".into(), capabilities: vec![], boot_id: String::new() })
    }

    /// Sends any bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the agent takes bytes");
    }

    /// Sends one message.
    pub fn send(&mut self, stream: u32, message: &Message<'_>) {
        let mut bytes = Vec::new();
        message.encode(StreamId(stream), &mut bytes).expect("a message that fits");
        self.write(&bytes);
    }

    /// Sends one frame of any kind.
    pub fn send_frame(&mut self, stream: u32, kind: Kind, payload: &[u8]) {
        let mut bytes = Vec::new();
        kiln_wire::encode(kind, StreamId(stream), payload, &mut bytes).expect("a payload that fits");
        self.write(&bytes);
    }

    /// The next frame.
    ///
    /// # Panics
    /// If there is no further frame.
    pub fn frame(&mut self) -> RawFrame {
        self.frame_or_end().expect("the agent closed the link")
    }

    /// The next frame, or `None` if the agent has closed the link.
    ///
    /// # Panics
    /// If neither arrives in time, or the link ends inside a frame.
    pub fn frame_or_end(&mut self) -> Option<RawFrame> {
        let mut buffer = [0; READ_BYTES];
        loop {
            if let Some(frame) = self.decoder.next().expect("the agent sends good lengths") {
                return Some(RawFrame { kind: frame.kind, stream: frame.stream.0, payload: frame.payload.to_vec() });
            }
            let read = match self.stream.read(&mut buffer) {
                Ok(read) => read,
                // An agent that closes with unread bytes of ours in its socket resets the connection.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
                Err(error) => panic!("no frame from the agent: {error}"),
            };
            if read == 0 {
                self.decoder.finish().expect("the agent ends between frames");
                return None;
            }
            self.decoder.push(&buffer[..read]);
        }
    }

    /// The next frame of `stream`; those of other streams are dropped.
    pub fn frame_of(&mut self, stream: u32) -> RawFrame {
        loop {
            let frame = self.frame();
            if frame.stream == stream {
                return frame;
            }
        }
    }

    /// All frames of `stream` up to its last one; those of other streams are dropped. Data is credited.
    pub fn to_the_end_of(&mut self, stream: u32) -> Vec<RawFrame> {
        let mut frames = Vec::new();
        loop {
            let frame = self.frame_of(stream);
            if frame.kind.is_data() {
                let cost = kiln_wire::credit::frame_cost(frame.payload.len());
                self.send(stream, &Message::Credit(u32::try_from(cost).expect("a frame is small")));
            }
            let ends = frame.kind.ends();
            frames.push(frame);
            if ends {
                return frames;
            }
        }
    }

    /// The fault with which `stream` ends.
    pub fn fault_of(&mut self, stream: u32) -> Fault {
        self.to_the_end_of(stream).pop().expect("at least the last frame").fault()
    }

    /// Sends a ping and waits for the echo: the agent runs, and has handled all frames that were sent before.
    ///
    /// # Panics
    /// If it does not arrive.
    pub fn ping(&mut self) {
        self.send(0, &Message::Ping(b"still there?"));
        while self.frame() != (RawFrame { kind: Kind::PONG, stream: 0, payload: b"still there?".to_vec() }) {}
    }

    /// Closes this end at once.
    pub fn close(self) {
        drop(self);
    }

    /// Skips everything up to and with `bytes`, like a host that starts a new link.
    ///
    /// # Panics
    /// If they do not arrive.
    pub fn skip_to(&mut self, bytes: &[u8]) {
        self.decoder.clear();
        let mut seen = Vec::new();
        while !seen.ends_with(bytes) {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).expect("the bytes that are waited for");
            seen.push(byte[0]);
        }
    }

    /// Sends `bytes` again and again up to `most` bytes or until the agent has read nothing for `patience`, and returns
    /// how many bytes it took.
    pub fn write_while_taken(&mut self, bytes: &[u8], most: usize, patience: Duration) -> usize {
        self.stream.set_write_timeout(Some(patience)).expect("a deadline that is not zero");
        let mut taken = 0;
        while taken < most {
            match self.stream.write(&bytes[taken % bytes.len()..]) {
                Ok(count) => taken += count,
                Err(_) => break,
            }
        }
        self.stream.set_write_timeout(Some(WAIT_DEADLINE)).expect("a deadline that is not zero");
        taken
    }

    /// The next bytes, unparsed. Call this between two frames.
    ///
    /// # Panics
    /// If fewer arrive.
    pub fn read_exact(&mut self, count: usize) -> Vec<u8> {
        assert_eq!(self.decoder.pending_bytes(), 0, "bytes were taken for the start of a frame");
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).expect("the agent sends that much");
        bytes
    }
}

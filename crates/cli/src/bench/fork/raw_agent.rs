//! The smallest client of a guest's agent: reset marker, hello, one command. Nothing is synced.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{bail, ensure};
use kiln_wire::reset::{NONCE_BYTES, Piece, ResetScanner, marker};
use kiln_wire::{Decoder, ExecRequest, ExitStatus, Exited, Hello, Message, StreamId, Text, VERSION};

use crate::bench::guests::TRUE;

/// The marker is repeated as often as Kiln does: after 5, 10, 20, 20, … ms.
const REPEAT_FIRST: Duration = Duration::from_millis(5);
const REPEAT_MAX: Duration = Duration::from_millis(20);
const MARKERS_MAX: usize = 1000;
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 16 << 10;
const THAW: StreamId = StreamId(1);
const EXEC: StreamId = StreamId(3);

/// A connection to an agent, after both hellos.
pub struct RawAgent {
    stream: UnixStream,
    decoder: Decoder,
}

impl RawAgent {
    /// Marker and hello, both ways.
    pub fn greet(stream: UnixStream) -> anyhow::Result<Self> {
        let mut agent = Self { stream, decoder: Decoder::new() };
        agent.reset()?;
        agent.stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
        let hello = Hello { version: VERSION, agent: "bench".into(), capabilities: vec![], boot_id: String::new() };
        agent.send(&[(StreamId::LINK, Message::Hello(hello))])?;
        agent.answer(|_, message| matches!(message, Message::Hello(_)).then_some(()))?;
        Ok(agent)
    }

    /// Thaws the guest's commands, which were frozen for the snapshot, and runs one. Sends both requests at once.
    pub fn exec_true(&mut self) -> anyhow::Result<()> {
        let request = ExecRequest { argv: vec![Text::from(TRUE)], ..ExecRequest::default() };
        self.send(&[(THAW, Message::Thaw), (EXEC, Message::Exec(Box::new(request)))])?;
        let status = self.answer(|stream, message| match message {
            Message::Exited(Exited { status, .. }) if stream == EXEC => Some(Ok(status)),
            Message::Error(fault) => Some(Err(fault)),
            _ => None,
        })??;
        ensure!(status == ExitStatus::Code(0), "`{TRUE}` ended with {status:?}");
        Ok(())
    }

    fn reset(&mut self) -> anyhow::Result<()> {
        let mut nonce = [0; NONCE_BYTES];
        rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())?;
        let (mut scanner, mut wait, mut buffer) = (ResetScanner::default(), REPEAT_FIRST, [0; READ_BYTES]);
        self.stream.write_all(&marker(&nonce))?;
        for _ in 0..MARKERS_MAX {
            self.stream.set_read_timeout(Some(wait))?;
            let count = match self.stream.read(&mut buffer) {
                Ok(0) => bail!("the agent's port is closed"),
                Ok(count) => count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    self.stream.write_all(&marker(&nonce))?;
                    wait = (wait * 2).min(REPEAT_MAX);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let mut input = &buffer[..count];
            while let Some(piece) = scanner.next(&mut input) {
                if piece == Piece::Reset(nonce) {
                    self.decoder.push(input);
                    return Ok(());
                }
            }
        }
        bail!("the agent does not answer")
    }

    fn send(&mut self, messages: &[(StreamId, Message<'_>)]) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        for (stream, message) in messages {
            message.encode(*stream, &mut bytes)?;
        }
        Ok(self.stream.write_all(&bytes)?)
    }

    fn answer<T>(&mut self, mut wanted: impl FnMut(StreamId, Message<'_>) -> Option<T>) -> anyhow::Result<T> {
        let mut buffer = [0; READ_BYTES];
        loop {
            while let Some(frame) = self.decoder.next()? {
                if let Some(found) = wanted(frame.stream, Message::parse(frame)?) {
                    return Ok(found);
                }
            }
            let count = self.stream.read(&mut buffer)?;
            ensure!(count > 0, "the agent's port is closed");
            self.decoder.push(&buffer[..count]);
        }
    }
}

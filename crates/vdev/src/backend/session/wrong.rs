//! Messages that a script has handled wrong.

use std::os::fd::{AsFd as _, OwnedFd};

use super::messages::{DONE, Session};
use crate::backend::fault::{AnswerFault, Instead, MessageFault};
use crate::backend::refusal::{Refusal, SessionError};
use crate::protocol::{Flags, HEADER_BYTES, Header, ProtocolFeatures};
use crate::socket::{Event, RawMessage, wait_readable};

impl Session<'_> {
    pub(super) fn take_wrong(
        &mut self,
        message: RawMessage,
        fault: &MessageFault,
        stop: &Event,
    ) -> Result<(), SessionError> {
        let waited = wait_readable([stop.as_fd()], Some(fault.delay)).map_err(|error| self.io(error))?;
        if waited == [true] {
            return Ok(());
        }
        let Header { request, flags, .. } = message.header;
        let wants_reply = flags.needs_reply() && self.protocol_features.contains(ProtocolFeatures::REPLY_ACK);
        match fault.instead {
            None => self.take(message, &fault.answer)?,
            Some(Instead::Ignore) => {}
            Some(Instead::Close) => return Err(self.on_purpose()),
            Some(Instead::Crash) => std::process::abort(),
            Some(Instead::Nack(code)) => {
                self.refuse(request, Refusal::OnPurpose, wants_reply, code, &fault.answer)?;
            }
            Some(Instead::Ack) => self.answer(request, &DONE.to_ne_bytes(), None, &fault.answer)?,
        }
        if let (Some((number, payload)), Some(channel)) = (&fault.backend_channel, &self.backend_channel) {
            // A frontend that has closed its end has had enough.
            let _ = channel.send_raw(*number, Flags::request(), payload);
        }
        Ok(())
    }

    pub(super) fn answer_wrong(
        &mut self,
        request: u32,
        payload: &[u8],
        fd: Option<&OwnedFd>,
        fault: &AnswerFault,
    ) -> Result<(), SessionError> {
        if fault.silent {
            return Ok(());
        }
        let payload = fault.payload.as_deref().unwrap_or(payload);
        let header = Header {
            request: fault.request.unwrap_or(request),
            flags: fault.flags.unwrap_or(Flags::reply()),
            payload_bytes: fault.size.unwrap_or(payload.len() as u32),
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(payload);
        bytes.truncate(fault.cut_after.unwrap_or(HEADER_BYTES + payload.len()));
        let extra = (0..fault.extra_fds).map(|_| Event::new()).collect::<Result<Vec<_>, _>>();
        let extra = extra.map_err(|error| self.io(error))?;
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).chain(extra.iter().map(Event::as_fd)).collect();
        self.channel.send_bytes(&bytes, &fds)?;
        if fault.twice {
            self.channel.send_bytes(&bytes, &[])?;
        }
        if fault.cut_after.is_some() { Err(self.on_purpose()) } else { Ok(()) }
    }
}

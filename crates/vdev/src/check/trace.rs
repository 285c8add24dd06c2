//! The messages of a case, as text: bounded, the first lines and the last.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::verdict::seconds;
use crate::protocol::frontend::{SetVringCall, SetVringErr, SetVringKick};
use crate::protocol::{BackendRequest, Flags, FrontendCall, FrontendRequest, Header, ProtocolFeatures};
use crate::socket::RawMessage;

/// Lines that are kept from the start of a case.
const FIRST_LINES: usize = 40;
/// Lines that are kept from its end.
const LAST_LINES: usize = 40;
/// Characters of a line that are kept.
const LINE_CHARACTERS: usize = 240;
/// Bytes of a payload that are shown if it has no meaning.
const BYTES_SHOWN: usize = 24;

/// Who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    /// The suite.
    Sent,
    /// The peer.
    Received,
    /// The suite, in memory that both sides share.
    Done,
    /// Neither side: a remark.
    Note,
}

/// A line of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct TraceLine {
    /// Since the case began.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub at: Duration,
    /// Who sent it.
    pub side: Side,
    /// What, decoded.
    pub text: String,
}

impl fmt::Display for TraceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = match self.side {
            Side::Sent => "->",
            Side::Received => "<-",
            Side::Done => "=>",
            Side::Note => "  ",
        };
        write!(f, "{:>9.3} ms {arrow} {}", self.at.as_secs_f64() * 1e3, self.text)
    }
}

/// The messages of a case.
#[derive(Debug, Clone, Serialize)]
pub struct Trace {
    #[serde(skip)]
    started: Instant,
    first: Vec<TraceLine>,
    #[serde(skip_serializing_if = "is_zero")]
    left_out: usize,
    #[serde(skip_serializing_if = "VecDeque::is_empty")]
    last: VecDeque<TraceLine>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde calls")]
const fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Default for Trace {
    fn default() -> Self {
        Self { started: Instant::now(), first: Vec::new(), left_out: 0, last: VecDeque::new() }
    }
}

impl Trace {
    /// Adds a line.
    pub(crate) fn push(&mut self, side: Side, mut text: String) {
        if let Some((end, _)) = text.char_indices().nth(LINE_CHARACTERS) {
            text.truncate(end);
            text.push_str(" ...");
        }
        let line = TraceLine { at: self.started.elapsed(), side, text };
        if self.first.len() < FIRST_LINES {
            self.first.push(line);
            return;
        }
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
            self.left_out += 1;
        }
        self.last.push_back(line);
    }

    /// Adds a line about what was done.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.push(Side::Note, text.into());
    }

    /// The lines, with a word about those that were left out.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let gap = (self.left_out > 0).then(|| format!("{:>16} {} lines left out", "...", self.left_out));
        self.first.iter().map(ToString::to_string).chain(gap).chain(self.last.iter().map(ToString::to_string))
    }

    /// The last that was sent or done, but for questions that only find out what became of it.
    pub(super) fn last_words(&self) -> Option<&str> {
        let lines = self.last.iter().rev().chain(self.first.iter().rev());
        let mut sent = lines.filter(|line| matches!(line.side, Side::Sent | Side::Done)).map(|line| line.text.as_str());
        let last = sent.next()?;
        let is_question = |text: &str| matches!(text, "GET_FEATURES" | "GET_PROTOCOL_FEATURES");
        if is_question(last) { sent.find(|text| !is_question(text)).or(Some(last)) } else { Some(last) }
    }

    /// Whether the peer has sent anything.
    pub(super) fn has_received(&self) -> bool {
        self.first.iter().chain(&self.last).any(|line| line.side == Side::Received)
    }
}

/// A message of a frontend's in words: `SET_VRING_NUM index 0, num 256 (need_reply)`.
pub(crate) fn frontend_message(request: u32, flags: Flags, payload: &[u8], descriptors: usize) -> String {
    let Some(known) = FrontendRequest::from_number(request) else {
        return message(&format!("request {request}"), flags, &hex(payload), descriptors);
    };
    let said = FrontendCall::decode(known, payload).map_or_else(|_| hex(payload), |call| call_words(&call));
    message(known.name(), flags, &said, descriptors)
}

/// A backend's answer in words: `GET_FEATURES reply 0x130000000`.
pub(super) fn backend_reply(reply: &RawMessage) -> String {
    let Header { request, flags, .. } = reply.header;
    let name = FrontendRequest::from_number(request)
        .map_or_else(|| format!("request {request}"), |known| known.name().to_owned());
    let said = match (FrontendRequest::from_number(request), <[u8; 8]>::try_from(&reply.payload[..])) {
        (Some(FrontendRequest::GetVringBase | FrontendRequest::GetVringBaseSkipDrain), Ok(_)) => {
            FrontendCall::decode(FrontendRequest::GetVringBase, &reply.payload)
                .map_or_else(|_| hex(&reply.payload), |call| call_words(&call))
        }
        (Some(FrontendRequest::GetProtocolFeatures), Ok(bytes)) => {
            ProtocolFeatures::from_bits(u64::from_ne_bytes(bytes)).to_string()
        }
        (_, Ok(bytes)) => number(u64::from_ne_bytes(bytes)),
        _ => hex(&reply.payload),
    };
    let word = if flags.is_reply() { "reply" } else { "without the reply flag" };
    message(&format!("{name} {word}"), flags, &said, reply.fds.len())
}

/// A message of a backend's own in words.
pub(super) fn backend_message(received: &RawMessage) -> String {
    let Header { request, flags, .. } = received.header;
    let name = BackendRequest::from_number(request)
        .map_or_else(|| format!("backend request {request}"), |known| known.name().to_owned());
    message(&name, flags, &hex(&received.payload), received.fds.len())
}

fn message(name: &str, flags: Flags, said: &str, descriptors: usize) -> String {
    let mut extras = Vec::new();
    if flags.needs_reply() {
        extras.push("need_reply".to_owned());
    }
    if flags.version() != 1 || flags.reserved() != 0 {
        extras.push(format!("flags {:#x}", flags.bits()));
    }
    match descriptors {
        0 => {}
        1 => extras.push("1 descriptor".to_owned()),
        many => extras.push(format!("{many} descriptors")),
    }
    let space = if said.is_empty() { "" } else { " " };
    let extras = if extras.is_empty() { String::new() } else { format!(" ({})", extras.join(", ")) };
    format!("{name}{space}{said}{extras}")
}

fn call_words(call: &FrontendCall) -> String {
    match call {
        FrontendCall::SetProtocolFeatures(features) => ProtocolFeatures::from_bits(features.0).to_string(),
        FrontendCall::SetMemTable(table) => {
            let regions = table.0.0.iter().map(region_words).collect::<Vec<_>>();
            format!("{} regions: {}", regions.len(), regions.join("; "))
        }
        FrontendCall::GetConfig(config) => format!("offset {}, {} bytes", config.0.offset, config.0.bytes.len()),
        FrontendCall::SetConfig(config) => {
            format!("offset {}, flags {:#x}, {}", config.0.offset, config.0.flags, hex(&config.0.bytes))
        }
        FrontendCall::AddMemReg(region) => region_words(&region.0.0),
        FrontendCall::RemMemReg(region) => region_words(&region.0.0),
        FrontendCall::SetVringKick(SetVringKick(file))
        | FrontendCall::SetVringCall(SetVringCall(file))
        | FrontendCall::SetVringErr(SetVringErr(file)) => {
            let polled = if file.no_descriptor { ", polled" } else { "" };
            let reserved = if file.reserved == 0 { String::new() } else { format!(", reserved {:#x}", file.reserved) };
            format!("index {}{polled}{reserved}", file.index)
        }
        FrontendCall::SetVringAddr(address) => {
            let address = address.0;
            format!(
                "index {}, descriptors {:#x}, available {:#x}, used {:#x}, flags {}, log {:#x}",
                address.index, address.descriptor, address.available, address.used, address.flags, address.log
            )
        }
        other => fields(&format!("{other:?}")),
    }
}

fn region_words(region: &crate::protocol::MemoryRegion) -> String {
    format!(
        "guest {:#x}, {:#x} bytes, user {:#x}, offset {:#x}",
        region.guest_address, region.size, region.user_address, region.mmap_offset
    )
}

/// The fields in a derived `Debug` text, without the types around them: `index: 0, num: 256` as `index 0, num 256`.
fn fields(debug: &str) -> String {
    if let (Some(open), Some(close)) = (debug.find('{'), debug.rfind('}')) {
        return debug[open + 1..close].trim().replace(": ", " ");
    }
    let inner = debug.rsplit('(').next().expect("a split text has a part").trim_end_matches(')');
    match inner.parse::<u64>() {
        Ok(value) => number(value),
        Err(_) if inner == "Empty" => String::new(),
        Err(_) => inner.to_owned(),
    }
}

fn number(value: u64) -> String {
    if value < 10 { value.to_string() } else { format!("{value:#x}") }
}

fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return String::new();
    }
    let shown = bytes.iter().take(BYTES_SHOWN).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    let more = if bytes.len() > BYTES_SHOWN { " ..." } else { "" };
    format!("{} bytes: {shown}{more}", bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_said_in_words() {
        let said = |request, flags, payload: &[u8], fds| frontend_message(request, flags, payload, fds);
        let state = [[0, 0, 0, 0], 256_u32.to_ne_bytes()].concat();
        assert_eq!(said(8, Flags::request_with_reply(), &state, 0), "SET_VRING_NUM index 0, num 256 (need_reply)");
        assert_eq!(said(1, Flags::request(), &[], 1), "GET_FEATURES (1 descriptor)");
        assert_eq!(said(2, Flags::request(), &(1_u64 << 32).to_ne_bytes(), 0), "SET_FEATURES 0x100000000");
        assert_eq!(said(200, Flags::from_bits(2), &[1], 0), "request 200 1 bytes: 01 (flags 0x2)");
        assert_eq!(said(16, Flags::request(), &9_u64.to_ne_bytes(), 0), "SET_PROTOCOL_FEATURES MQ|REPLY_ACK");
    }

    #[test]
    fn a_trace_keeps_its_first_and_last_lines() {
        let mut trace = Trace::default();
        for line in 0..1000 {
            trace.note(format!("line {line}"));
        }
        trace.note("\u{e9}".repeat(10_000));
        let lines: Vec<_> = trace.lines().collect();
        assert_eq!(lines.len(), FIRST_LINES + 1 + LAST_LINES);
        assert!(lines[0].ends_with("line 0") && lines[79].ends_with("line 999"), "{lines:?}");
        assert!(lines[40].ends_with("921 lines left out"), "{}", lines[40]);
        assert!(lines[80].len() < 600 && lines[80].ends_with("\u{e9} ..."), "{}", lines[80]);
    }
}

//! A session as text, one message a line, so that a fixture can be read and compared:
//!
//! ```text
//!    # who spoke with whom
//!    > 0c0000000100000008000000 0000000000000000 1     frontend: header, payload (- if none), descriptors
//!    < 010000000500000008000000 65 …                   backend
//! ```

use kiln_vdev::protocol::{HEADER_BYTES, Header};

/// The sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The frontend.
    Frontend,
    /// The backend.
    Backend,
}

/// The message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// By whom.
    pub side: Side,
    /// The header.
    pub header: Header,
    /// The bytes after it.
    pub payload: Vec<u8>,
    /// How many descriptors came along.
    pub fds: usize,
}

impl Line {
    /// The line as text.
    pub fn to_text(&self) -> String {
        let side = match self.side {
            Side::Frontend => '>',
            Side::Backend => '<',
        };
        let payload = if self.payload.is_empty() { "-".to_owned() } else { hex(&self.payload) };
        format!("{side} {} {payload} {}", hex(&self.header.encode()), self.fds)
    }

    /// The line that this text is.
    pub fn from_text(text: &str) -> Self {
        let words: Vec<_> = text.split(' ').collect();
        let [side, header, payload, fds] = words[..] else { panic!("`{text}` has not four words") };
        let side = if side == ">" { Side::Frontend } else { Side::Backend };
        let header: [u8; HEADER_BYTES] = bytes(header).try_into().expect("a header has 12 bytes");
        let payload = if payload == "-" { Vec::new() } else { bytes(payload) };
        Self { side, header: Header::decode(header), payload, fds: fds.parse().expect("a number of descriptors") }
    }
}

/// The lines of a whole session; lines with `#` describe it.
pub fn read(text: &str) -> Vec<Line> {
    text.lines().filter(|line| !line.starts_with('#')).map(Line::from_text).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("ASCII"));
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("two hex digits")).collect()
}

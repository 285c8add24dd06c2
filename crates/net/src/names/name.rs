//! Names in the form of messages: labels with their lengths, with pointers to earlier places (RFC 1035, 4.1.4).

use crate::policy::Domain;

/// The longest name, with the length bytes (RFC 1035, 2.3.4).
const WIRE_BYTES_MAX: usize = 255;

/// The two high bits of a length that is a pointer.
const POINTER: u8 = 0xc0;

/// A name without pointers: what it costs is bounded by [`WIRE_BYTES_MAX`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WireName(Vec<u8>);

impl WireName {
    /// Reads the name at this place. Also returns the place after it.
    ///
    /// A pointer must lead to a place before the labels that it ends. So each jump goes further back, and a loop is not
    /// possible. A name of more than 255 bytes ends the reading, whatever the pointers are.
    pub(super) fn read(message: &[u8], start: usize) -> Option<(Self, usize)> {
        let mut name = Vec::new();
        let (mut at, mut segment, mut end) = (start, start, None);
        loop {
            let length = *message.get(at)?;
            match length & POINTER {
                0 => {
                    let label = message.get(at..=at + usize::from(length))?;
                    name.extend_from_slice(label);
                    at += label.len();
                    if name.len() > WIRE_BYTES_MAX {
                        return None;
                    }
                    if length == 0 {
                        return Some((Self(name), end.unwrap_or(at)));
                    }
                }
                POINTER => {
                    let low = *message.get(at + 1)?;
                    let to = usize::from(length & !POINTER) << 8 | usize::from(low);
                    if to >= segment {
                        return None;
                    }
                    end.get_or_insert(at + 2);
                    (at, segment) = (to, to);
                }
                _ => return None,
            }
        }
    }

    /// The form of a name of a host.
    pub(super) fn of(domain: &Domain) -> Self {
        let mut name = Vec::new();
        for label in domain.as_str().split('.') {
            // A label of a `Domain` has up to 63 bytes.
            name.push(label.len() as u8);
            name.extend_from_slice(label.as_bytes());
        }
        name.push(0);
        Self(name)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is the same name. Case does not count. Lengths are below the letters, so they are compared exactly.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }

    /// The name as that of a host. `None` for the root, and for labels with other bytes than names of hosts have.
    pub(super) fn domain(&self) -> Option<Domain> {
        let mut text = String::new();
        let mut rest = self.0.as_slice();
        while let Some((&length, after)) = rest.split_first().filter(|(length, _)| **length != 0) {
            let (label, next) = after.split_at_checked(usize::from(length))?;
            if label.contains(&b'.') {
                return None;
            }
            text.push_str(std::str::from_utf8(label).ok()?);
            text.push('.');
            rest = next;
        }
        Domain::new(&text).ok()
    }
}

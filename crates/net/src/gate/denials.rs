//! What was denied: a count of all, and the last ones.

use std::collections::VecDeque;
use std::fmt;
use std::time::SystemTime;

use crate::policy::{Destination, Domain};

/// Denials that are kept. A guest can cause any number of them.
pub const DENIALS_MAX: usize = 64;

/// What a guest asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// A connection, a datagram or an echo request.
    Flow(Destination),
    /// A name.
    Name(Domain),
    /// An address in the answer for a name, which was left out of it.
    Answer(Domain, std::net::IpAddr),
}

/// One thing that was denied, perhaps several times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// What was asked for.
    pub what: Denied,
    /// What decided, in words.
    pub by: String,
    /// How often, since it is in this list.
    pub count: u64,
    /// The last time.
    pub at: SystemTime,
}

/// All denials of a VM.
#[derive(Debug, Clone, Default)]
pub struct Denials {
    /// How many there were.
    pub count: u64,
    /// The last [`DENIALS_MAX`] that differ, the newest last.
    pub last: VecDeque<Denial>,
}

impl Denials {
    /// Adds one. A guest that tries again and again does not push others out.
    pub(super) fn add(&mut self, what: Denied, by: String, at: SystemTime) {
        self.count = self.count.saturating_add(1);
        let same = self.last.iter().position(|denial| denial.what == what);
        let before = same.and_then(|index| self.last.remove(index)).map_or(0, |denial| denial.count);
        if self.last.len() >= DENIALS_MAX {
            self.last.pop_front();
        }
        self.last.push_back(Denial { what, by, count: before.saturating_add(1), at });
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flow(destination) => write!(f, "{destination}"),
            Self::Name(name) => write!(f, "name {name}"),
            Self::Answer(name, address) => write!(f, "answer {address} for {name}"),
        }
    }
}

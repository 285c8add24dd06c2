//! Names of hosts, and patterns of names.

use std::fmt;

/// The longest name as text, without the last dot (RFC 1035, 2.3.4).
pub const NAME_BYTES_MAX: usize = 253;

const LABEL_BYTES_MAX: usize = 63;

/// The start of a pattern that stands for all names below its domain.
const WILDCARD: &str = "*.";

/// A name of a host: labels of letters, digits, `-` and `_`, in lower case, without a dot at its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(String);

/// Which names a rule is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pattern {
    /// This name alone.
    Exact(Domain),
    /// All names below this one, at any depth, but not the name itself.
    Below(Domain),
}

/// Why a text is not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DomainFault {
    /// No text, or nothing between two dots.
    Empty,
    /// Longer than [`NAME_BYTES_MAX`], or a label is longer than 63 bytes.
    TooLong,
    /// A `*` that is not the whole first label.
    Wildcard,
    /// A letter outside ASCII.
    NotAscii,
    /// Another character that no name has.
    Character(char),
    /// The last label is a number, so programs read the name as an address.
    Number,
}

impl Domain {
    /// Reads a name. Upper case and a dot at the end are accepted and removed.
    pub fn new(text: &str) -> Result<Self, DomainFault> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.len() > NAME_BYTES_MAX {
            return Err(DomainFault::TooLong);
        }
        for label in name.split('.') {
            check(label)?;
        }
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(DomainFault::Number);
        }
        Ok(Self(name.to_ascii_lowercase()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names above this one, the nearest first: for `a.example.org` they are `example.org` and `org`.
    pub(super) fn parents(&self) -> impl Iterator<Item = &str> {
        std::iter::successors(parent(&self.0), |name| parent(name))
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Pattern {
    /// Reads `example.org` or `*.example.org`.
    pub fn new(text: &str) -> Result<Self, DomainFault> {
        match text.strip_prefix(WILDCARD) {
            Some(rest) => Domain::new(rest).map(Self::Below),
            None => Domain::new(text).map(Self::Exact),
        }
    }

    /// The name without its wildcard.
    pub fn domain(&self) -> &Domain {
        match self {
            Self::Exact(domain) | Self::Below(domain) => domain,
        }
    }

    /// Whether the pattern stands for this name.
    pub fn matches(&self, name: &Domain) -> bool {
        match self {
            Self::Exact(domain) => domain == name,
            Self::Below(domain) => name.parents().any(|parent| parent == domain.as_str()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(domain) => write!(f, "{domain}"),
            Self::Below(domain) => write!(f, "{WILDCARD}{domain}"),
        }
    }
}

impl fmt::Display for DomainFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a part of the name is empty"),
            Self::TooLong => f.write_str("the name is too long"),
            Self::Wildcard => f.write_str("`*` must be the whole first part of the name, as in `*.example.org`"),
            Self::NotAscii => f.write_str("names with other letters are written with `xn--`"),
            Self::Character(character) => write!(f, "{character:?} is not part of a name"),
            Self::Number => f.write_str("it is neither an address nor a name"),
        }
    }
}

fn check(label: &str) -> Result<(), DomainFault> {
    if label.is_empty() {
        return Err(DomainFault::Empty);
    }
    if label.len() > LABEL_BYTES_MAX {
        return Err(DomainFault::TooLong);
    }
    match label.chars().find(|character| !(character.is_ascii_alphanumeric() || matches!(character, '-' | '_'))) {
        None => Ok(()),
        Some('*') => Err(DomainFault::Wildcard),
        Some(other) if !other.is_ascii() => Err(DomainFault::NotAscii),
        Some(other) => Err(DomainFault::Character(other)),
    }
}

fn parent(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, rest)| rest)
}

//! Names of snapshots.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Hex digits of an id.
const DIGITS: usize = 16;

/// Names a snapshot on this host: 16 hex digits, never used twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId(String);

/// Text that is no snapshot's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no snapshot id: {DIGITS} digits of `[0-9a-f]`")]
pub struct NoSnapshotId(String);

impl SnapshotId {
    /// A new id, unlike any other.
    pub fn random() -> Self {
        let mut bytes = [0; DIGITS / 2];
        rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
            .expect("getrandom has no way to fail for eight bytes");
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The id as text, as it stands in paths.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SnapshotId {
    type Err = NoSnapshotId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = text.len() == DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if good { Ok(Self(text.into())) } else { Err(NoSnapshotId(text.into())) }
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = NoSnapshotId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> Self {
        id.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_are_ids() {
        assert_ne!(SnapshotId::random(), SnapshotId::random());
        let id = SnapshotId::random();
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        for wrong in ["", "..", "0123456789abcde", "0123456789ABCDEF", "0123456789abcde/", "0123456789abcdef0"] {
            assert!(wrong.parse::<SnapshotId>().is_err(), "{wrong}");
        }
    }
}

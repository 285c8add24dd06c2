//! `volume.json`: what a volume is. It is written once, before the volume gets its name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Version of this file and of the ones beside it.
pub(super) const VOLUME_FORMAT: u32 = 1;
/// Its name in the volume's directory.
pub(super) const RECORD_FILE: &str = "volume.json";
/// The disk.
pub(super) const DATA_FILE: &str = "data";
/// The mark of a volume that a VM may write to.
pub(super) const MARK_FILE: &str = "in-use";
/// The socket of the process that lets a VM write to it.
pub(super) const SOCKET_FILE: &str = "control";
/// No record or mark is longer.
pub(super) const RECORD_BYTES_MAX: u64 = 4 << 10;

/// What is on a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// An ext4 filesystem on the whole disk.
    Ext4,
    /// Whatever its guests write. Kiln does not look at it.
    Raw,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext4 => "ext4",
            Self::Raw => "raw",
        })
    }
}

/// A volume's description, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// `VOLUME_FORMAT`.
    pub format: u32,
    pub content: Content,
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
}

/// The content of a mark: who may be writing, for messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mark {
    /// The process that holds the volume, in its own pid namespace.
    pub pid: u32,
    /// Milliseconds since 1970.
    pub since_unix_ms: u64,
}

impl Record {
    pub(super) fn new(content: Content) -> Self {
        Self { format: VOLUME_FORMAT, content, created_unix_ms: unix_ms() }
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("it has string keys and no failing serializers")
    }

    /// Reads a record. Returns the problem as text for users.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if record.format != VOLUME_FORMAT {
            return Err(format!("has format {}, this kiln reads {VOLUME_FORMAT}", record.format));
        }
        Ok(record)
    }
}

impl Mark {
    pub(super) fn of_this_process() -> Self {
        Self { pid: std::process::id(), since_unix_ms: unix_ms() }
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("it has string keys and no failing serializers")
    }
}

fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_one_of_a_later_version_is_refused() {
        let record = Record::new(Content::Ext4);
        assert_eq!(Record::parse(&record.to_json()), Ok(record.clone()));
        let later = Record { format: VOLUME_FORMAT + 1, ..record };
        assert!(Record::parse(&later.to_json()).is_err_and(|problem| problem.contains("format 2")));
        for garbage in [&b""[..], b"{}", b"[]", b"\xff", br#"{"format":1,"content":"ntfs","created_unix_ms":1}"#] {
            assert!(Record::parse(garbage).is_err());
        }
    }
}

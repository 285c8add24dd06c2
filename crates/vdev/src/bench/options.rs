//! What is measured, and how.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::frontend::blk::BlkOptions;
use crate::frontend::{FrontendError, Options};
use crate::virtio::DeviceKind;

/// What is done to a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// Reads, one behind the other.
    Read,
    /// Writes, one behind the other.
    Write,
    /// Reads anywhere.
    #[default]
    RandRead,
    /// Writes anywhere.
    RandWrite,
    /// Reads and writes anywhere, as many of each.
    RandRw,
}

/// A name that is no pattern's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not one of read, write, randread, randwrite, randrw")]
pub struct UnknownPattern(pub String);

impl Pattern {
    /// All there are.
    const ALL: [Self; 5] = [Self::Read, Self::Write, Self::RandRead, Self::RandWrite, Self::RandRw];

    /// What it is called.
    const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::RandRw => "randrw",
        }
    }

    /// Whether it changes what is on the disk.
    pub(super) const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::RandWrite | Self::RandRw)
    }

    /// Whether it goes anywhere.
    pub(super) const fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite | Self::RandRw)
    }
}

impl FromStr for Pattern {
    type Err = UnknownPattern;

    fn from_str(name: &str) -> Result<Self, UnknownPattern> {
        Self::ALL.into_iter().find(|pattern| pattern.name() == name).ok_or_else(|| UnknownPattern(name.to_owned()))
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// What is measured, and how.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// The backend's socket.
    pub socket: PathBuf,
    /// How patient its session is.
    pub session: Options,
    /// What kind of device it is; found out if it is left out. Only disks can be driven.
    pub device: Option<DeviceKind>,
    /// What is done to the disk.
    pub pattern: Pattern,
    /// Bytes of each request, a multiple of 512.
    pub block_bytes: u32,
    /// Requests under way in each queue, one load for each.
    pub depths: Vec<u16>,
    /// How long each load takes.
    pub time: Duration,
    /// How long the disk is under load before it counts.
    pub warm_up: Duration,
    /// Queues, rings and their kind.
    pub rings: BlkOptions,
    /// Where offsets come from.
    pub seed: u64,
    /// Handshakes that are measured.
    pub handshakes: u32,
    /// Messages whose round trip is measured.
    pub round_trips: u32,
}

impl BenchOptions {
    /// A load of 4 KiB reads anywhere, with 1 and 32 requests under way, five seconds each.
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            session: Options::default(),
            device: None,
            pattern: Pattern::default(),
            block_bytes: 4096,
            depths: vec![1, 32],
            time: Duration::from_secs(5),
            warm_up: Duration::from_millis(200),
            rings: BlkOptions::default(),
            seed: crate::random::Random::fresh_seed(),
            handshakes: 100,
            round_trips: 1000,
        }
    }
}

/// Why there is nothing to report.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The backend failed.
    #[error(transparent)]
    Frontend(#[from] FrontendError),
    /// It is a device that the bench cannot drive.
    #[error("`{socket}` is a {kind} device{}, but the bench drives blk devices only", in_parentheses(evidence.as_deref()))]
    Device {
        /// The backend's socket.
        socket: String,
        /// What it is.
        kind: DeviceKind,
        /// The evidence, if it was guessed.
        evidence: Option<String>,
    },
    /// It does not show what it is.
    #[error("the kind of device behind `{socket}` is not known, and the bench drives blk devices only")]
    UnknownDevice {
        /// The backend's socket.
        socket: String,
    },
    /// Blocks of this size can't be had.
    #[error("blocks of {bytes} bytes are not whole sectors of 512 bytes, at most 16 MiB")]
    BlockSize {
        /// What was requested.
        bytes: u32,
    },
    /// The device has blocks of its own that are larger.
    #[error("blocks of {bytes} bytes are not a multiple of the device's blocks of {device_bytes}")]
    DeviceBlocks {
        /// What was requested.
        bytes: u32,
        /// What the device has.
        device_bytes: u32,
    },
    /// The disk has no room for one block.
    #[error("the disk has {capacity} bytes, less than a block of {bytes} for each queue")]
    TooSmall {
        /// The disk's bytes.
        capacity: u64,
        /// A block's.
        bytes: u32,
    },
    /// The disk can't be written.
    #[error("the disk is read-only, but `{pattern}` writes")]
    ReadOnly {
        /// What was requested.
        pattern: Pattern,
    },
    /// Too many or too few requests.
    #[error("the depth {depth} is not 1 to {max}")]
    Depth {
        /// What was requested.
        depth: u16,
        /// The most.
        max: u16,
    },
    /// The device failed a request.
    #[error("the device completed {request} at sector {sector} with {status}")]
    Status {
        /// The request.
        request: &'static str,
        /// Where.
        sector: u64,
        /// What it returned.
        status: &'static str,
    },
    /// A thread of the load could not be started.
    #[error("failed to start a thread for a queue")]
    Thread(#[source] std::io::Error),
}

/// ` (…)`, or nothing.
fn in_parentheses(text: Option<&str>) -> String {
    text.map_or_else(String::new, |text| format!(" ({text})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_go_by_name() {
        for pattern in Pattern::ALL {
            assert_eq!(pattern.name().parse(), Ok(pattern));
            assert_eq!(serde_json::to_string(&pattern).expect("serializes"), format!("\"{pattern}\""));
        }
        assert!("trim".parse::<Pattern>().is_err());
        assert_eq!(Pattern::default(), Pattern::RandRead, "no disk is written unless requested");
    }
}

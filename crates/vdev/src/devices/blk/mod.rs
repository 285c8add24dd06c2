//! A disk ("Block Device" in the VIRTIO specification), in a file or in nothing at all.
//!
//! ```text
//!    request: header of 16 bytes, data …, status byte, cut into buffers anyhow
//!    read      file ──preadv──▶ guest memory          write     guest memory ──pwritev──▶ file
//! ```
//! A request is done before the next one is looked at, on the queue's own thread: a file in the page cache is read
//! faster than a request can be handed over. Each queue has a thread of its own.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use kiln_vdev::backend::{Options, Server};
//! use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
//! use kiln_vdev::socket::{Event, Listener};
//!
//! let stop = Event::new()?;
//! let disk = Blk::open(&BlkOptions::new(Backing::File("disk.img".into())))?;
//! let server = Server::new(Arc::new(disk), Options::default())?;
//! server.serve(&Listener::bind("disk.sock".as_ref())?, &stop)?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod config;
mod disk;
mod lock;
mod queue;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use disk::Disk;
use queue::BlkQueue;

use crate::backend::{ConfigWrite, Device, DeviceError, QueueHandler};
use crate::protocol::ProtocolFeatures;
use crate::virtio::{DeviceKind, feature};

/// The unit of all sizes and places, whatever the block size is.
const SECTOR_BYTES: u64 = 512;
/// The longest serial number.
const SERIAL_BYTES_MAX: usize = 20;
/// The most queues of a disk.
const QUEUES_MAX: u16 = 64;

/// How long a queue's worker looks for more after it has worked. Longer than a driver takes to hand in the next request,
/// shorter than what a wake-up costs some times over.
const POLL_TIME: Duration = Duration::from_micros(50);

/// Where a disk's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// In a file, or a block device.
    File(PathBuf),
    /// Nowhere: it reads as zeros, and forgets what is written.
    Null {
        /// How large it is.
        bytes: u64,
    },
}

/// What a disk is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlkOptions {
    /// Where its bytes are.
    pub backing: Backing,
    /// Whether it can't be written.
    pub read_only: bool,
    /// Its serial number, at most 20 bytes.
    pub serial: String,
    /// The smallest piece that a driver should read or write: a power of two, 512 to 65536.
    pub block_bytes: u32,
    /// How many queues it has, at most 64.
    pub queues: u16,
}

impl BlkOptions {
    /// A disk of these bytes, with 4 queues and blocks of 512 bytes.
    pub fn new(backing: Backing) -> Self {
        Self { backing, read_only: false, serial: "kiln".to_owned(), block_bytes: 512, queues: 4 }
    }
}

/// Why there is no such disk.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// The file is of no use.
    #[error("failed to open the disk `{path}`")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process uses it.
    #[error("the disk `{path}` is in use by another process")]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// An option that no disk has.
    #[error("a disk's {option} cannot be `{value}`")]
    Option {
        /// Which.
        option: &'static str,
        /// What it was.
        value: String,
    },
}

/// A disk.
#[derive(Debug)]
pub struct Blk {
    disk: Arc<Disk>,
    block_bytes: u32,
    queues: u16,
}

impl Blk {
    /// Opens a disk. Its file is locked, as QEMU locks it: against a second writer, and against any other user if it
    /// is to be written.
    ///
    /// # Errors
    /// If it can't be opened, is in use, or does not fit the options.
    pub fn open(options: &BlkOptions) -> Result<Self, BlkError> {
        let wrong = |option, value: String| Err(BlkError::Option { option, value });
        if options.serial.len() > SERIAL_BYTES_MAX {
            return wrong("serial number", options.serial.clone());
        }
        if !options.block_bytes.is_power_of_two() || !(512..=65536).contains(&options.block_bytes) {
            return wrong("block size", options.block_bytes.to_string());
        }
        if !(1..=QUEUES_MAX).contains(&options.queues) {
            return wrong("number of queues", options.queues.to_string());
        }
        let disk = Arc::new(Disk::open(options)?);
        Ok(Self { disk, block_bytes: options.block_bytes, queues: options.queues })
    }

    /// How many sectors it has.
    pub fn sectors(&self) -> u64 {
        self.disk.sectors()
    }
}

impl Device for Blk {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Blk
    }

    fn features(&self) -> u64 {
        use feature::blk::{BLK_SIZE, CONFIG_WCE, DISCARD, FLUSH, MQ, RO, SEG_MAX, SIZE_MAX, WRITE_ZEROES};
        let own = SIZE_MAX | SEG_MAX | BLK_SIZE | FLUSH | MQ;
        own | if self.disk.is_read_only() { RO } else { CONFIG_WCE | DISCARD | WRITE_ZEROES }
    }

    fn protocol_features(&self) -> ProtocolFeatures {
        ProtocolFeatures::DEVICE_STATE
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn poll_time(&self) -> Duration {
        POLL_TIME
    }

    fn config(&self) -> Vec<u8> {
        config::encode(&self.disk, self.block_bytes, self.queues).to_vec()
    }

    fn set_config(&self, write: &ConfigWrite<'_>) -> Result<(), DeviceError> {
        let writeback = config::check_write(&self.config(), write)?;
        if let Some(writeback) = writeback {
            self.disk.writeback.store(writeback, Ordering::Release);
        }
        Ok(())
    }

    /// Whether it may keep writes for later is all that a driver has changed of it.
    fn save_state(&self) -> Vec<u8> {
        vec![u8::from(self.disk.writeback.load(Ordering::Acquire))]
    }

    fn load_state(&self, state: &[u8]) -> Result<(), DeviceError> {
        match state {
            [] => Ok(()),
            [writeback @ (0 | 1)] => {
                self.disk.writeback.store(*writeback == 1, Ordering::Release);
                Ok(())
            }
            other => Err(DeviceError::State { bytes: other.len() }),
        }
    }

    fn reset(&self) {
        self.disk.writeback.store(true, Ordering::Release);
    }

    fn start(&self, _worker: u16, features: u64) -> io::Result<Box<dyn QueueHandler>> {
        Ok(Box::new(BlkQueue::new(Arc::clone(&self.disk), features)))
    }
}

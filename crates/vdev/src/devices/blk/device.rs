//! A disk as a device: its options checked, its features and its configuration.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::config;
use super::disk::Disk;
use super::options::{BlkError, BlkOptions};
use super::queue::BlkQueue;
use crate::backend::{ConfigWrite, Device, DeviceError, QueueHandler};
use crate::protocol::ProtocolFeatures;
use crate::virtio::{DeviceKind, feature};

/// The unit of all sizes and places, whatever the block size is.
pub(super) const SECTOR_BYTES: u64 = 512;
/// The longest serial number.
pub(super) const SERIAL_BYTES_MAX: usize = 20;
/// The most queues of a disk.
const QUEUES_MAX: u16 = 64;

/// How long a queue's worker looks for more after it has worked. Longer than a driver takes to hand in the next request,
/// shorter than what a wake-up costs some times over.
const POLL_TIME: Duration = Duration::from_micros(50);

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

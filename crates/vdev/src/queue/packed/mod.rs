//! Packed rings (VIRTIO 1.2, section 2.8).
//!
//! ```text
//!   descriptors   16 bytes each: address, length, id, flags     written by the driver, then by the device
//!   driver area   driver event suppression: for which used descriptor the device calls
//!   device area   device event suppression: for which available descriptor the driver kicks
//! ```
//! Both sides go round the ring. Two bits of each descriptor's flags show which side wrote it last. Their meaning flips with
//! each lap: that is the wrap counter.

mod cursor;
mod device;
mod driver;

pub(super) use cursor::Cursor;
pub(super) use device::Device;
pub(super) use driver::Driver;

//! Split rings (VIRTIO 1.2, section 2.7).
//!
//! ```text
//!   descriptors   16 bytes each: address, length, flags, next
//!   available     flags, index, one entry for each descriptor, used_event     written by the driver
//!   used          flags, index, (id, length) for each descriptor, avail_event  written by the device
//! ```

mod device;
mod driver;

pub(super) use device::Device;
pub(super) use driver::Driver;

/// Where the flags of either ring are.
const FLAGS: usize = 0;
/// Where the index of either ring is.
const INDEX: usize = 2;
/// Where the entries of either ring begin.
const ENTRIES: usize = 4;
/// Flag of the available ring: the device need not call.
const VIRTQ_AVAIL_F_NO_INTERRUPT: u16 = 1;
/// Flag of the used ring: the driver need not kick.
const VIRTQ_USED_F_NO_NOTIFY: u16 = 1;

/// Where an entry of the available ring is; behind the last, `used_event`.
const fn available_entry(slot: u16) -> usize {
    ENTRIES + slot as usize * 2
}

/// Where an entry of the used ring is; behind the last, `avail_event`.
const fn used_entry(slot: u16) -> usize {
    ENTRIES + slot as usize * 8
}

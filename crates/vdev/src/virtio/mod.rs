//! What a VIRTIO device is: its kinds, their feature bits by name, and their configuration as fields.
//!
//! ```text
//!    DeviceKind   "blk", how many queues it has, the size of its configuration
//!    feature      bits ──▶ names, of all devices and of each kind
//!    config       bytes ──▶ fields with what they mean
//!    requires     features ──▶ those that are there without what they require
//!    plausible    features + queues + bytes ──▶ which kinds a mute backend may be, and why
//! ```
//! Pure: no socket. The numbers are those of VIRTIO 1.3, with later kinds if backends for them exist.

#[cfg(not(feature = "testing"))]
pub(crate) mod config;
#[cfg(feature = "testing")]
pub mod config;
mod device;
pub mod feature;
mod notes;
mod plausible;
mod requires;

pub use device::DeviceKind;

pub(crate) use plausible::Candidate;
pub(crate) use requires::{Unmet, unmet_by_driver, unmet_by_offer, without_control_queue};

for_tests! {
    pub use plausible::plausible;
}

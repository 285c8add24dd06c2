//! What a VIRTIO device is: its kinds, their feature bits by name, and their configuration as fields.
//!
//! ```text
//!    DeviceKind   "blk", its queues by name, the size of its configuration
//!    feature      bits ──▶ names, of all devices and of each kind
//!    config       bytes ──▶ fields with what they mean
//!    requires     features ──▶ those that are there without what they require
//!    plausible    features + queues + bytes ──▶ which kinds a mute backend may be, and why
//! ```
//! Pure: no socket. The numbers are those of VIRTIO 1.3, with later kinds if backends for them exist.

pub mod config;
mod device;
pub mod feature;
mod notes;
mod plausible;
mod requires;

pub use device::{DeviceKind, UnknownDevice};
pub use feature::FeatureName;
pub use plausible::{Candidate, plausible};
pub use requires::{Unmet, unmet_by_driver, unmet_by_offer, without_control_queue};

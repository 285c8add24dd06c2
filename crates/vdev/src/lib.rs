//! vhost-user, from both sides: the codec, a frontend, backends, and the tools that are made of them.
//!
//! ```text
//!    protocol   numbers, features, payloads: pure             memory   shared, checked guest memory
//!    socket     messages with descriptors and deadlines       queue    split and packed rings, both sides
//!    virtio     devices, their features and configuration: pure
//! ```
//! A backend is a process that serves a virtio device to a VMM, the frontend. Either may be hostile to the other.

pub mod backend;
pub mod check;
pub mod devices;
pub mod memory;
pub mod protocol;
pub mod queue;
pub mod socket;
pub mod tap;
pub mod virtio;

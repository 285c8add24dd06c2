//! vhost-user, from both sides: the codec, a frontend, backends, and the tools that are made of them.
//!
//! ```text
//!    protocol   numbers, features, payloads: pure             memory   shared, checked guest memory
//!    socket     messages with descriptors and deadlines       queue    split and packed rings, both sides
//!    virtio     devices by name: features, configuration      frontend the driver's side of a session
//!    backend    the device's side, with devices to serve      mock     a backend that is wrong on purpose
//!    probe      who is behind a socket                        check    conformance of a backend, case by case
//!    tap        a decoding man in the middle                  bench    latencies and rates; stress: many at once
//! ```
//! A backend is a process that serves a virtio device to a VMM, the frontend. Either may be hostile to the other.

#![cfg_attr(feature = "testing", warn(unreachable_pub))]

/// Names that other crates use only in tests, benches and fuzz targets: public under the feature `testing`.
macro_rules! for_tests {
    ($(pub use $module:ident::$names:tt;)*) => {$(
        #[cfg(feature = "testing")]
        pub use $module::$names;
        #[cfg(not(feature = "testing"))]
        pub(crate) use $module::$names;
    )*};
}

pub mod backend;
pub mod bench;
pub mod check;
pub mod devices;
pub mod frontend;
pub mod memory;
pub mod mock;
pub mod probe;
#[cfg(not(feature = "testing"))]
mod protocol;
#[cfg(feature = "testing")]
pub mod protocol;
#[cfg(not(feature = "testing"))]
mod queue;
#[cfg(feature = "testing")]
pub mod queue;
#[cfg(not(feature = "testing"))]
mod random;
#[cfg(feature = "testing")]
pub mod random;
pub mod socket;
pub mod stress;
pub mod tap;
pub mod virtio;

//! The messages between frontend and backend, as bytes: headers, message numbers, feature bits and payloads.
//!
//! Pure: no socket, no descriptor. The numbers are those of QEMU's `docs/interop/vhost-user.rst` as of 2026: 45 requests
//! of a frontend, 10 of a backend, 24 protocol features.

mod features;
mod header;
mod message;
mod payload;
mod request;

pub use features::ProtocolFeatures;
pub use header::{Flags, HEADER_BYTES, Header, PAYLOAD_BYTES_MAX};
pub use message::{BackendCall, FrontendCall, Message, backend, frontend};
pub use payload::{
    Config, DeviceStateTransfer, Empty, Inflight, Iotlb, IotlbKind, Log, MemoryRegion, MemoryTable, PackedBase,
    Payload, REGIONS_MAX, SharedMemoryConfig, SharedMemoryMap, SharedObject, SingleRegion, VringAddress, VringArea,
    VringFile, VringState,
};
#[cfg(feature = "testing")]
pub use payload::{CryptoSession, DESCRIPTORS_MAX, IotlbPermission};
pub use request::{BackendRequest, FrontendRequest};

pub(crate) use features::PROTOCOL_FEATURES;
pub(crate) use header::HeaderError;
pub(crate) use payload::PayloadError;
pub(crate) use request::Request;

//! The messages between frontend and backend, as bytes: headers, message numbers, feature bits and payloads.
//!
//! Pure: no socket, no descriptor. The numbers are those of QEMU's `docs/interop/vhost-user.rst` as of 2026: 45 requests
//! of a frontend, 10 of a backend, 24 protocol features.

mod features;
mod header;
mod message;
mod payload;
mod request;

pub use features::{PROTOCOL_FEATURES, ProtocolFeatures, UnknownFeature};
pub use header::{Flags, HEADER_BYTES, Header, HeaderError, PAYLOAD_BYTES_MAX, VERSION};
pub use message::{BackendCall, FrontendCall, Message, backend, frontend};
pub use payload::{
    Config, CryptoSession, DESCRIPTORS_MAX, DeviceStateTransfer, Empty, Inflight, Iotlb, IotlbKind, IotlbPermission,
    Log, MemoryRegion, MemoryTable, PackedBase, Payload, PayloadError, REGIONS_MAX, SharedMemoryConfig,
    SharedMemoryMap, SharedObject, SingleRegion, VringAddress, VringArea, VringFile, VringState,
};
pub use request::{BackendRequest, FrontendRequest, Request};

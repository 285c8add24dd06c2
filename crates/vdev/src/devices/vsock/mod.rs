//! A socket device (VIRTIO 1.2, section 5.10): stream connections between a guest's `AF_VSOCK` and Unix sockets of the host.
//!
//! ```text
//!   guest connects to (2, port)    ──▶  the Unix socket `{path}_{port}`
//!   host connects to `{path}`, sends `CONNECT port\n`  ──▶  guest's listener; the host reads `OK {host port}\n`
//! ```
//! The names are those that Firecracker and Cloud Hypervisor use, so their clients work here. Packets may be in any
//! number of buffers. Either side may be hostile: a guest that sends beyond its credit loses that connection, and what
//! is kept for one connection is bounded by 256 KiB.

mod connection;
mod device;
mod handler;
mod host;
mod packet;

pub use device::Vsock;
#[cfg(feature = "testing")]
pub use device::{BUFFER_BYTES, CONNECTIONS_MAX};

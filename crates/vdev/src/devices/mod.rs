//! Devices to be served by [`backend::Server`](crate::backend::Server).

pub mod net;
pub mod vsock;

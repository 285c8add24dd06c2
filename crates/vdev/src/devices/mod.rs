//! Devices to be served by [`backend::Server`](crate::backend::Server).

pub mod blk;
pub mod net;
pub mod vsock;

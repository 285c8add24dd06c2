//! Devices to be served by `backend::Server`.

pub mod blk;
pub mod net;
pub mod vsock;

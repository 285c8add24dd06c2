//! Devices that are served by our backends. Each is a [`Device`](crate::backend::Device) and no more: the protocol, the
//! rings and the threads are the server's.
//!
//! ```text
//!    blk     a disk: a file, or nothing at all
//! ```

pub mod blk;

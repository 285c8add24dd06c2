//! The types that Kiln's HTTP server and its clients share: error codes, error bodies, paths.
//!
//! It has only values and no I/O, so a client builds without the server.
#![forbid(unsafe_code)]

mod error;
pub mod paths;

pub use error::{ErrorBody, ErrorCode};

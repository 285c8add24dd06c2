//! What Kiln's HTTP server and its clients say to each other: error codes, the body of a refusal, paths.
//!
//! Values only: nothing here serves, connects or waits, so a client builds without the server.
#![forbid(unsafe_code)]

mod error;
pub mod paths;

pub use error::{ErrorBody, ErrorCode};

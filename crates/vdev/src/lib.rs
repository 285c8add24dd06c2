//! vhost-user: what a frontend and a backend say to each other.
//!
//! So far it holds the first layer of the codec: the [`Header`] before every message. Reading one never fails, as a
//! tool that looks at other programs must be able to hold what they really sent; [`Header::check`] says what is wrong.
#![forbid(unsafe_code)]

mod header;

pub use header::{Flags, HEADER_BYTES, Header, HeaderError, PAYLOAD_BYTES_MAX, VERSION};

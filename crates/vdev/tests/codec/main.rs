//! The codec against every message there is, against any bytes, and against the messages of real peers.
//!
//! ```text
//!    values       any value of each payload           properties   round trips, hostile bytes, the tables
//!    transcript   a session as text                   sessions     fixtures/*.session, and the same live
//! ```

mod live;
mod properties;
mod sessions;
mod transcript;
mod values;

//! What the tests of this crate share: images, servers that lie, and programs that make real images.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod server;
pub mod store;
pub mod tools;

use std::error::Error;
use std::io::Write as _;

/// The text of an error and of all its sources.
pub fn chain(error: &dyn Error) -> String {
    let all = std::iter::successors(Some(error), |&error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Bytes as gzip packs them.
pub fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).expect("in memory");
    encoder.finish().expect("in memory")
}

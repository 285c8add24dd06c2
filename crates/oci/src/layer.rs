//! Reads a layer: unpacks it, and compares both of its digests with what the image says.
//!
//! ```text
//!   blob ──▶ count, hash (digest) ──▶ unpack ──▶ count, hash (diff_id) ──▶ the caller: a tar archive
//! ```
//! The bytes reach the caller before the digests are known, so what the caller makes of them is valid only once
//! [`LayerReader::finish`] has returned, or `read` has returned 0. A tar archive ends before its stream does; both
//! digests also cover what is behind it, so `finish` reads the rest.

use std::io::{self, ErrorKind, Read};

use crate::compression::{Compression, Unpacked};
use crate::digest::{Algorithm, Digest, Hasher};

/// Bytes that are read at once to get to the end of a layer.
const DRAIN_BYTES: usize = 64 << 10;

/// What must be true of a layer. Parts that are not known are not compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// Length of the blob.
    pub size: Option<u64>,
    /// Digest of the blob.
    pub digest: Option<Digest>,
    /// Digest of the unpacked stream.
    pub diff_id: Option<Digest>,
}

/// What was read of a layer, to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSums {
    /// How it was packed.
    pub compression: Compression,
    /// Digest of the unpacked stream.
    pub diff_id: Digest,
    /// Length of the unpacked stream.
    pub unpacked_bytes: u64,
}

/// Why a layer can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Its blob can't be read.
    #[error("failed to read a layer")]
    Read(#[source] io::Error),
    /// It can't be unpacked.
    #[error("failed to unpack a layer")]
    Unpack(#[source] io::Error),
    /// It has another length than the image says.
    #[error("a layer has {found} bytes or more, not {expected}")]
    Size {
        /// The length according to the image.
        expected: u64,
        /// Bytes that were read.
        found: u64,
    },
    /// Its blob has another digest.
    #[error("a layer has the digest `{found}`, not `{expected}`")]
    Digest {
        /// The digest according to the image.
        expected: Digest,
        /// What was read.
        found: Digest,
    },
    /// Its content has another digest.
    #[error("a layer unpacks to `{found}`, not to `{expected}`")]
    DiffId {
        /// The digest according to the image.
        expected: Digest,
        /// What was read.
        found: Digest,
    },
    /// It unpacks to more than the caller permits.
    #[error("a layer unpacks to more than {limit} bytes")]
    TooLarge {
        /// The bound.
        limit: u64,
    },
}

/// A layer's tar archive. Errors of `read` hold a [`LayerError`].
pub struct LayerReader<R> {
    unpacked: Unpacked<Checked<R>>,
    diff_id: Hasher,
    bytes: u64,
    limit: u64,
    expected: Expected,
    /// Set at the end, once everything was compared.
    sums: Option<LayerSums>,
}

/// A blob that is counted and hashed while it is read.
struct Checked<R> {
    blob: R,
    hasher: Hasher,
    bytes: u64,
    expected: Option<u64>,
    ended: bool,
}

impl<R: Read> LayerReader<R> {
    /// Starts a layer. It unpacks to at most `limit` bytes, or reading fails.
    ///
    /// # Errors
    /// If the blob can't be read, or is in a format that Kiln does not unpack.
    pub fn new(blob: R, expected: Expected, limit: u64) -> Result<Self, LayerError> {
        let algorithm = |digest: &Option<Digest>| digest.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let hasher = Hasher::new(algorithm(&expected.digest));
        let diff_id = Hasher::new(algorithm(&expected.diff_id));
        let checked = Checked { blob, hasher, bytes: 0, expected: expected.size, ended: false };
        let unpacked = Unpacked::new(checked).map_err(from_io)?;
        Ok(Self { unpacked, diff_id, bytes: 0, limit, expected, sums: None })
    }

    /// Bytes of the blob that were read so far.
    pub fn packed_bytes(&self) -> u64 {
        self.unpacked.packed().bytes
    }

    /// Bytes that were unpacked so far.
    pub fn unpacked_bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads to the end and compares everything.
    ///
    /// # Errors
    /// If the layer is not what the image says. What was made of it must be dropped then.
    pub fn finish(mut self) -> Result<LayerSums, LayerError> {
        let mut buffer = vec![0; DRAIN_BYTES];
        loop {
            if let Some(sums) = self.sums.take() {
                return Ok(sums);
            }
            self.next(&mut buffer)?;
        }
    }

    fn next(&mut self, into: &mut [u8]) -> Result<usize, LayerError> {
        if into.is_empty() || self.sums.is_some() {
            return Ok(0);
        }
        let count = loop {
            match self.unpacked.read(into) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other.map_err(from_io)?,
            }
        };
        self.bytes += count as u64;
        if self.bytes > self.limit {
            return Err(LayerError::TooLarge { limit: self.limit });
        }
        self.diff_id.update(&into[..count]);
        if count == 0 {
            self.compare()?;
        }
        Ok(count)
    }

    fn compare(&mut self) -> Result<(), LayerError> {
        let packed = self.unpacked.packed();
        // Every decoder reads its stream to the end: behind the last member it looks for another one. So the hash
        // covers the whole blob.
        debug_assert!(packed.ended);
        if let Some(expected) = self.expected.size.filter(|expected| *expected != packed.bytes) {
            return Err(LayerError::Size { expected, found: packed.bytes });
        }
        if let Some(expected) = &self.expected.digest {
            let found = packed.hasher.clone().finish();
            if found != *expected {
                return Err(LayerError::Digest { expected: expected.clone(), found });
            }
        }
        let diff_id = self.diff_id.clone().finish();
        if let Some(expected) = self.expected.diff_id.as_ref().filter(|expected| **expected != diff_id) {
            return Err(LayerError::DiffId { expected: expected.clone(), found: diff_id });
        }
        let compression = self.unpacked.compression();
        self.sums = Some(LayerSums { compression, diff_id, unpacked_bytes: self.bytes });
        Ok(())
    }
}

impl<R: Read> Read for LayerReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.next(into).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.blob.read(into).map_err(|error| match error.kind() {
            ErrorKind::Interrupted => error,
            _ => io::Error::other(LayerError::Read(error)),
        })?;
        self.hasher.update(&into[..count]);
        self.bytes += count as u64;
        self.ended |= count == 0 && !into.is_empty();
        match self.expected.filter(|expected| self.bytes > *expected) {
            Some(expected) => Err(io::Error::other(LayerError::Size { expected, found: self.bytes })),
            None => Ok(count),
        }
    }
}

/// An error of the blob comes through the decoder as it was; others are the decoder's own.
fn from_io(error: io::Error) -> LayerError {
    error.downcast::<LayerError>().unwrap_or_else(LayerError::Unpack)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const PLAIN: &[u8] = b"a tar archive, and what is behind it";

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn expected(blob: &[u8]) -> Expected {
        Expected {
            size: Some(blob.len() as u64),
            digest: Some(Digest::sha256(blob)),
            diff_id: Some(Digest::sha256(PLAIN)),
        }
    }

    fn outcome(blob: &[u8], expected: Expected, limit: u64) -> Result<LayerSums, LayerError> {
        LayerReader::new(blob, expected, limit)?.finish()
    }

    #[test]
    fn a_layer_is_compared_to_its_last_byte() {
        let blob = gzip(PLAIN);
        let mut reader = LayerReader::new(blob.as_slice(), expected(&blob), 1000).expect("a layer");
        let mut start = [0; 5];
        reader.read_exact(&mut start).expect("it is longer");
        let sums = reader.finish().expect("all of it is right");
        assert_eq!((sums.compression, sums.unpacked_bytes), (Compression::Gzip, PLAIN.len() as u64));
        assert_eq!(sums.diff_id, Digest::sha256(PLAIN));

        let mut all = Vec::new();
        let mut reader = LayerReader::new(PLAIN, expected(PLAIN), PLAIN.len() as u64).expect("a layer");
        reader.read_to_end(&mut all).expect("all of it is right");
        assert_eq!(all, PLAIN);
        assert_eq!(reader.read(&mut start).expect("stays at the end"), 0);
    }

    #[test]
    fn a_layer_without_expectations_is_only_summed_up() {
        let sums = outcome(PLAIN, Expected::default(), u64::MAX).expect("nothing to compare");
        assert_eq!((sums.compression, sums.diff_id), (Compression::None, Digest::sha256(PLAIN)));
    }

    #[test]
    fn a_wrong_layer_fails_before_its_end_is_returned() {
        let blob = gzip(PLAIN);
        let right = expected(&blob);
        let other = Digest::sha256(b"other");
        let mut two = blob.clone();
        two.extend(gzip(b"another tar archive"));
        let with = |change: fn(&mut Expected)| {
            let mut wrong = right.clone();
            change(&mut wrong);
            wrong
        };
        let no_size = with(|expected| expected.size = None);
        let no_digest = Expected { digest: None, ..no_size.clone() };
        let lines = [
            outcome(&blob, with(|expected| expected.size = Some(10)), 1000),
            outcome(&blob, with(|expected| expected.size = Some(1000)), 1000),
            outcome(&blob, Expected { digest: Some(other.clone()), ..right.clone() }, 1000),
            outcome(&blob, Expected { diff_id: Some(other), ..right.clone() }, 1000),
            outcome(&two, no_size, 1000),
            outcome(&two, no_digest, 1000),
            outcome(&blob, right.clone(), 10),
            outcome(&blob[..blob.len() - 4], right, 1000),
            outcome(b"BZh9", Expected::default(), 1000),
        ]
        .map(|outcome| {
            let error = outcome.expect_err("is wrong");
            let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
            chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
        });
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn a_bomb_costs_no_more_than_the_limit() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        io::copy(&mut io::repeat(0).take(8 << 20), &mut encoder).expect("in memory");
        let bomb = encoder.finish().expect("in memory");
        let mut reader = LayerReader::new(bomb.as_slice(), Expected::default(), 1 << 20).expect("a layer");
        let read = io::copy(&mut reader, &mut io::sink()).expect_err("is too large");
        assert!(matches!(read.downcast::<LayerError>(), Ok(LayerError::TooLarge { .. })));
        assert!(reader.unpacked_bytes() <= (1 << 20) + (64 << 10));
    }
}

//! A log file: plain text, or compressed when it was rotated. Its first bytes show the format.
//!
//! ```text
//!   file or stdin ── magic bytes ──▶ gzip, xz, zstd or plain ──▶ plain bytes, up to a bound
//! ```
//!
//! A compressed file may be hostile: a few kilobytes can unpack to terabytes, and its header can request a window of
//! gigabytes. The memory of the decoders, which images have too, is bounded, and so is the size of the output.

use std::io::{self, ErrorKind, Read};

use kiln_oci::{Compression, UnknownCompression, Unpacked};

/// The largest unpacked size.
const UNPACKED_BYTES_MAX: u64 = 4 << 30;
/// Formats that Kiln does not unpack, and a program that unpacks them.
const OTHERS: [(&str, &str); 3] = [("bzip2", "bzcat"), ("lz4", "lz4cat"), ("zip", "unzip -p")];

/// Returns a reader of a log's plain bytes.
pub fn open<'a>(log: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let unpacked = Unpacked::new(log).map_err(name_a_program)?;
    Ok(match unpacked.compression() {
        Compression::None => Box::new(unpacked),
        Compression::Gzip | Compression::Zstd | Compression::Xz => Box::new(Bounded::new(unpacked)),
    })
}

/// Replaces the error of an unknown format by one with the program that unpacks it.
fn name_a_program(error: io::Error) -> io::Error {
    let unknown = error.get_ref().and_then(|error| error.downcast_ref::<UnknownCompression>());
    let program = unknown.and_then(|unknown| OTHERS.iter().find(|(name, _)| *name == unknown.0));
    match program {
        Some((_, program)) => io::Error::new(ErrorKind::Unsupported, Packed(program)),
        None => error,
    }
}

/// The error of a log that is compressed in a format that Kiln does not unpack.
#[derive(Debug, Clone, Copy)]
pub struct Packed(
    /// The program that unpacks it.
    pub &'static str,
);

impl std::fmt::Display for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("kiln does not unpack its format")
    }
}

impl std::error::Error for Packed {}

/// Fails once the output exceeds its bound.
struct Bounded<R> {
    unpacked: R,
    left: u64,
}

impl<R: Read> Bounded<R> {
    fn new(unpacked: R) -> Self {
        Self { unpacked, left: UNPACKED_BYTES_MAX }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.unpacked.read(into)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::new(ErrorKind::FileTooLarge, format!("it unpacks to more than {} GiB", UNPACKED_BYTES_MAX >> 30))
        })?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn unpacked(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        open(packed)?.read_to_end(&mut plain).map(|_| plain)
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn xz(plain: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(plain).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn zstd(plain: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest)
    }

    type Packer = fn(&[u8]) -> Vec<u8>;

    const PACKERS: [Packer; 3] = [gzip, xz, zstd];

    #[test]
    fn every_format_is_recognised_by_its_first_bytes() {
        let log = b"[    1.000000] usb 1-1: new device\n".repeat(10_000);
        for pack in PACKERS {
            assert!(unpacked(&pack(&log)).expect("a good file") == log);
            let two = [pack(&log), pack(b"more\n")].concat();
            assert!(unpacked(&two).expect("two members") == [log.as_slice(), b"more\n"].concat());
        }
        for plain in [&b""[..], b"x", b"\x1f", b"[    1.000000] plain\n"] {
            assert_eq!(unpacked(plain).expect("is plain"), plain);
        }
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let log = b"[    1.000000] usb 1-1: new device\n".repeat(100);
        for pack in PACKERS {
            let packed = pack(&log);
            assert!(unpacked(&packed[..packed.len() - 3]).is_err(), "cut");
            let mut broken = packed.clone();
            let last = broken.len() - 2;
            broken[last] ^= 0xff;
            assert!(unpacked(&broken).is_err(), "a checksum");
        }
    }

    #[test]
    fn skippable_frames_are_skipped() {
        let skipped = [&b"\x50\x2a\x4d\x18\x03\0\0\0abc"[..], &zstd(b"log")].concat();
        assert_eq!(unpacked(&[zstd(b"a "), skipped].concat()).expect("two frames"), b"a log");
    }

    #[test]
    fn a_decompression_bomb_fails_at_the_bound() {
        let mut bounded = Bounded { unpacked: io::repeat(b'x'), left: 1 << 20 };
        let error = io::copy(&mut bounded, &mut io::sink()).expect_err("is too much");
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
        let mut head = xz(b"x");
        // A window of gigabytes, in a head that claims to be zstd's.
        head.splice(.., b"\x28\xb5\x2f\xfd\0\xf8\0\0\0".iter().copied());
        assert!(unpacked(&head).is_err());
    }

    #[test]
    fn other_formats_name_a_program_that_unpacks_them() {
        for (start, program) in
            [(&b"BZh91AY&SY"[..], "bzcat"), (b"\x04\x22\x4d\x18", "lz4cat"), (b"PK\x03\x04", "unzip -p")]
        {
            let error = unpacked(start).expect_err("is not read");
            assert_eq!(error.downcast::<Packed>().expect("the error of the format").0, program);
        }
    }
}

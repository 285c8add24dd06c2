//! A log file: plain text, or compressed when it was rotated. Its first bytes show the format.
//!
//! ```text
//!   file or stdin ── magic bytes ──▶ gzip, xz, zstd or plain ──▶ plain bytes, up to a bound
//! ```
//!
//! A compressed file may be hostile: a few kilobytes can unpack to terabytes, and its header can request a window of
//! gigabytes. So each decoder's memory is bounded, and so is the size of the output.

use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};

use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// The largest unpacked size.
const UNPACKED_BYTES_MAX: u64 = 4 << 30;
/// Memory of the xz decoder; `xz -9` needs 65 MiB.
const XZ_MEMORY_BYTES_MAX: u64 = 128 << 20;
/// The window of the zstd decoder; `zstd -19` needs 8 MiB, `--long` 128 MiB.
const ZSTD_WINDOW_BYTES_MAX: u64 = 128 << 20;
const BUFFER_BYTES: usize = 64 << 10;

const GZIP: &[u8] = b"\x1f\x8b";
const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
const MAGIC_BYTES: usize = 6;
/// Formats that Kiln does not unpack: their first bytes, and a program that unpacks them.
const OTHERS: [(&[u8], &str); 3] = [(b"BZh", "bzcat"), (b"\x04\x22\x4d\x18", "lz4cat"), (b"PK\x03\x04", "unzip -p")];

/// Returns a reader of a log's plain bytes.
pub fn open<'a>(mut log: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(MAGIC_BYTES);
    log.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut magic)?;
    let whole = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(magic.clone()).chain(log));
    Ok(if magic.starts_with(GZIP) {
        Box::new(Bounded::new(MultiGzDecoder::new(whole)))
    } else if magic.starts_with(XZ) {
        let stream = Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, CONCATENATED)?;
        Box::new(Bounded::new(XzDecoder::new_stream(whole, stream)))
    } else if magic.starts_with(ZSTD) {
        Box::new(Bounded::new(Zstd::new(whole)))
    } else if let Some((_, program)) = OTHERS.iter().find(|(start, _)| magic.starts_with(start)) {
        return Err(io::Error::new(ErrorKind::Unsupported, Packed(program)));
    } else {
        Box::new(whole)
    })
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

/// The frames of a zstd file, one after another, with their checksums compared.
struct Zstd<R> {
    decoder: FrameDecoder,
    packed: R,
    in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(packed: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(ZSTD_WINDOW_BYTES_MAX);
        Self { decoder, packed, in_frame: false }
    }

    /// Begins the next frame with data, if there is one.
    fn begin(&mut self) -> io::Result<()> {
        while !self.in_frame && !self.packed.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.packed) {
                Ok(()) => self.in_frame = true,
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    io::copy(&mut self.packed.by_ref().take(length.into()), &mut io::sink())?;
                }
                Err(error) => return Err(io::Error::new(ErrorKind::InvalidData, error)),
            }
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.in_frame = false;
        match self.decoder.get_checksum_from_data() {
            Some(stored) if self.decoder.get_calculated_checksum() != Some(stored) => {
                Err(io::Error::new(ErrorKind::InvalidData, "its checksum does not match"))
            }
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            self.begin()?;
            if !self.in_frame {
                return Ok(0);
            }
            // The decoder holds bytes back that a later block may refer to, until the frame ends.
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.packed, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            }
            let count = self.decoder.read(into)?;
            if self.decoder.is_finished() && self.decoder.can_collect() == 0 {
                self.end()?;
            }
            if count > 0 || into.is_empty() {
                return Ok(count);
            }
        }
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
        let error = unpacked(b"BZh91AY&SY").expect_err("is not read");
        assert_eq!(error.downcast::<Packed>().expect("the error of the format").0, "bzcat");
    }
}

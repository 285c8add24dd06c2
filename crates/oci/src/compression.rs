//! Unpacks a stream whose format is recognised by its first bytes: gzip, zstd, xz, or not compressed.
//!
//! Media types and file names are claims, and images with wrong ones exist. A stream may have several members or frames
//! in a row, as parallel compressors and lazily loaded images have; they are one content. Bytes behind the last one that
//! are no member are an error, because other programs differ in what they do with them.
//!
//! The decoders' memory is bounded; how much comes out is for the caller to bound, see [`crate::LayerReader`].

use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};

use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// The largest window of zstd: what `zstd --long` uses.
pub const ZSTD_WINDOW_BYTES_MAX: u64 = 128 << 20;
/// Memory of the xz decoder; `xz -9` needs 65 MiB.
pub const XZ_MEMORY_BYTES_MAX: u64 = 128 << 20;

const BUFFER_BYTES: usize = 64 << 10;
const MAGIC_BYTES: usize = 6;
const GZIP: &[u8] = b"\x1f\x8b";
const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
/// A skippable frame of zstd has the rest of this magic number in the lower four bits of its first byte.
const ZSTD_SKIPPABLE: &[u8] = b"\x2a\x4d\x18";
/// Formats that are not unpacked: their first bytes, and their names.
const OTHERS: [(&[u8], &str); 3] = [(b"BZh", "bzip2"), (b"\x04\x22\x4d\x18", "lz4"), (b"PK\x03\x04", "zip")];

/// How a stream is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// By gzip.
    Gzip,
    /// By zstd.
    Zstd,
    /// By xz. Docker accepts it in archives and layers.
    Xz,
}

/// The error of a stream in a format that Kiln does not unpack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is compressed by {0}, which Kiln does not unpack")]
pub struct UnknownCompression(
    /// Its name.
    pub &'static str,
);

/// The plain bytes of a stream that may be packed.
pub struct Unpacked<R> {
    compression: Compression,
    decoder: Decoder<Whole<R>>,
}

/// A stream from its first byte on, although the first bytes were read.
type Whole<R> = BufReader<io::Chain<Cursor<Vec<u8>>, R>>;

enum Decoder<R> {
    None(R),
    Gzip(MultiGzDecoder<R>),
    Zstd(Box<Zstd<R>>),
    Xz(XzDecoder<R>),
}

impl<R: Read> Unpacked<R> {
    /// Reads the first bytes of a stream and chooses the decoder.
    ///
    /// # Errors
    /// If the stream returns an error, or is in a format of [`UnknownCompression`].
    pub fn new(mut packed: R) -> io::Result<Self> {
        let mut magic = Vec::with_capacity(MAGIC_BYTES);
        packed.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut magic)?;
        let compression = recognise(&magic)?;
        let whole = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(magic).chain(packed));
        let decoder = match compression {
            Compression::None => Decoder::None(whole),
            Compression::Gzip => Decoder::Gzip(MultiGzDecoder::new(whole)),
            Compression::Zstd => Decoder::Zstd(Box::new(Zstd::new(whole))),
            Compression::Xz => {
                let stream = Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, CONCATENATED)?;
                Decoder::Xz(XzDecoder::new_stream(whole, stream))
            }
        };
        Ok(Self { compression, decoder })
    }

    /// How the stream is packed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The packed stream.
    pub fn packed(&self) -> &R {
        let whole = match &self.decoder {
            Decoder::None(whole) => whole,
            Decoder::Gzip(decoder) => decoder.get_ref(),
            Decoder::Zstd(decoder) => &decoder.packed,
            Decoder::Xz(decoder) => decoder.get_ref(),
        };
        whole.get_ref().get_ref().1
    }
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.decoder {
            Decoder::None(whole) => whole.read(into),
            Decoder::Gzip(decoder) => decoder.read(into),
            Decoder::Zstd(decoder) => decoder.read(into),
            Decoder::Xz(decoder) => decoder.read(into),
        }
    }
}

fn recognise(magic: &[u8]) -> io::Result<Compression> {
    let is_skippable = magic.first().is_some_and(|first| first >> 4 == 5) && magic[1..].starts_with(ZSTD_SKIPPABLE);
    Ok(if magic.starts_with(GZIP) {
        Compression::Gzip
    } else if magic.starts_with(ZSTD) || is_skippable {
        Compression::Zstd
    } else if magic.starts_with(XZ) {
        Compression::Xz
    } else if let Some((_, name)) = OTHERS.iter().find(|(start, _)| magic.starts_with(start)) {
        return Err(io::Error::new(ErrorKind::Unsupported, UnknownCompression(name)));
    } else {
        Compression::None
    })
}

/// The frames of a zstd stream, one after another, with their checksums compared.
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
                    self.skip(length.into())?;
                }
                Err(error) => return Err(io::Error::new(ErrorKind::InvalidData, error)),
            }
        }
        Ok(())
    }

    fn skip(&mut self, length: u64) -> io::Result<()> {
        match io::copy(&mut self.packed.by_ref().take(length), &mut io::sink())? {
            skipped if skipped < length => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
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
            if !self.in_frame || into.is_empty() {
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
            if count > 0 {
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
        Unpacked::new(packed)?.read_to_end(&mut plain).map(|_| plain)
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

    const PACKERS: [(Packer, Compression); 3] =
        [(gzip, Compression::Gzip), (xz, Compression::Xz), (zstd, Compression::Zstd)];
    const SKIPPABLE: &[u8] = b"\x5e\x2a\x4d\x18\x03\0\0\0abc";

    #[test]
    fn every_format_is_recognised_by_its_first_bytes() {
        let layer = b"usr/share/doc/x\0\0\0".repeat(10_000);
        for (pack, compression) in PACKERS {
            let packed = pack(&layer);
            assert_eq!(Unpacked::new(packed.as_slice()).expect("a stream").compression(), compression);
            assert!(unpacked(&packed).expect("a good stream") == layer);
            let two = [pack(&layer), pack(b""), pack(b"more")].concat();
            assert!(unpacked(&two).expect("three members") == [layer.as_slice(), b"more"].concat());
        }
        for plain in [&b""[..], b"x", b"\x1f", b"\x50\x2a", b"./\0\0\0\0\0\0\0"] {
            assert_eq!(unpacked(plain).expect("is plain"), plain);
        }
    }

    #[test]
    fn a_damaged_stream_is_an_error() {
        let layer = b"usr/share/doc/x\0\0\0".repeat(1000);
        for (pack, compression) in PACKERS {
            let packed = pack(&layer);
            for end in [1, packed.len() / 2, packed.len() - 1] {
                assert!(end < MAGIC_BYTES || unpacked(&packed[..end]).is_err(), "{compression:?} cut at {end}");
            }
            let mut broken = packed.clone();
            let last = broken.len() - 2;
            broken[last] ^= 0xff;
            assert!(unpacked(&broken).is_err(), "{compression:?}: a checksum");
            assert!(unpacked(&[&packed, &b"garbage"[..]].concat()).is_err(), "{compression:?}: garbage behind");
        }
        assert!(unpacked(&[zstd(b"a"), SKIPPABLE[..9].to_vec()].concat()).is_err(), "a cut skippable frame");
    }

    #[test]
    fn skippable_frames_are_skipped_wherever_they_are() {
        let stream = [SKIPPABLE, &zstd(b"a "), SKIPPABLE, SKIPPABLE, &zstd(b"log"), SKIPPABLE].concat();
        assert_eq!(unpacked(&stream).expect("two frames"), b"a log");
    }

    #[test]
    fn a_window_of_gigabytes_is_refused() {
        // A frame header without content size, whose window descriptor has the exponent 31.
        assert!(unpacked(b"\x28\xb5\x2f\xfd\0\xf8\0\0\0\0\0\0").is_err());
    }

    #[test]
    fn other_formats_are_named() {
        let error = unpacked(b"BZh91AY&SY").expect_err("is not read");
        assert_eq!(error.downcast::<UnknownCompression>().expect("the error of the format").0, "bzip2");
    }
}

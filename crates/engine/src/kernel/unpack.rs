//! Finds the form of a package's kernel that boots fastest.
//!
//! A bzImage is a small loader around a compressed ELF kernel. Unpacking it takes an emulated CPU a third of a second
//! at every boot. So it is unpacked here, once, if the kernel has an entry point that VMMs can use directly (PVH). Any
//! other kernel stays as it is and boots too.
//!
//! Skipping the loader has two more effects. It does not turn on page tables with five levels, which would make every
//! fork slower under `-cpu max`. And it does not choose a random address for the kernel (KASLR), so every guest has its
//! kernel at the same address. Forks of one snapshot would share the address in any case, because it is in their
//! memory. The relocations that the loader would need for this are cut off.

use std::io::{self, Read as _};

use camino::Utf8Path;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::elf::{self, Elf};
use super::lz4;

/// No kernel is larger. More than this is a decompression bomb.
pub(crate) const KERNEL_BYTES_MAX: usize = 512 << 20;
/// Memory that the xz decoder may take.
const XZ_MEMORY_BYTES_MAX: u64 = 256 << 20;
const XZ_MAGIC: &[u8] = b"\xfd7zXZ\0";
const ZSTD_MAGIC: &[u8] = b"\x28\xb5\x2f\xfd";
const GZIP_MAGIC: &[u8] = b"\x1f\x8b";

/// Offsets of the setup header, see the kernel's Documentation/arch/x86/boot.rst.
const SETUP_SECTORS_OFFSET: usize = 0x1f1;
const MAGIC_OFFSET: usize = 0x202;
const PROTOCOL_OFFSET: usize = 0x206;
const VERSION_OFFSET: usize = 0x20e;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// Since this version of the protocol, the header has the offset of the payload.
const PROTOCOL_WITH_PAYLOAD: u16 = 0x0208;
const SECTOR_BYTES: usize = 512;
/// The start of what a kernel prints first.
const GREETING: &[u8] = b"Linux version ";
/// Longest release, see `struct new_utsname`.
const RELEASE_BYTES_MAX: usize = 64;

/// How to load a kernel file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelFormat {
    /// It unpacks itself.
    BzImage,
    /// An ELF file, entered at its PVH entry point.
    Vmlinux,
}

impl KernelFormat {
    /// The file's name in an image.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::BzImage => "vmlinuz",
            Self::Vmlinux => "vmlinux",
        }
    }
}

/// A kernel for an image.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) format: KernelFormat,
    pub(crate) bytes: Vec<u8>,
}

/// The fastest form of a kernel. `None` if the file is not an x86 kernel.
pub(crate) fn unpack(file: Vec<u8>) -> Option<Kernel> {
    if Elf::parse(&file).is_some_and(|elf| elf.has_pvh_entry()) {
        return Some(Kernel { format: KernelFormat::Vmlinux, bytes: file });
    }
    if file.get(MAGIC_OFFSET..MAGIC_OFFSET + 4)? != b"HdrS" {
        return None;
    }
    if let Some(mut bytes) = payload(&file).and_then(decompress)
        && let Some(elf) = Elf::parse(&bytes)
        && elf.has_pvh_entry()
    {
        // After the end are relocations, which only the skipped loader could use.
        let end = elf.end();
        bytes.truncate(end);
        return Some(Kernel { format: KernelFormat::Vmlinux, bytes });
    }
    Some(Kernel { format: KernelFormat::BzImage, bytes: file })
}

/// Whether [`unpack`] would accept a file.
pub(crate) fn is_kernel(file: &[u8]) -> bool {
    file.get(MAGIC_OFFSET..MAGIC_OFFSET + 4) == Some(b"HdrS") || Elf::parse(file).is_some_and(|elf| elf.has_pvh_entry())
}

/// The ELF file within a bzImage. `None` for other files, and if it is packed in an unknown way.
pub(super) fn elf_of(file: &[u8]) -> Option<Vec<u8>> {
    if file.get(MAGIC_OFFSET..MAGIC_OFFSET + 4)? != b"HdrS" {
        return None;
    }
    payload(file).and_then(decompress).filter(|bytes| Elf::parse(bytes).is_some())
}

/// The release that a kernel reports as `uname -r`: from the header of a bzImage, or from the greeting in an ELF file.
/// `None` if it has neither.
pub(crate) fn release_in(file: &[u8]) -> Option<String> {
    let text = if file.get(MAGIC_OFFSET..MAGIC_OFFSET + 4) == Some(b"HdrS") {
        // The offset counts from the second sector.
        let at = u16::from_le_bytes(*file.get(VERSION_OFFSET..)?.first_chunk()?);
        file.get(usize::from(at) + SECTOR_BYTES..)?
    } else {
        greeted(file)?
    };
    let end = text.iter().take(RELEASE_BYTES_MAX + 1).position(|byte| !byte.is_ascii_graphic())?;
    let release = std::str::from_utf8(&text[..end]).ok()?;
    is_release(release).then(|| release.to_owned())
}

/// What follows the greeting. It is in a kernel as a format, too: "Linux version %s".
fn greeted(file: &[u8]) -> Option<&[u8]> {
    let mut rest = file;
    loop {
        rest = &rest[find(rest, GREETING)? + GREETING.len()..];
        if rest.first().is_some_and(u8::is_ascii_digit) {
            return Some(rest);
        }
    }
}

/// Where a text begins in bytes. Kernels have 50 MB, and most of these bytes are not the first of the text.
pub(super) fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    let (first, rest) = text.split_first()?;
    let mut at = 0;
    while let Some(found) = bytes[at..].iter().position(|byte| byte == first) {
        at += found + 1;
        if bytes[at..].starts_with(rest) {
            return Some(at - 1);
        }
    }
    None
}

/// Whether a text can be a kernel's release, and the name of the directory of its modules.
pub(crate) fn is_release(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._+~-".contains(&byte);
    text.starts_with(|c: char| c.is_ascii_digit()) && text.len() <= RELEASE_BYTES_MAX && text.bytes().all(letter)
}

/// The release of a kernel that is an ELF file, such as `6.1.0-44-cloud-amd64`. Reads no more than its headers and
/// notes. `None` for other files; a bzImage has a header of its own for this.
///
/// # Errors
/// The file can't be read.
pub(crate) fn release(vmlinux: &Utf8Path) -> io::Result<Option<String>> {
    Ok(elf::kernel_release(fs::File::open(vmlinux)?.file()))
}

/// The compressed kernel within a bzImage.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?) as usize);
    let protocol = u16::from_le_bytes(*image.get(PROTOCOL_OFFSET..)?.first_chunk()?);
    if protocol < PROTOCOL_WITH_PAYLOAD {
        return None;
    }
    // Zero stands for four, for the sake of very old loaders.
    let setup_sectors = match *image.get(SETUP_SECTORS_OFFSET)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * SECTOR_BYTES + word(PAYLOAD_OFFSET)?;
    image.get(start..start.checked_add(word(PAYLOAD_LENGTH)?)?)
}

fn decompress(payload: &[u8]) -> Option<Vec<u8>> {
    if payload.starts_with(&lz4::LEGACY_MAGIC) {
        lz4::decompress_legacy(payload, KERNEL_BYTES_MAX)
    } else if payload.starts_with(XZ_MAGIC) {
        unxz(payload, KERNEL_BYTES_MAX)
    } else if payload.starts_with(ZSTD_MAGIC) {
        unzstd(payload, KERNEL_BYTES_MAX)
    } else if payload.starts_with(GZIP_MAGIC) {
        gunzip(payload, KERNEL_BYTES_MAX)
    } else {
        None
    }
}

/// Unpacks the first zstd frame in `bytes` and ignores the bytes after it, as [`unxz`] does. Debian packs Linux 6.12
/// with a window of 128 MiB, which is the most that the decoder accepts.
pub(crate) fn unzstd(bytes: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let limit = bytes_max as u64 + 1;
    ruzstd::decoding::StreamingDecoder::new(bytes).ok()?.take(limit).read_to_end(&mut out).ok()?;
    (out.len() <= bytes_max).then_some(out)
}

/// Unpacks the first gzip member in `bytes` and ignores the bytes after it, as [`unxz`] does.
pub(crate) fn gunzip(bytes: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let limit = bytes_max as u64 + 1;
    flate2::bufread::GzDecoder::new(bytes).take(limit).read_to_end(&mut out).ok()?;
    (out.len() <= bytes_max).then_some(out)
}

/// Unpacks the first xz stream in `bytes`. Ignores the bytes after it: a kernel's payload ends with its size.
pub(crate) fn unxz(bytes: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, 0).ok()?;
    let mut out = Vec::new();
    let limit = bytes_max as u64 + 1;
    liblzma::bufread::XzDecoder::new_stream(bytes, stream).take(limit).read_to_end(&mut out).ok()?;
    (out.len() <= bytes_max).then_some(out)
}

/// Makes kernels for tests of what reads them.
#[cfg(test)]
pub(crate) mod made {
    use std::io::Write as _;

    use super::*;

    /// A bzImage of this release.
    pub(crate) fn bzimage_of(release: &str, payload: &[u8]) -> Vec<u8> {
        let mut image = bzimage(payload);
        let at = image.len();
        image.extend(release.as_bytes());
        image.extend(b" (me@host)\0");
        image[VERSION_OFFSET..][..2].copy_from_slice(&(at as u16 - SECTOR_BYTES as u16).to_le_bytes());
        image
    }

    /// A bzImage of two setup sectors around a payload.
    pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR_BYTES + 16];
        image[SETUP_SECTORS_OFFSET] = 1;
        image[MAGIC_OFFSET..][..4].copy_from_slice(b"HdrS");
        image[PROTOCOL_OFFSET..][..2].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..][..4].copy_from_slice(&16_u32.to_le_bytes());
        image[PAYLOAD_LENGTH..][..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        image.extend([0; 32]);
        image
    }

    pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("packs");
        encoder.finish().expect("packs")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::made::{bzimage, bzimage_of, gzip};
    use super::*;
    use crate::kernel::elf::made;

    const PVH: (&str, u32, &[u8]) = ("Xen", 18, &[0, 0, 0, 1]);

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).expect("packs");
        encoder.finish().expect("packs")
    }

    #[test]
    fn a_kernel_with_a_pvh_entry_is_unpacked_without_the_bytes_after_it() {
        let vmlinux = made::elf(".text", b"code", &[PVH]);
        let with_relocations = [&vmlinux[..], &[1; 64]].concat();
        for mut payload in [xz(&with_relocations), zstd(&with_relocations), gzip(&with_relocations)] {
            payload.extend((with_relocations.len() as u32).to_le_bytes());
            let kernel = unpack(bzimage(&payload)).expect("is a kernel");
            assert_eq!((kernel.format, kernel.bytes), (KernelFormat::Vmlinux, vmlinux.clone()));
        }
    }

    #[test]
    fn kernels_without_that_entry_or_in_an_unknown_packing_stay_as_they_are() {
        let unusable = xz(&made::elf(".text", b"code", &[]));
        for payload in [&unusable[..], b"\x28\xb5\x2f\xfd zstd", b"BZh9 bzip2", b"", &unusable[..40]] {
            let image = bzimage(payload);
            let kernel = unpack(image.clone()).expect("is a kernel");
            assert_eq!((kernel.format, kernel.bytes), (KernelFormat::BzImage, image));
        }
    }

    #[test]
    fn a_header_that_points_out_of_the_file_does_not_panic() {
        let mut image = bzimage(b"x");
        image[PAYLOAD_OFFSET..][..8].copy_from_slice(&[0xff; 8]);
        assert_eq!(unpack(image).expect("is a kernel").format, KernelFormat::BzImage);
    }

    #[test]
    fn other_files_are_no_kernels() {
        for bytes in [&b""[..], b"#!/bin/sh\n", &[0; 4096]] {
            assert!(unpack(bytes.to_vec()).is_none());
        }
    }

    #[test]
    fn a_release_is_in_the_header_or_in_the_greeting() {
        let mut image = bzimage_of("6.12.95-mine", b"x");
        assert_eq!(release_in(&image).as_deref(), Some("6.12.95-mine"));
        image[VERSION_OFFSET..][..2].copy_from_slice(&[0xff; 2]);
        assert_eq!(release_in(&image), None);
        let vmlinux = made::elf(".rodata", b"Linux version %s\0Linux version 6.1.0+ (me@host)\0", &[]);
        assert_eq!(release_in(&vmlinux).as_deref(), Some("6.1.0+"));
        for none in ["", "Linux version", "Linux version 6/../x ", "Linux version 6.1"] {
            assert_eq!(release_in(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn a_bomb_is_given_up() {
        assert_eq!(unxz(&xz(&[0; 5000]), 4999), None);
        assert_eq!(unxz(&xz(&[0; 5000]), 5000), Some(vec![0; 5000]));
        assert_eq!(unzstd(&zstd(&[0; 5000]), 4999), None);
        assert_eq!(unzstd(&zstd(&[0; 5000]), 5000), Some(vec![0; 5000]));
        assert_eq!(gunzip(&gzip(&[0; 5000]), 4999), None);
        assert_eq!(gunzip(&gzip(&[0; 5000]), 5000), Some(vec![0; 5000]));
    }
}

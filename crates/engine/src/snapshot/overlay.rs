//! Disk images without `qemu-img`. Making an empty overlay takes some tens of microseconds here; starting a process
//! takes milliseconds, which is too long for a fork. Also reads the parts of an image's header that Kiln needs.
//!
//! ```text
//!   cluster  0        1                   2                    3 …
//!            header   refcount table      refcount block       L1 table: all zero, so every read
//!                     [0] ──────────────▶ 1 for each cluster   falls through to the layer below
//!                                         of this file
//! ```
//! The format is qcow2 version 3, described in QEMU's `docs/interop/qcow2.txt`. The header names no backing file. Kiln
//! gives QEMU the layers itself (`drivers/qemu/blockdev.rs`), so moving a file breaks no chain.

use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileTypeExt as _;

use camino::Utf8Path;
use fs_err as fs;
use fs_err::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use crate::files::private_file;
use crate::spec::DiskFormat;

/// The largest disk of an overlay. A larger one would need more than one cluster for its refcount table.
pub(crate) const OVERLAY_BYTES_MAX: u64 = 16 << 40;

/// A disk is a number of whole sectors.
const SECTOR_BYTES: u64 = 512;
/// QEMU's default.
const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// How much of the disk an entry of the L1 table maps: a cluster of 8-byte entries, each of which maps a cluster.
const L1_ENTRY_COVERS_BYTES: u64 = CLUSTER_BYTES / 8 * CLUSTER_BYTES;
/// Refcounts have 2^4 bits.
const REFCOUNT_ORDER: u32 = 4;
const REFCOUNT_TABLE_AT: u64 = CLUSTER_BYTES;
const REFCOUNT_BLOCK_AT: u64 = 2 * CLUSTER_BYTES;
const L1_TABLE_AT: u64 = 3 * CLUSTER_BYTES;

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Length of the header of version 3, without later fields. That of version 2 has 72 bytes.
const HEADER_BYTES: usize = 104;
const HEADER_V2_BYTES: usize = 72;
/// The versions that are supported.
const VERSIONS: [u32; 2] = [2, 3];
const CLUSTER_BITS_ALLOWED: std::ops::RangeInclusive<u32> = 9..=21;
/// Incompatible feature: the data is in another file, which the header names.
const EXTERNAL_DATA: u64 = 1 << 2;

/// Makes an empty overlay for a disk of that size, rounded up to whole sectors. It may be larger than the layer below;
/// the rest reads as zeros.
///
/// Nothing is synced: an overlay belongs to a running VM, which a crash of the host ends.
///
/// # Errors
///
/// The disk is larger than [`OVERLAY_BYTES_MAX`], the file exists already, or it can't be written. Then no overlay is
/// left.
pub(crate) fn create(path: &Utf8Path, disk_bytes: u64) -> io::Result<()> {
    if disk_bytes > OVERLAY_BYTES_MAX {
        let problem = format!("`{path}` would be an overlay of {disk_bytes} bytes, of at most {OVERLAY_BYTES_MAX}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    let file = private_file::create_new(path)?;
    write_empty(&file, disk_bytes.next_multiple_of(SECTOR_BYTES)).inspect_err(|_| {
        // The first error is returned. If the file can't be removed, it goes with the VM's directory.
        let _ = fs::remove_file(path);
    })
}

/// The size of an image's disk, in whole sectors as QEMU shows it to a guest. The file may be a block device.
///
/// # Errors
///
/// It can't be read, or its header is not a qcow2 header.
pub(crate) fn virtual_size(path: &Utf8Path, format: DiskFormat) -> io::Result<u64> {
    let mut file = open_image(path)?;
    match format {
        DiskFormat::Raw => Ok(file.seek(SeekFrom::End(0))?.next_multiple_of(SECTOR_BYTES)),
        DiskFormat::Qcow2 => Ok(Header::read(path, &mut file)?.disk_bytes / SECTOR_BYTES * SECTOR_BYTES),
    }
}

/// Refuses an image whose header names another file. If the header names a data file, QEMU would open it, whatever file
/// that is, and no option on its command line prevents that. If the header names a backing file, QEMU opens none,
/// because Kiln's arguments override it. The guest would then read zeros there, which is not the disk that the user
/// meant.
///
/// # Errors
///
/// It is such an image, it can't be read, or its header is not a qcow2 header.
pub(crate) fn refuse_other_files(path: &Utf8Path, format: DiskFormat) -> io::Result<()> {
    if format == DiskFormat::Raw {
        return Ok(());
    }
    let header = Header::read(path, &mut open_image(path)?)?;
    if header.incompatible_features & EXTERNAL_DATA != 0 {
        return Err(invalid(path, "keeps its data in another file, which is not followed"));
    }
    if header.has_backing_file {
        return Err(invalid(path, "has a backing file, which is not followed"));
    }
    Ok(())
}

/// The fields of a header that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    has_backing_file: bool,
    disk_bytes: u64,
    incompatible_features: u64,
}

impl Header {
    fn read(path: &Utf8Path, file: &mut fs::File) -> io::Result<Self> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        file.take(HEADER_BYTES as u64).read_to_end(&mut bytes)?;
        Self::parse(&bytes).map_err(|problem| invalid(path, problem))
    }

    fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let u32_at = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
        let u64_at = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
        if !bytes.starts_with(&MAGIC) || bytes.len() < HEADER_V2_BYTES {
            return Err("is not a qcow2 image");
        }
        let version = u32_at(4).filter(|version| VERSIONS.contains(version));
        let version = version.ok_or("is a qcow2 image of an unknown version")?;
        let backing_file_at = u64_at(8).ok_or("is cut off within its header")?;
        let cluster_bits = u32_at(20).filter(|bits| CLUSTER_BITS_ALLOWED.contains(bits));
        let cluster_bits = cluster_bits.ok_or("has a cluster size that qcow2 does not allow")?;
        let (disk_bytes, l1_entries) = u64_at(24).zip(u32_at(36)).ok_or("is cut off within its header")?;
        // A cluster of 8-byte entries, see above.
        let mapped = u128::from(l1_entries) << (2 * cluster_bits - 3);
        if i64::try_from(disk_bytes).is_err() || u128::from(disk_bytes) > mapped {
            return Err("has a size that its tables do not map");
        }
        let incompatible_features = match version {
            2 => 0,
            _ => u64_at(72).ok_or("is cut off within its header")?,
        };
        Ok(Self { has_backing_file: backing_file_at != 0, disk_bytes, incompatible_features })
    }
}

fn write_empty(file: &fs::File, disk_bytes: u64) -> io::Result<()> {
    // An empty disk would need no entry, but readers of the format may expect one.
    let l1_entries = disk_bytes.div_ceil(L1_ENTRY_COVERS_BYTES).max(1);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER_BYTES);
    let clusters = L1_TABLE_AT / CLUSTER_BYTES + l1_clusters;
    let refcounts: Vec<u8> = (0..clusters).flat_map(|_| 1_u16.to_be_bytes()).collect();

    // All else stays a hole, which reads as zeros and takes no space.
    file.set_len(clusters * CLUSTER_BYTES)?;
    file.write_all_at(&header(disk_bytes, l1_entries), 0)?;
    file.write_all_at(&REFCOUNT_BLOCK_AT.to_be_bytes(), REFCOUNT_TABLE_AT)?;
    file.write_all_at(&refcounts, REFCOUNT_BLOCK_AT)
}

fn header(disk_bytes: u64, l1_entries: u64) -> Vec<u8> {
    let l1_entries = u32::try_from(l1_entries).expect("a disk of at most `OVERLAY_BYTES_MAX` has 32768 entries");
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend(MAGIC);
    header.extend(3_u32.to_be_bytes());
    // No backing file: offset and length of its name.
    header.extend([0; 8 + 4]);
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(disk_bytes.to_be_bytes());
    // Not encrypted.
    header.extend([0; 4]);
    header.extend(l1_entries.to_be_bytes());
    header.extend(L1_TABLE_AT.to_be_bytes());
    header.extend(REFCOUNT_TABLE_AT.to_be_bytes());
    // Clusters of the refcount table.
    header.extend(1_u32.to_be_bytes());
    // No snapshots within the image: their number and offset.
    header.extend([0; 4 + 8]);
    // No features: incompatible, compatible (for example lazy refcounts), or autoclear.
    header.extend([0; 3 * 8]);
    header.extend(REFCOUNT_ORDER.to_be_bytes());
    header.extend((HEADER_BYTES as u32).to_be_bytes());
    // The hole that follows is an extension of type 0, which ends the header.
    debug_assert_eq!(header.len(), HEADER_BYTES);
    header
}

fn open_image(path: &Utf8Path) -> io::Result<fs::File> {
    // Without this, opening a pipe would wait for its writer.
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_block_device() { Ok(file) } else { Err(invalid(path, "is neither a file nor a disk")) }
}

fn invalid(path: &Utf8Path, problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("`{path}` {problem}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::process::Command;

    use camino::Utf8PathBuf;
    use proptest::prelude::*;

    use super::*;

    fn directory() -> (tempfile::TempDir, Utf8PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8PathBuf::try_from(directory.path().to_owned()).expect("UTF-8");
        (directory, path)
    }

    fn qemu_img(arguments: &[&str]) -> String {
        let output = Command::new("qemu-img").args(arguments).output().expect("`qemu-img` of the package qemu-utils");
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {words}{}", String::from_utf8_lossy(&output.stderr));
        words
    }

    #[test]
    fn overlays_of_all_sizes_are_whole_and_small() {
        let (_guard, directory) = directory();
        let sizes = [
            (0, 0),
            (1, 512),
            (512, 512),
            (1000, 1024),
            (1 << 20, 1 << 20),
            (L1_ENTRY_COVERS_BYTES + 1, L1_ENTRY_COVERS_BYTES + 512),
            (64 << 30, 64 << 30),
            (OVERLAY_BYTES_MAX, OVERLAY_BYTES_MAX),
        ];
        for (asked, got) in sizes {
            let path = directory.join(format!("{asked}.qcow2"));
            create(&path, asked).expect("an overlay");
            assert!(qemu_img(&["check", path.as_str()]).contains("No errors were found"), "{asked}");
            let info: serde_json::Value =
                serde_json::from_str(&qemu_img(&["info", "--output=json", path.as_str()])).expect("JSON");
            assert_eq!(info["virtual-size"], got);
            assert_eq!(info["cluster-size"], CLUSTER_BYTES);
            assert_eq!(info["format-specific"]["data"]["refcount-bits"], 16);
            assert_eq!(info["format-specific"]["data"]["lazy-refcounts"], false);
            assert_eq!(info["backing-filename"], serde_json::Value::Null);
            assert_eq!(virtual_size(&path, DiskFormat::Qcow2).expect("a size"), got);
            let meta = fs::metadata(&path).expect("facts");
            assert!(meta.blocks() * 512 <= 64 << 10 && meta.len() < 1 << 20, "{asked}: {meta:?}");
        }
    }

    #[test]
    fn a_disk_that_is_too_large_and_an_existing_file_are_refused() {
        let (_guard, directory) = directory();
        let path = directory.join("overlay");
        for bytes in [OVERLAY_BYTES_MAX + 1, u64::MAX] {
            let error = create(&path, bytes).expect_err("too large");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(error.to_string().contains("at most 17592186044416"), "{error}");
        }
        assert!(!path.exists());

        fs::write(&path, "precious").expect("a file");
        assert_eq!(create(&path, 512).expect_err("it is there").kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).expect("the file"), "precious");
    }

    #[test]
    fn a_disk_has_the_size_that_qemu_shows() {
        let (_guard, directory) = directory();
        let raw = directory.join("raw");
        for (bytes, shown) in [(0, 0), (512, 512), (1000, 1024), (64 << 30, 64 << 30)] {
            fs::File::create(&raw).and_then(|file| file.set_len(bytes)).expect("a file");
            assert_eq!(virtual_size(&raw, DiskFormat::Raw).expect("a size"), shown);
        }

        let qcow2 = directory.join("qcow2");
        for options in ["compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=2M", "extended_l2=on"] {
            qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, qcow2.as_str(), "3G"]);
            assert_eq!(virtual_size(&qcow2, DiskFormat::Qcow2).expect("a size"), 3 << 30, "{options}");
        }
        // Only other programs than QEMU make such a size. QEMU ignores the last part.
        let file = fs::OpenOptions::new().write(true).open(&qcow2).expect("the image");
        file.write_all_at(&1000_u64.to_be_bytes(), 24).expect("a write");
        let info = qemu_img(&["info", "--output=json", qcow2.as_str()]);
        assert!(info.contains("\"virtual-size\": 512,"), "{info}");
        assert_eq!(virtual_size(&qcow2, DiskFormat::Qcow2).expect("a size"), 512);
    }

    #[test]
    fn a_file_that_is_not_a_disk_is_refused_without_waiting() {
        let (_guard, directory) = directory();
        let fifo = directory.join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, fifo.as_std_path(), rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .expect("a pipe");
        for path in [&fifo, &directory, &Utf8PathBuf::from("/dev/null")] {
            let error = virtual_size(path, DiskFormat::Raw).expect_err("no disk");
            assert_eq!(error.to_string(), format!("`{path}` is neither a file nor a disk"));
        }
        let absent = directory.join("absent");
        assert_eq!(virtual_size(&absent, DiskFormat::Raw).expect_err("nothing").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn an_image_with_a_backing_or_data_file_is_refused() {
        let (_guard, directory) = directory();
        let (image, data) = (directory.join("image"), directory.join("data"));
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", &format!("data_file={data}"), image.as_str(), "1M"]);
        let error = refuse_other_files(&image, DiskFormat::Qcow2).expect_err("another file");
        assert_eq!(error.to_string(), format!("`{image}` keeps its data in another file, which is not followed"));

        let overlay = directory.join("overlay");
        create(&overlay, 512).expect("an overlay");
        refuse_other_files(&overlay, DiskFormat::Qcow2).expect("all in one file");
        refuse_other_files(&image, DiskFormat::Raw).expect("its bytes are the disk");

        for compat in ["compat=0.10", "compat=1.1"] {
            let arguments = ["create", "-q", "-f", "qcow2", "-o", compat, "-u", "-b", "/etc/shadow", "-F", "raw"];
            qemu_img(&[&arguments[..], &[image.as_str(), "1M"]].concat());
            let error = refuse_other_files(&image, DiskFormat::Qcow2).expect_err("another file");
            assert_eq!(error.to_string(), format!("`{image}` has a backing file, which is not followed"));
        }
    }

    #[test]
    fn a_header_of_nonsense_is_named() {
        let good = header(1 << 20, 1);
        let with = |at: usize, bytes: &[u8]| {
            let mut header = good.clone();
            header[at..at + bytes.len()].copy_from_slice(bytes);
            header
        };
        let parsed = Header { has_backing_file: false, disk_bytes: 1 << 20, incompatible_features: 0 };
        assert_eq!(Header::parse(&good), Ok(parsed));
        // The header may place the name anywhere.
        for at in [1, HEADER_BYTES as u64, u64::MAX] {
            let header = Header::parse(&with(8, &at.to_be_bytes()));
            assert_eq!(header, Ok(Header { has_backing_file: true, ..parsed }));
        }
        let cases = [
            (Vec::new(), "is not a qcow2 image"),
            (with(0, b"QED\0"), "is not a qcow2 image"),
            (good[..71].to_vec(), "is not a qcow2 image"),
            (good[..79].to_vec(), "is cut off within its header"),
            (with(4, &1_u32.to_be_bytes()), "is a qcow2 image of an unknown version"),
            (with(20, &8_u32.to_be_bytes()), "has a cluster size that qcow2 does not allow"),
            (with(20, &u32::MAX.to_be_bytes()), "has a cluster size that qcow2 does not allow"),
            (with(24, &(L1_ENTRY_COVERS_BYTES + 1).to_be_bytes()), "has a size that its tables do not map"),
            (with(24, &u64::MAX.to_be_bytes()), "has a size that its tables do not map"),
        ];
        for (bytes, problem) in cases {
            assert_eq!(Header::parse(&bytes), Err(problem));
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_the_reader_panic(tail in prop::collection::vec(any::<u8>(), 0..110), bits in 0..40_u32) {
            let mut bytes = header(1 << 20, 1);
            let kept = bytes.len().saturating_sub(tail.len());
            bytes.truncate(kept);
            bytes.extend(tail);
            let _ = Header::parse(&bytes);
            bytes[20..24].copy_from_slice(&bits.to_be_bytes());
            prop_assert!(Header::parse(&bytes).is_err() || CLUSTER_BITS_ALLOWED.contains(&bits));
        }
    }
}

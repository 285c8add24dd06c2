//! Mounts filesystems of disks that the host has attached, and grows those that are mounted.
#![expect(unsafe_code, reason = "growing a mounted filesystem is only reachable by ioctl")]

use std::fs;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use kiln_wire::Mount;
use rustix::mount::{MountFlags, mount};

/// Where the kernel has devices.
const DEVICES: &str = "/dev/";
/// How long a device may take to appear. Its driver is loaded, but finds its devices one after the other.
const DEVICE_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two checks for it.
const DEVICE_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// How long a disk that the host has made larger may take to have its new size in the guest: the driver is interrupted,
/// and asks for the size.
const SIZE_DEADLINE: Duration = Duration::from_secs(10);
/// `EXT4_IOC_RESIZE_FS`: the new number of blocks. In headers of the kernel since 3.3.
const EXT4_IOC_RESIZE_FS: u64 = 0x4008_6610;
/// The start of the superblock of ext4, and where its number of blocks and the size of a block are in it: see the kernel's
/// `Documentation/filesystems/ext4/super.rst`.
const SUPERBLOCK_OFFSET: u64 = 1024;
const SUPERBLOCK_LEN: usize = 0x200;
const BLOCKS_LOW: usize = 0x04;
const LOG_BLOCK_SIZE: usize = 0x18;
const MAGIC: usize = 0x38;
const BLOCKS_HIGH: usize = 0x150;
const LOG_BLOCK_SIZE_MAX: u32 = 6;
/// The only filesystem that grows while it is mounted.
const EXT4: &str = "ext4";
/// Longest path of Linux, with its zero byte.
const PATH_BYTES_MAX: usize = 4096;

/// The problem with a mount's values, as text for users. `None` if they are valid.
pub fn problem(wanted: &Mount) -> Option<String> {
    let Mount { device, target, fstype, .. } = wanted;
    let plain = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !device.strip_prefix(DEVICES).is_some_and(plain) {
        return Some(format!("`{device}` is not a device below `{DEVICES}`"));
    }
    if !plain(fstype) {
        return Some(format!("`{fstype}` is not a type of filesystem"));
    }
    let bytes = target.as_bytes();
    if !bytes.starts_with(b"/") || bytes.len() >= PATH_BYTES_MAX || bytes.contains(&0) {
        return Some(format!("`{target}` is not an absolute path of at most {PATH_BYTES_MAX} bytes"));
    }
    None
}

/// Mounts a filesystem. Blocks until the device exists and the filesystem has replayed its journal. If it is mounted there
/// already, it is grown to the size of its device.
///
/// # Errors
/// If the device doesn't appear or grow, the directory can't be created, or the kernel refuses. The message names them.
pub fn mount_disk(wanted: &Mount) -> io::Result<()> {
    let Mount { device, target, fstype, read_only } = wanted;
    let deadline = Instant::now() + DEVICE_DEADLINE;
    while !Path::new(device).exists() {
        if Instant::now() >= deadline {
            return Err(io::Error::other(format!("device `{device}` did not appear within {DEVICE_DEADLINE:?}")));
        }
        thread::sleep(DEVICE_POLL_INTERVAL);
    }
    let directory = PathBuf::from(std::ffi::OsStr::from_bytes(target.as_bytes()));
    let named =
        |what: &str, error: io::Error| io::Error::new(error.kind(), format!("can't {what} `{target}`: {error}"));
    if is_mounted(device, &directory) {
        return grow(device, &directory, fstype).map_err(|error| named("grow the filesystem on", error));
    }
    fs::create_dir_all(&directory).map_err(|error| named("create", error))?;
    let flags = if *read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    mount(device.as_str(), &directory, fstype.as_str(), flags, None).map_err(|error| {
        let how = if *read_only { "read-only " } else { "" };
        named(&format!("mount `{device}` {how}as {fstype} on"), error.into())
    })
}

/// Whether what is at a path is on that device.
fn is_mounted(device: &str, directory: &Path) -> bool {
    let device = fs::metadata(device).map(|meta| meta.rdev());
    let here = fs::metadata(directory).map(|meta| meta.dev());
    matches!((device, here), (Ok(device), Ok(here)) if device == here)
}

/// Grows a mounted filesystem to the size of its device, once that is larger than the filesystem.
fn grow(device: &str, directory: &Path, fstype: &str) -> io::Result<()> {
    if fstype != EXT4 {
        return Err(io::Error::other(format!("{fstype} can't grow")));
    }
    let deadline = Instant::now() + SIZE_DEADLINE;
    let blocks = loop {
        let mut disk = File::open(device)?;
        let mut superblock = [0; SUPERBLOCK_LEN];
        disk.seek(SeekFrom::Start(SUPERBLOCK_OFFSET))?;
        disk.read_exact(&mut superblock)?;
        let Some((block_bytes, blocks)) = size_in(&superblock) else {
            return Err(io::Error::other("it is not ext4"));
        };
        let possible = disk.seek(SeekFrom::End(0))? / block_bytes;
        if possible > blocks {
            break possible;
        }
        if Instant::now() >= deadline {
            return Err(io::Error::other(format!("`{device}` is not larger after {SIZE_DEADLINE:?}")));
        }
        thread::sleep(DEVICE_POLL_INTERVAL);
    };
    let mounted = File::open(directory)?;
    // SAFETY: the kernel reads the number, which lives during the call.
    match unsafe { libc::ioctl(mounted.as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &raw const blocks) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The bytes of a block, and the number of blocks. `None` if it is not a superblock.
fn size_in(superblock: &[u8; SUPERBLOCK_LEN]) -> Option<(u64, u64)> {
    let at =
        |at: usize| u32::from_le_bytes([superblock[at], superblock[at + 1], superblock[at + 2], superblock[at + 3]]);
    let log = at(LOG_BLOCK_SIZE);
    let is_ext4 = superblock[MAGIC..MAGIC + 2] == [0x53, 0xef] && log <= LOG_BLOCK_SIZE_MAX;
    // The upper half is 0 in a filesystem without the feature for it.
    is_ext4.then(|| (1024 << log, u64::from(at(BLOCKS_HIGH)) << 32 | u64::from(at(BLOCKS_LOW))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_from_a_superblock_and_from_nothing_else() {
        let mut superblock = [0; SUPERBLOCK_LEN];
        assert_eq!(size_in(&superblock), None);
        superblock[MAGIC..MAGIC + 2].copy_from_slice(&[0x53, 0xef]);
        superblock[BLOCKS_LOW..BLOCKS_LOW + 4].copy_from_slice(&7u32.to_le_bytes());
        superblock[BLOCKS_HIGH] = 1;
        superblock[LOG_BLOCK_SIZE] = 2;
        assert_eq!(size_in(&superblock), Some((4096, (1 << 32) + 7)));
        superblock[LOG_BLOCK_SIZE] = 7;
        assert_eq!(size_in(&superblock), None);
    }

    #[test]
    fn a_directory_of_another_filesystem_is_not_mounted_from_a_device() {
        assert!(!is_mounted("/dev/null", Path::new("/")));
        assert!(!is_mounted("/dev/kiln-none", Path::new("/")));
    }

    #[test]
    fn only_devices_absolute_paths_and_plain_types_are_mounted() {
        let of = |device: &str, target: &str, fstype: &str| {
            problem(&Mount { device: device.into(), target: target.into(), fstype: fstype.into(), read_only: false })
        };
        assert_eq!(of("/dev/vdb", "/var/lib/x", "ext4"), None);
        for device in ["vdb", "/dev/", "/dev/../etc/shadow", "/dev/mapper/x", "/etc/x", ""] {
            assert!(of(device, "/x", "ext4").is_some(), "{device}");
        }
        for target in ["", "x", "../x", "/a\0b", &format!("/{}", "x".repeat(PATH_BYTES_MAX))] {
            assert!(of("/dev/vdb", target, "ext4").is_some(), "{target}");
        }
        for fstype in ["", "a b", "../x", "ext4,ro"] {
            assert!(of("/dev/vdb", "/x", fstype).is_some(), "{fstype}");
        }
    }
}

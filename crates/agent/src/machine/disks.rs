//! Mounts filesystems of disks that the host has attached.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
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

/// Mounts a filesystem. Blocks until the device exists and the filesystem has replayed its journal.
///
/// # Errors
/// If the device doesn't appear, the directory can't be created, or the kernel refuses. The message names them.
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
    fs::create_dir_all(&directory).map_err(|error| named("create", error))?;
    let flags = if *read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    mount(device.as_str(), &directory, fstype.as_str(), flags, None).map_err(|error| {
        let how = if *read_only { "read-only " } else { "" };
        named(&format!("mount `{device}` {how}as {fstype} on"), error.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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

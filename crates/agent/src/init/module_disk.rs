//! A disk with all modules of the kernel, mounted where `modprobe` looks for them.

use std::io;

use kiln_wire::Mount;

use super::boot_options::ModuleDisk;
use crate::machine::disks;

/// Mounts the disk on `/lib/modules/RELEASE`. Blocks until the device exists.
///
/// # Errors
/// If the device doesn't appear, or the mount fails. The message names them.
pub(super) fn mount(disk: &ModuleDisk) -> io::Result<()> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let wanted = Mount {
        device: disk.device.clone(),
        target: format!("/lib/modules/{release}").as_str().into(),
        fstype: disk.filesystem.clone(),
        read_only: true,
    };
    match disks::problem(&wanted) {
        Some(problem) => Err(io::Error::other(problem)),
        None => disks::mount_disk(&wanted),
    }
}

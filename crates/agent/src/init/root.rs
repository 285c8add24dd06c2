//! A root from a disk: a read-only block device under an overlay whose upper layer is in memory.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::mount::{MountFlags, mount, mount_move};
use tokio::time::{sleep, timeout};

use super::boot_options::RootDevice;
use super::modules::Modules;

/// How long the device may take to appear.
const DEVICE_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two checks for it.
const DEVICE_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// The directory of the initramfs in which the layers are mounted.
const WORKSHOP: &str = "/.kiln-root";
/// Mounts that are moved to the new root.
const MOVED: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/tmp"];

/// Makes the device's file system the root. The agent continues to run from its program file, which is open.
///
/// # Errors
/// If the device doesn't appear, or a mount fails. The message names it.
pub(super) async fn switch(root: &RootDevice, modules: &Modules) -> io::Result<()> {
    modules.load(&root.filesystem);
    modules.load("overlay");
    let appear = async {
        while !Path::new(&root.device).exists() {
            sleep(DEVICE_POLL_INTERVAL).await;
        }
    };
    timeout(DEVICE_DEADLINE, appear).await.map_err(|_| {
        io::Error::other(format!("root device `{}` did not appear within {DEVICE_DEADLINE:?}", root.device))
    })?;
    let (lower, memory, new) = (format!("{WORKSHOP}/lower"), format!("{WORKSHOP}/memory"), format!("{WORKSHOP}/root"));
    for directory in [&lower, &memory, &new] {
        fs::create_dir_all(directory)?;
    }
    mount(&root.device, &lower, &root.filesystem, MountFlags::RDONLY, None).map_err(|error| {
        io::Error::other(format!("can't mount root `{}` as {}: {error}", root.device, root.filesystem))
    })?;
    mount("root-upper", &memory, "tmpfs", MountFlags::empty(), Some(c"mode=0755"))?;
    let (upper, work) = (format!("{memory}/upper"), format!("{memory}/work"));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let layers = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let layers = std::ffi::CString::new(layers).map_err(io::Error::other)?;
    mount("root", &new, "overlay", MountFlags::empty(), Some(layers.as_c_str()))
        .map_err(|error| io::Error::other(format!("can't mount the overlay of the root: {error}")))?;
    for path in MOVED {
        let target = format!("{new}{path}");
        fs::create_dir_all(&target)?;
        mount_move(path, &target)?;
    }
    rustix::process::chdir(new.as_str())?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    Ok(rustix::process::chdir("/")?)
}

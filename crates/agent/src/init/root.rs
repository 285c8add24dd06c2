//! A root from a disk: a read-only block device under an overlay. The upper layer of the overlay is in memory, or on
//! another disk.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount, mount_move};
use tokio::time::{sleep, timeout};

use super::boot_options::RootDevice;
use super::modules::Modules;
use crate::files::set_upper;

/// The filesystem of a disk for the upper layer.
const UPPER_FILESYSTEM: &str = "ext4";
/// How long the device may take to appear.
const DEVICE_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two checks for it.
const DEVICE_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// The directory of the initramfs in which the layers are mounted.
const WORKSHOP: &str = "/.kiln-root";
/// Options of the overlay. Without `redirect_dir`, a directory of the lower layer can't be renamed: programs get `EXDEV`.
/// `index` would keep hard links together when one of them is copied up, but it requires that the upper layer is never
/// used with another lower one, and refuses to mount it again after a crash. `xino` makes inode numbers of both layers
/// unique, which `find` and `tar` rely on.
const OVERLAY_OPTIONS: &str = "redirect_dir=on,index=off,xino=on";
/// Mounts that are moved to the new root.
const MOVED: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/tmp"];

/// Makes the device's file system the root. The agent continues to run from its program file, which is open.
///
/// # Errors
/// If the device doesn't appear, or a mount fails. The message names it.
pub(super) async fn switch(root: &RootDevice, modules: &Modules) -> io::Result<()> {
    modules.load(&root.filesystem);
    modules.load("overlay");
    appear(&root.device).await?;
    let (lower, upper, new) = (format!("{WORKSHOP}/lower"), format!("{WORKSHOP}/upper"), format!("{WORKSHOP}/root"));
    for directory in [&lower, &upper, &new] {
        fs::create_dir_all(directory)?;
    }
    mount(&root.device, &lower, &root.filesystem, MountFlags::RDONLY, None).map_err(|error| {
        io::Error::other(format!("can't mount root `{}` as {}: {error}", root.device, root.filesystem))
    })?;
    match &root.upper {
        None => mount("root-upper", &upper, "tmpfs", MountFlags::empty(), Some(c"mode=0755"))?,
        Some(device) => {
            modules.load(UPPER_FILESYSTEM);
            appear(device).await?;
            mount(device, &upper, UPPER_FILESYSTEM, MountFlags::empty(), None).map_err(|error| {
                io::Error::other(format!("can't mount `{device}`, the root's upper layer: {error}"))
            })?;
        }
    }
    let (layer, work) = (format!("{upper}/upper"), format!("{upper}/work"));
    for directory in [&layer, &work] {
        // A disk that was used before has them.
        fs::create_dir_all(directory)?;
    }
    copy_owner_and_mode(&lower, &layer)?;
    // Nothing leads to it once the root is switched.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    set_upper(rustix::fs::open(layer.as_str(), flags, Mode::empty())?);
    let layers = format!("lowerdir={lower},upperdir={layer},workdir={work},{OVERLAY_OPTIONS}");
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

/// Waits for a block device.
async fn appear(device: &str) -> io::Result<()> {
    let appear = async {
        while !Path::new(device).exists() {
            sleep(DEVICE_POLL_INTERVAL).await;
        }
    };
    let late = |_| io::Error::other(format!("root device `{device}` did not appear within {DEVICE_DEADLINE:?}"));
    timeout(DEVICE_DEADLINE, appear).await.map_err(late)
}

/// The root of an overlay has the attributes of its upper layer, not those of the lower one.
fn copy_owner_and_mode(from: &str, to: &str) -> io::Result<()> {
    let meta = fs::metadata(from)?;
    std::os::unix::fs::chown(to, Some(meta.uid()), Some(meta.gid()))?;
    fs::set_permissions(to, meta.permissions())
}

//! The guest's boot id, `/proc/sys/kernel/random/boot_id`, which is another one in each fork.
//!
//! ```text
//!   boot: /run/kiln/boot-id ──bind mount, read-only──▶ /proc/sys/kernel/random/boot_id
//!   fork: the same file is written anew
//! ```
//! The kernel draws its own boot id when it is read for the first time and then never again, so forks of a VM in which
//! anybody has read it would share it. Under the mount nobody reads the kernel's, in a mount namespace that is made later
//! neither: it has a copy of the mount. The file behind it stays the same one, so all those copies change at once. Where a
//! program mounts a proc file system of its own, as a container does, it reads the kernel's: drawn in the fork, unless
//! some program had done the same before the snapshot.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::sync::OnceLock;

use rustix::mount::{MountFlags, mount_bind, mount_remount};

const PLACE: &str = "/proc/sys/kernel/random/boot_id";
const FILE: &str = "/run/kiln/boot-id";
/// Draws a UUID at each read, with an end of line, and does not wait for randomness.
const UUIDS: &str = "/proc/sys/kernel/random/uuid";
/// Of a UUID and its end of line.
const ID_BYTES: usize = 37;

/// Held open, so that it can be written whatever becomes of its name.
static COVER: OnceLock<File> = OnceLock::new();

/// Puts an id of the agent's making in the place of the kernel's. Before any other program runs.
///
/// # Errors
/// The file can't be made or mounted.
pub fn cover() -> io::Result<()> {
    let options = File::options().read(true).write(true).create_new(true).mode(0o444).clone();
    let file = options.open(FILE)?;
    file.write_all_at(&draw()?, 0)?;
    mount(FILE)?;
    // A second one would be for a second boot.
    let _ = COVER.set(file);
    Ok(())
}

/// Gives this fork a boot id of its own, after its randomness is its own.
///
/// # Errors
/// There is no such file since the boot; or it can't be written or mounted again.
pub fn renew() -> io::Result<()> {
    let cover = COVER.get().ok_or_else(|| io::Error::other("it could not be covered when the guest booted"))?;
    cover.write_all_at(&draw()?, 0)?;
    if is_covered(cover)? {
        return Ok(());
    }
    // A program has taken the mount away.
    mount(&format!("/proc/self/fd/{}", cover.as_raw_fd()))
}

fn draw() -> io::Result<Vec<u8>> {
    let id = fs::read(UUIDS)?;
    if id.len() == ID_BYTES { Ok(id) } else { Err(io::Error::other(format!("`{UUIDS}` gives {} bytes", id.len()))) }
}

fn mount(file: &str) -> io::Result<()> {
    mount_bind(file, PLACE)?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount_remount(PLACE, flags, "")?)
}

fn is_covered(cover: &File) -> io::Result<bool> {
    let (here, ours) = (fs::metadata(PLACE)?, cover.metadata()?);
    Ok((here.dev(), here.ino()) == (ours.dev(), ours.ino()))
}

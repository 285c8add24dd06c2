//! The guest's boot id, `/proc/sys/kernel/random/boot_id`, which is different in each fork.
//!
//! ```text
//!   boot: /run/kiln/boot-id ──bind mount, read-only──▶ /proc/sys/kernel/random/boot_id
//!   fork: the same file gets a new content
//! ```
//! The kernel chooses its boot id when it is read for the first time, and never changes it. So forks of a VM would
//! share it if a program has read it before the snapshot. The mount hides the kernel's file from all programs, also in
//! mount namespaces that are created later, because these get a copy of the mount. All copies refer to one file, so
//! they change at once.
//!
//! A program that mounts its own proc file system, like a container does, reads the kernel's id. It is chosen in the
//! fork, and shared by forks only if a program did the same before the snapshot.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::sync::OnceLock;

use rustix::mount::{MountFlags, mount_bind, mount_remount};
use rustix::rand::{GetRandomFlags, getrandom};

const PLACE: &str = "/proc/sys/kernel/random/boot_id";
const FILE: &str = "/run/kiln/boot-id";
/// Bytes of a UUID.
const UUID_BYTES: usize = 16;

/// The file under the mount. It is kept open, so it can be written even if a program removes its name.
static COVER: OnceLock<File> = OnceLock::new();

/// Mounts a file with a new boot id over the kernel's. Call it before any other program runs.
///
/// # Errors
/// If the file can't be created or mounted.
pub fn cover() -> io::Result<()> {
    let options = File::options().read(true).write(true).create_new(true).mode(0o444).clone();
    let file = options.open(FILE)?;
    file.write_all_at(draw()?.as_bytes(), 0)?;
    mount(FILE)?;
    // It is set once, because a boot happens once.
    let _ = COVER.set(file);
    Ok(())
}

/// Takes over the mounted file of the process that called [`cover`]. Call it before any other program runs.
///
/// # Errors
/// If the file can't be opened.
pub fn inherit() -> io::Result<()> {
    let _ = COVER.set(File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(FILE)?);
    Ok(())
}

/// Gives this fork a new boot id. Call it after the fork has its own randomness.
///
/// # Errors
/// If [`cover`] failed at boot, or the file can't be written or mounted again.
pub fn renew() -> io::Result<()> {
    let cover = COVER.get().ok_or_else(|| io::Error::other("no file was mounted over it when the guest booted"))?;
    cover.write_all_at(draw()?.as_bytes(), 0)?;
    if is_covered(cover)? {
        return Ok(());
    }
    // A program has removed the mount.
    mount(&format!("/proc/self/fd/{}", cover.as_raw_fd()))
}

/// A random UUID (version 4) and an end of line, like the kernel's file has.
fn draw() -> io::Result<String> {
    let mut random = [0; UUID_BYTES];
    // Without GRND_INSECURE it would wait for randomness, early in a boot.
    if getrandom(&mut random, GetRandomFlags::INSECURE)? < UUID_BYTES {
        return Err(io::Error::other("short read of randomness"));
    }
    Ok(uuid(random))
}

fn uuid(random: [u8; UUID_BYTES]) -> String {
    // RFC 9562, section 5.4: all bits are random but those of the version and the variant.
    let bits = u128::from_be_bytes(random) & !(0xf << 76 | 0b11 << 62) | 4 << 76 | 0b10 << 62;
    let digits = format!("{bits:032x}");
    let (time_low, rest) = digits.split_at(8);
    format!("{time_low}-{}-{}-{}-{}\n", &rest[..4], &rest[4..8], &rest[8..12], &rest[12..])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_its_version_and_its_variant() {
        assert_eq!(uuid([0; UUID_BYTES]), "00000000-0000-4000-8000-000000000000\n");
        assert_eq!(uuid([0xff; UUID_BYTES]), "ffffffff-ffff-4fff-bfff-ffffffffffff\n");
        let counted = std::array::from_fn(|byte| byte as u8 * 0x11);
        assert_eq!(uuid(counted), "00112233-4455-4677-8899-aabbccddeeff\n");
    }

    #[test]
    fn two_draws_are_different() {
        assert_ne!(draw().expect("randomness"), draw().expect("randomness"));
    }
}

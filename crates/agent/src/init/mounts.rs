//! The file systems that every guest has.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};

use rustix::mount::{MountFlags, mount};

use crate::log::note;
use crate::machine::{LEASES, boot_id};

struct Mount {
    source: &'static str,
    target: &'static str,
    kind: &'static str,
    flags: MountFlags,
    data: Option<&'static std::ffi::CStr>,
}

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const DATALESS: MountFlags = SAFE.union(MountFlags::NOEXEC);

const MOUNTS: [Mount; 8] = [
    Mount { source: "proc", target: "/proc", kind: "proc", flags: DATALESS, data: None },
    Mount { source: "sysfs", target: "/sys", kind: "sysfs", flags: DATALESS, data: None },
    Mount { source: "dev", target: "/dev", kind: "devtmpfs", flags: MountFlags::NOSUID, data: Some(c"mode=0755") },
    Mount {
        source: "devpts",
        target: "/dev/pts",
        kind: "devpts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: Some(c"mode=0620,gid=5,ptmxmode=0666"),
    },
    Mount { source: "shm", target: "/dev/shm", kind: "tmpfs", flags: SAFE, data: Some(c"mode=1777") },
    Mount { source: "run", target: "/run", kind: "tmpfs", flags: SAFE, data: Some(c"mode=0755") },
    Mount { source: "tmp", target: "/tmp", kind: "tmpfs", flags: SAFE, data: Some(c"mode=1777") },
    Mount { source: "cgroup2", target: "/sys/fs/cgroup", kind: "cgroup2", flags: DATALESS, data: None },
];

/// Links that programs expect in /dev.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts them all. A failure is logged and the boot continues: a guest that lacks a mount is better than no guest.
pub(super) fn mount_all() {
    for entry in MOUNTS {
        if let Err(error) = one(&entry) {
            note(format!("can't mount {} on `{}`: {error}", entry.kind, entry.target));
        }
    }
    for (target, link) in LINKS {
        // This fails if the kernel or the image has made the link.
        let _ = std::os::unix::fs::symlink(target, link);
    }
    if let Err(error) = leases() {
        note(format!("can't create the directory of leases `{LEASES}`: {error}"));
    }
    if let Err(error) = boot_id::cover() {
        note(format!("can't replace the boot id, so forks share it: {error}"));
    }
    // The kernel creates the root of an initramfs writable for all users.
    if let Err(error) = fs::set_permissions("/", fs::Permissions::from_mode(0o755)) {
        note(format!("can't set the mode of `/`: {error}"));
    }
}

/// Creates the directory of leases. With the sticky bit, any user can create a lease and only its owner can remove it.
fn leases() -> io::Result<()> {
    fs::create_dir_all(LEASES)?;
    fs::set_permissions(LEASES, fs::Permissions::from_mode(0o1777))
}

fn one(entry: &Mount) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(entry.target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    Ok(mount(entry.source, entry.target, entry.kind, entry.flags, entry.data)?)
}

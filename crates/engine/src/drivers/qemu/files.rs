//! The files that QEMU uses. It inherits some of them open, and opens others by name.
//!
//! ```text
//!   kernel, initramfs  inherited, opened again as /proc/self/fd/N
//!   disks              inherited, as /dev/fdset/N
//!   memory, device     its own files, by name in its directory
//!   snapshot's memory  from the broker, see `confine::broker`
//! ```
//! A VMM may run as another user, who has no access to the directories above these files. So Kiln opens them, with the
//! rights of its user, and the VMM inherits the descriptors.
//!
//! Not every file can be passed that way. QEMU has no option for a kernel in a descriptor, so it gets the path
//! `/proc/self/fd/N`. The kernel of the host treats that as a new open and checks the mode of the file again, but not
//! the directories above it. A file that other users can't read is therefore copied into a memfd. For disks QEMU has
//! descriptor sets: it duplicates the descriptor and never opens the file itself, so the mode does not matter. The
//! memory of a snapshot has neither way, because QEMU opens it for writing. That needs the broker.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use rustix::fs::{MemfdFlags, Mode};
use serde_json::Value;

use super::args::{Accelerator, Facts, Memory, Names};
use crate::confine::Needs;
use crate::driver::LaunchError;
use crate::files::private_file;
use crate::snapshot::overlay;
use crate::spec::{DiskFormat, SpecError, VmSpec};
use crate::vm_dir::{DEVICE_STATE_FILE, VmDir};

/// The bytes of a VMM's file beyond the contents of its disk: tables of a qcow2 image, or the state of its devices.
const EXTRA_BYTES: u64 = 64 << 20;
/// The mode bit with which other users can read a file.
const READABLE: u32 = 0o004;
/// The mode of a copy for another user: all users can read it, and only the owner could change that.
const COPY_MODE: u32 = 0o444;

/// The needs of a VMM, except the descriptors that it inherits.
pub(super) fn needs(
    dir: &VmDir,
    spec: &VmSpec,
    facts: &Facts,
    memory: &Memory,
    snapshot: Option<File>,
    file_bytes: u64,
) -> Needs {
    let mut write = vec![dir.path().join(DEVICE_STATE_FILE)];
    let mut snapshot_memory = None;
    match memory {
        Memory::Shared(path) => write.push(path.clone()),
        Memory::Private(path) | Memory::Brokered(path) => snapshot_memory = snapshot.map(|file| (path.clone(), file)),
        Memory::Anonymous => {}
    }
    let connect = spec.vhost_user.iter().filter(|device| device.reconnects()).map(|device| device.socket.clone());
    Needs {
        name: dir.id().to_string(),
        directory: dir.path().to_owned(),
        read: std::iter::once(&spec.kernel).chain(&spec.initramfs).cloned().collect(),
        write,
        connect: connect.collect(),
        snapshot: snapshot_memory,
        file_bytes,
        memory_bytes: spec.memory_mib << 20,
        cpus: spec.cpus,
        kvm: facts.accelerator != Accelerator::Tcg,
    }
}

/// The largest size of a file that a VM with these disks writes to.
pub(super) fn largest(spec: &VmSpec, disks: &[Value]) -> u64 {
    let mut largest = spec.memory_mib << 20;
    for disk in disks.iter().filter(|disk| disk["read-only"] != Value::Bool(true)) {
        let path = Utf8Path::new(disk["file"]["filename"].as_str().unwrap_or_default());
        let format = if disk["driver"] == "qcow2" { DiskFormat::Qcow2 } else { DiskFormat::Raw };
        let now = fs::metadata(path).map_or(0, |meta| meta.len());
        largest = largest.max(now.saturating_add(overlay::virtual_size(path, format).unwrap_or(now)));
    }
    largest.saturating_add(largest / 64).saturating_add(EXTRA_BYTES)
}

/// Creates the file for the device state, because QEMU may not create files.
pub(super) fn make_device_state(dir: &VmDir) -> io::Result<()> {
    private_file::restart(&dir.path().join(DEVICE_STATE_FILE)).map(drop)
}

/// Opens each file of the disks, and replaces its name with that of the descriptor.
pub(super) fn open_disks(names: &mut Names, inherit: &mut Vec<OwnedFd>) -> Result<(), LaunchError> {
    let Names { disks, sets, .. } = names;
    disks.iter_mut().try_for_each(|disk| open_layers(disk, sets, inherit))
}

fn open_layers(layer: &mut Value, sets: &mut Vec<i32>, inherit: &mut Vec<OwnedFd>) -> Result<(), LaunchError> {
    let Some(layer) = layer.as_object_mut() else { return Ok(()) };
    if let Some(name) = layer.get("filename").and_then(Value::as_str) {
        let path = Utf8PathBuf::from(name);
        let read_only = layer.get("read-only") == Some(&Value::Bool(true));
        let opened = fs::OpenOptions::new().read(true).write(!read_only).open(&path);
        let file = opened.map_err(|error| SpecError::Disk { path, problem: error.to_string() })?;
        layer.insert("filename".into(), format!("/dev/fdset/{}", sets.len()).into());
        sets.push(file.file().as_raw_fd());
        inherit.push(file.into_file().into());
    }
    layer.values_mut().try_for_each(|value| open_layers(value, sets, inherit))
}

/// Opens the kernel and the initramfs. If only this user may read them, another user gets a copy.
pub(super) fn open_kernel(
    spec: &VmSpec,
    another_user: bool,
    names: &mut Names,
    inherit: &mut Vec<OwnedFd>,
) -> Result<(), LaunchError> {
    let mut open = |path: &Utf8Path| {
        let file =
            readable(path, another_user).map_err(|source| LaunchError::Directory { path: path.into(), source })?;
        let name = Utf8PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        inherit.push(file.into());
        Ok::<_, LaunchError>(name)
    };
    names.kernel = open(&spec.kernel)?;
    names.initramfs = spec.initramfs.as_deref().map(open).transpose()?;
    Ok(())
}

fn readable(path: &Utf8Path, another_user: bool) -> io::Result<File> {
    let mut file = fs::File::open(path)?.into_file();
    if !another_user || file.metadata()?.mode() & READABLE == READABLE {
        return Ok(file);
    }
    // Opening `/proc/self/fd/N` again checks the mode of the file. This file in memory is readable for all, but only its
    // descriptor reaches it. Its mode and a read-only descriptor keep the VMM from writing to it. A seal against writes
    // would fail with EBUSY while the kernel itself still holds one of the pages, for example in a batch of pages that
    // is not yet on a list of the LRU.
    let copy = rustix::fs::memfd_create(c"kiln-boot", MemfdFlags::CLOEXEC)?;
    let mut copy = File::from(copy);
    io::copy(&mut file, &mut copy)?;
    rustix::fs::fchmod(&copy, Mode::from_raw_mode(COPY_MODE))?;
    File::open(format!("/proc/self/fd/{}", copy.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_can_grow_to_the_size_of_its_disk_and_not_much_more() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8PathBuf::try_from(directory.path().join("overlay")).expect("UTF-8");
        overlay::create(&path, 8 << 30).expect("an overlay");
        let disk = |read_only| json!({"driver": "qcow2", "read-only": read_only, "file": {"filename": path}});
        let spec = VmSpec { memory_mib: 256, ..VmSpec::new("/k", "/i") };
        assert!((8 << 30..9 << 30).contains(&largest(&spec, &[disk(false)])));
        assert!((256 << 20..512 << 20).contains(&largest(&spec, &[disk(true)])));
    }

    #[test]
    fn every_layer_of_a_disk_is_inherited() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
        fs::write(path("base"), "base").expect("written");
        fs::write(path("top"), "top").expect("written");
        let below = json!({"read-only": true, "file": {"driver": "file", "filename": path("base"), "read-only": true}});
        let top = json!({"file": {"driver": "file", "filename": path("top"), "read-only": false}, "backing": below});
        let mut names = Names { disks: vec![top], ..Names::default() };
        let mut inherit = Vec::new();
        open_disks(&mut names, &mut inherit).expect("opens");
        assert_eq!(names.sets, inherit.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect::<Vec<_>>());
        let text = names.disks[0].to_string();
        assert!(text.contains("/dev/fdset/0") && text.contains("/dev/fdset/1") && !text.contains("base\""), "{text}");
        let writable = inherit.iter().map(|fd| rustix::io::write(fd, b"").is_ok());
        assert_eq!(writable.filter(|can| *can).count(), 1, "the top alone");

        let mut names = Names { disks: vec![json!({"filename": path("none")})], ..Names::default() };
        let error = open_disks(&mut names, &mut inherit).expect_err("is not there");
        assert!(
            matches!(&error, LaunchError::Spec(SpecError::Disk { path, .. }) if path.ends_with("none")),
            "{error:?}"
        );
    }

    #[test]
    fn another_user_gets_a_copy_of_a_private_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8PathBuf::try_from(directory.path().join("kernel")).expect("UTF-8");
        fs::write(&path, "kernel").expect("written");
        for (mode, another_user, same) in [(0o600, false, true), (0o644, true, true), (0o600, true, false)] {
            rustix::fs::chmod(path.as_std_path(), Mode::from_raw_mode(mode)).expect("is ours");
            let file = readable(&path, another_user).expect("opens");
            let inode = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
            assert_eq!(
                inode(file.metadata().expect("is open")) == inode(std::fs::metadata(&path).expect("is there")),
                same
            );
            let mut text = String::new();
            let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("opens again");
            (&again).read_to_string(&mut text).expect("reads");
            assert_eq!(text, "kernel");
            if !same {
                assert_eq!(again.metadata().expect("is open").mode() & 0o777, COPY_MODE);
                let written = rustix::io::write(&file, b"k").expect_err("the descriptor only reads");
                assert_eq!(written, rustix::io::Errno::BADF);
            }
        }
    }
}

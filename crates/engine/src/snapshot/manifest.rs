//! `manifest.json` describes a snapshot. It is written last, so a directory with a manifest is whole.

use std::io;
use std::os::unix::fs::MetadataExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::error::SnapshotError;
use super::id::SnapshotId;
use super::overlay;
use crate::spec::{Disk, VmSpec};

/// Version of the manifest and of the files that it names.
pub(crate) const SNAPSHOT_FORMAT: u32 = 2;
/// Digits of a digest in texts for users.
const DIGEST_CHARS_SHOWN: usize = 12;
/// Name of the manifest in a snapshot's directory.
pub const MANIFEST_FILE: &str = "manifest.json";

/// A snapshot's description, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `SNAPSHOT_FORMAT`.
    pub format: u32,
    /// Its own id.
    pub id: SnapshotId,
    /// The parent, for a snapshot whose pages or disk layers need one.
    pub parent: Option<SnapshotId>,
    /// Generation of the VM's journal when it was saved.
    pub generation: u64,
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
    /// A name for users. A ready-made snapshot has its image's name.
    pub label: String,
    /// The spec of the VM.
    pub spec: VmSpec,
    /// The machine that it ran on. A restore needs the same one.
    pub machine: MachineIdentity,
    /// Whether the guest's commands were frozen when it was taken. They are thawed only after a fork has its own
    /// identity.
    pub frozen: bool,
    /// What its memory file holds.
    pub memory: MemoryKind,
    /// Scratch disks, by their index in the spec.
    pub disks: Vec<DiskLayer>,
    /// Read-only disks, which are not part of the snapshot.
    pub external: Vec<ExternalDisk>,
    /// Volumes, in the order of the spec. They are not part of the snapshot either. Each fork is given its own.
    pub volumes: Vec<ExternalDisk>,
    /// All files beside the manifest.
    pub files: Vec<FileEntry>,
    /// Whether it has checksums.
    pub seal: Seal,
}

/// The machine that a VM ran on. Device state and CPU registers fit no other machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineIdentity {
    /// Program and version, such as `QEMU 7.2`.
    pub vmm: String,
    /// `kvm` or `tcg`.
    pub acceleration: String,
    /// The CPU model; under KVM, the host's CPU.
    pub cpu: String,
    /// The machine type and its devices. Empty in manifests of older versions of Kiln.
    #[serde(default)]
    pub machine: String,
    /// The firmware's name, and a digest of all firmware that the machine loads. Empty if the VMM does not report it.
    pub firmware: String,
    /// The blake3 of the kernel's file.
    pub kernel: String,
    /// The kernel's release, as text for users. Empty if the kernel does not have it.
    pub kernel_release: String,
}

/// The parts of a [`MachineIdentity`], as errors name them.
const MACHINE_FIELDS: [&str; 6] = ["VMM", "acceleration", "CPU", "machine", "firmware", "kernel"];

/// What the memory file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryKind {
    /// `memory`: all of the guest's memory, sparse.
    Full,
    /// `pages`: the pages that differ from the parent's memory.
    Diff,
}

/// A disk's layer in this snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskLayer {
    /// Index in [`VmSpec::disks`].
    pub index: usize,
    /// The name of its file in the snapshot's directory.
    pub file: String,
    /// Whether it is an overlay on the parent's layer of the same disk.
    pub on_parent: bool,
}

/// A disk that a snapshot names but does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalDisk {
    /// Its file.
    pub path: Utf8PathBuf,
    /// Its size when the snapshot was taken.
    pub bytes: u64,
    /// The size of the disk in it. It differs from the file's size if the file is a qcow2 image. Absent in manifests of
    /// older versions of Kiln.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// When it was last written to, in nanoseconds since 1970.
    pub modified_ns: i64,
}

impl ExternalDisk {
    /// The current state of the disk.
    ///
    /// # Errors
    /// Its file does not exist, or does not have its format.
    pub(crate) fn of(disk: &Disk) -> Result<Self, SnapshotError> {
        let failed = |source| SnapshotError::io("inspect", &disk.path, source);
        let (bytes, modified_ns) = size_and_time(&disk.path).map_err(failed)?;
        let disk_bytes = overlay::virtual_size(&disk.path, disk.format).map_err(failed)?;
        Ok(Self { path: disk.path.clone(), bytes, disk_bytes: Some(disk_bytes), modified_ns })
    }

    /// Whether the file exists and was not written to since.
    pub(crate) fn is_unchanged(&self) -> bool {
        size_and_time(&self.path).is_ok_and(|now| now == (self.bytes, self.modified_ns))
    }
}

fn size_and_time(path: &Utf8Path) -> io::Result<(u64, i64)> {
    let meta = fs_err::metadata(path)?;
    Ok((meta.size(), meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec())))
}

/// A file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its name in the directory.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its checksum. `None` until the snapshot is sealed.
    pub blake3: Option<String>,
}

/// Whether a snapshot has checksums. Making them reads all memory, so a snapshot can be forked before it has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seal {
    /// Its files are whole in the page cache of this boot of the host, but may not be on disk.
    Pending {
        /// `/proc/sys/kernel/random/boot_id` of the host.
        host_boot_id: String,
    },
    /// Its files are on disk, and the manifest has their checksums.
    Done,
}

impl MachineIdentity {
    /// The first part that differs, with both values: name, own value, other value.
    pub fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let values =
            |of: &Self| [&of.vmm, &of.acceleration, &of.cpu, &of.machine, &of.firmware, &of.kernel].map(Clone::clone);
        let pairs = values(self).into_iter().zip(values(other));
        let (name, (ours, theirs)) =
            MACHINE_FIELDS.into_iter().zip(pairs).find(|(_, (ours, theirs))| ours != theirs)?;
        // For a user a release is clearer than a digest.
        let words = |of: &Self, value: String| match (name, of.kernel_release.as_str()) {
            ("kernel", release) if !release.is_empty() => {
                format!("{release} ({})", value.chars().take(DIGEST_CHARS_SHOWN).collect::<String>())
            }
            _ => value,
        };
        Some((name, words(self, ours), words(other, theirs)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_both_values() {
        let old = MachineIdentity {
            vmm: "QEMU 7.2".into(),
            acceleration: "tcg".into(),
            cpu: "max".into(),
            machine: String::new(),
            firmware: String::new(),
            kernel: "a".repeat(64),
            kernel_release: "6.1.0".into(),
        };
        assert_eq!(old.difference(&old.clone()), None);
        let new = MachineIdentity { vmm: "QEMU 10.0".into(), ..old.clone() };
        assert_eq!(old.difference(&new), Some(("VMM", "QEMU 7.2".into(), "QEMU 10.0".into())));
        let new = MachineIdentity { kernel: "b".repeat(64), kernel_release: "6.12".into(), ..old.clone() };
        let (name, ours, theirs) = old.difference(&new).expect("they differ");
        assert_eq!((name, ours.as_str(), theirs.as_str()), ("kernel", "6.1.0 (aaaaaaaaaaaa)", "6.12 (bbbbbbbbbbbb)"));
        // A manifest may hold any text.
        let odd = MachineIdentity { kernel: "é".repeat(9), ..old.clone() };
        assert_eq!(odd.difference(&old).expect("they differ").1, format!("6.1.0 ({})", "é".repeat(9)));
    }
}

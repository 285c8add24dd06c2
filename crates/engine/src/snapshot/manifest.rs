//! `manifest.json`: what a snapshot is. Written last, so a directory that has one is whole.

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
/// Digits of a digest that people are shown.
const DIGEST_CHARS_SHOWN: usize = 12;
/// Name of the manifest in a snapshot's directory.
pub const MANIFEST_FILE: &str = "manifest.json";

/// A snapshot, as it stands on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `SNAPSHOT_FORMAT`.
    pub format: u32,
    /// Its own name.
    pub id: SnapshotId,
    /// The snapshot that a diff's pages and disk layers lie on; `None` for a full one.
    pub parent: Option<SnapshotId>,
    /// Generation of the VM's journal when it was saved.
    pub generation: u64,
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
    /// For people: what it is of.
    pub label: String,
    /// The VM.
    pub spec: VmSpec,
    /// What it ran on, all of which a restore needs to be the same.
    pub machine: MachineIdentity,
    /// The guest's commands stood still when it was taken, and go on only when a fork has its own identity.
    pub frozen: bool,
    /// What its memory file holds.
    pub memory: MemoryKind,
    /// Scratch disks, by their place in the spec.
    pub disks: Vec<DiskLayer>,
    /// Disks that can't be written and are not part of the snapshot.
    pub external: Vec<ExternalDisk>,
    /// Volumes, in the order of the spec. They are not part of the snapshot either; each restore is given its own.
    pub volumes: Vec<ExternalDisk>,
    /// Every file beside the manifest.
    pub files: Vec<FileEntry>,
    /// Whether the checksums are there.
    pub seal: Seal,
}

/// What a VM ran on. Device state and CPU registers fit no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineIdentity {
    /// Program and version, such as `QEMU 7.2`.
    pub vmm: String,
    /// `kvm` or `tcg`.
    pub acceleration: String,
    /// The CPU model, and under KVM the host's.
    pub cpu: String,
    /// The machine and which of its devices are there; empty for one of a Kiln that did not write it down.
    #[serde(default)]
    pub machine: String,
    /// The firmware: its name, and a digest of all that the machine loads of it; empty where the VMM doesn't say.
    pub firmware: String,
    /// blake3 of the kernel's file.
    pub kernel: String,
    /// The kernel's release, for people; empty where it doesn't say.
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
    /// Place in [`VmSpec::disks`].
    pub index: usize,
    /// Name of its file in the snapshot's directory.
    pub file: String,
    /// It is an overlay on the parent's layer of the same disk.
    pub on_parent: bool,
}

/// A disk that a snapshot names and does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalDisk {
    /// Its file.
    pub path: Utf8PathBuf,
    /// Its size when the snapshot was taken.
    pub bytes: u64,
    /// The size of the disk in it, which is another one if the file is a qcow2 image. Absent in snapshots of a Kiln that did
    /// not write it down.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// When it had been written last, in nanoseconds since 1970.
    pub modified_ns: i64,
}

impl ExternalDisk {
    /// The disk as it is now.
    ///
    /// # Errors
    /// Its file is not there, or is not of its format.
    pub(crate) fn of(disk: &Disk) -> Result<Self, SnapshotError> {
        let failed = |source| SnapshotError::io("look at", &disk.path, source);
        let (bytes, modified_ns) = size_and_time(&disk.path).map_err(failed)?;
        let disk_bytes = overlay::virtual_size(&disk.path, disk.format).map_err(failed)?;
        Ok(Self { path: disk.path.clone(), bytes, disk_bytes: Some(disk_bytes), modified_ns })
    }

    /// Whether it is there, and nobody has written to it since.
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
    /// Its checksum; `None` until the snapshot is sealed.
    pub blake3: Option<String>,
}

/// Checksums take as long as reading the memory does, so a snapshot can be forked before it has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seal {
    /// Its files are whole in the page cache of this boot of the host, and may not be on disk.
    Pending {
        /// `/proc/sys/kernel/random/boot_id` of the host.
        host_boot_id: String,
    },
    /// Its files are on disk, with their checksums.
    Done,
}

impl MachineIdentity {
    /// The first part that differs, with both values: name, own, other's.
    pub fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let values =
            |of: &Self| [&of.vmm, &of.acceleration, &of.cpu, &of.machine, &of.firmware, &of.kernel].map(Clone::clone);
        let pairs = values(self).into_iter().zip(values(other));
        let (name, (ours, theirs)) =
            MACHINE_FIELDS.into_iter().zip(pairs).find(|(_, (ours, theirs))| ours != theirs)?;
        // Digests mean nothing to people.
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
        // Whatever stands in a manifest.
        let odd = MachineIdentity { kernel: "é".repeat(9), ..old.clone() };
        assert_eq!(odd.difference(&old).expect("they differ").1, format!("6.1.0 ({})", "é".repeat(9)));
    }
}

//! Small made-up snapshots, in a home that is removed with the test.

use std::os::unix::fs::FileExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::chain::Snapshot;
use super::check::{DEVICE_FILE, MEMORY_FILE, PAGES_FILE};
use super::draft::NewSnapshot;
use super::id::SnapshotId;
use super::manifest::{DiskLayer, MANIFEST_FILE, MachineIdentity, MemoryKind};
use super::memory::PAGE_BYTES;
use super::store::SnapshotStore;
use crate::home::Home;
use crate::spec::{Disk, DiskFormat, DiskRole, VmSpec};

/// Memory of the guests here.
pub(crate) const MEMORY_BYTES: u64 = 1 << 20;

/// A home with a store.
pub(crate) struct Place {
    _directory: tempfile::TempDir,
    pub(crate) home: Home,
    pub(crate) store: SnapshotStore,
}

/// An empty home.
pub(crate) fn place() -> Place {
    let directory = tempfile::tempdir().expect("a directory");
    let home = Home::at(Utf8Path::from_path(directory.path()).expect("UTF-8").join("home"));
    let store = SnapshotStore::new(&home);
    Place { _directory: directory, home, store }
}

/// The description of a snapshot of these kinds, with one disk.
pub(crate) fn new(parent: Option<&Snapshot>, memory: MemoryKind) -> NewSnapshot {
    let mut spec = VmSpec::new("/kernel", "/initramfs");
    spec.memory_mib = MEMORY_BYTES >> 20;
    spec.disks = vec![Disk { path: "/disk".into(), format: DiskFormat::Qcow2, role: DiskRole::Scratch }];
    let machine = MachineIdentity {
        vmm: "QEMU 7.2".into(),
        acceleration: "tcg".into(),
        cpu: "max".into(),
        machine: String::new(),
        firmware: String::new(),
        kernel: "a".repeat(64),
        kernel_release: "6.1.0".into(),
    };
    let parent = parent.cloned();
    NewSnapshot {
        parent,
        generation: 1,
        label: "test".into(),
        spec,
        machine,
        frozen: false,
        memory,
        disks: Vec::new(),
        external: Vec::new(),
        volumes: Vec::new(),
    }
}

/// The layer of the one disk.
pub(crate) fn layer(on_parent: bool) -> DiskLayer {
    DiskLayer { index: 0, file: "disk-0".into(), on_parent }
}

impl Place {
    /// A full snapshot whose memory is zeros after the first bytes.
    pub(crate) fn full(&self, memory: &str) -> Snapshot {
        let draft = self.store.draft().expect("a draft");
        write_sparse(&draft.path(MEMORY_FILE), memory);
        fs::write(draft.path(DEVICE_FILE), format!("device of {memory}")).expect("written");
        draft.publish(new(None, MemoryKind::Full)).expect("published")
    }

    /// A full snapshot with a disk layer of its own.
    pub(crate) fn full_with_disk(&self, memory: &str) -> Snapshot {
        let draft = self.store.draft().expect("a draft");
        write_sparse(&draft.path(MEMORY_FILE), memory);
        fs::write(draft.path(DEVICE_FILE), "device").expect("written");
        fs::write(draft.path("disk-0"), format!("disk of {memory}")).expect("written");
        let new = NewSnapshot { disks: vec![layer(false)], ..new(None, MemoryKind::Full) };
        draft.publish(new).expect("published")
    }

    /// A diff with one page, which begins with these bytes. It has a disk layer if the parent has one.
    pub(crate) fn diff(&self, parent: &Snapshot, page: u64, content: &str) -> Snapshot {
        let draft = self.store.draft().expect("a draft");
        fs::write(draft.path(PAGES_FILE), page_file(page, content)).expect("written");
        fs::write(draft.path(DEVICE_FILE), format!("device of {content}")).expect("written");
        let mut new = new(Some(parent), MemoryKind::Diff);
        if !parent.manifest().disks.is_empty() {
            fs::write(draft.path("disk-0"), format!("disk of {content}")).expect("written");
            new.disks = vec![layer(true)];
        }
        draft.publish(new).expect("published")
    }

    /// Changes a manifest as an attacker could.
    pub(crate) fn forge(&self, id: &SnapshotId, change: impl FnOnce(&mut serde_json::Value)) {
        let path = self.store.path(id).join(MANIFEST_FILE);
        let mut manifest = serde_json::from_slice(&fs::read(&path).expect("is there")).expect("JSON");
        change(&mut manifest);
        fs::write(&path, serde_json::to_vec(&manifest).expect("JSON")).expect("written");
    }

    /// The names in the store's directory.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = self.home.snapshots().read_dir_utf8().expect("lists");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name().to_owned()).collect();
        names.sort();
        names
    }
}

/// Flips one bit of a file. From outside only its times differ.
pub(crate) fn flip_bit(path: &Utf8PathBuf) {
    // The files are read-only, which does not stop root.
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("opens");
    let mut byte = [0];
    file.file().read_exact_at(&mut byte, 3).expect("reads");
    file.file().write_all_at(&[byte[0] ^ 0x10], 3).expect("written");
}

fn write_sparse(path: &Utf8Path, start: &str) {
    let file = fs::File::create(path).expect("created");
    file.file().write_all_at(start.as_bytes(), 0).expect("written");
    file.set_len(MEMORY_BYTES).expect("sized");
}

/// A page file with one page, by its format.
fn page_file(page: u64, content: &str) -> Vec<u8> {
    let mut file = b"KILNPAGE".to_vec();
    file.extend([1_u32, PAGE_BYTES as u32].map(u32::to_le_bytes).concat());
    file.extend([MEMORY_BYTES / PAGE_BYTES as u64, 1, 1].map(u64::to_le_bytes).concat());
    file.resize(PAGE_BYTES, 0);
    file.extend(content.as_bytes());
    file.resize(2 * PAGE_BYTES, 0);
    file.extend(page.to_le_bytes());
    file
}

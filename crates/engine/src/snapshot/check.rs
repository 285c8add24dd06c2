//! Checks a manifest before any other code uses it. It is read from disk, so it is hostile.

use std::collections::BTreeSet;
use std::io;

use serde::Deserialize;

use super::error::SnapshotError;
use super::id::SnapshotId;
use super::locked_dir::LockedDir;
use super::manifest::{MANIFEST_FILE, Manifest, MemoryKind, SNAPSHOT_FORMAT, Seal};
use super::verified::broken;
use crate::spec::DISKS_MAX;

/// A manifest has a few kilobytes.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Memory, device state, a layer of each disk, and some spare entries.
pub(super) const FILES_MAX: usize = DISKS_MAX + 8;
const FILE_NAME_BYTES_MAX: usize = 64;
const DIGEST_DIGITS: usize = 64;
const MIB: u64 = 1 << 20;

/// The guest's memory in a full snapshot.
pub(crate) const MEMORY_FILE: &str = "memory";
/// The pages of a diff.
pub(crate) const PAGES_FILE: &str = "pages";
/// The VMM's device state.
pub(crate) const DEVICE_FILE: &str = "device";

/// The fields that manifests of all versions have.
#[derive(Deserialize)]
struct AnyFormat {
    format: u32,
}

/// A file, and what is wrong with it.
type Fault = (String, String);

/// Reads and checks the manifest of the snapshot `id`.
pub(super) fn read_manifest(dir: &LockedDir, id: &SnapshotId) -> Result<Manifest, SnapshotError> {
    let bytes = dir.read(MANIFEST_FILE, MANIFEST_BYTES_MAX).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => broken(id, MANIFEST_FILE, "is missing"),
        io::ErrorKind::InvalidInput => broken(id, MANIFEST_FILE, "is not an ordinary file"),
        io::ErrorKind::FileTooLarge => broken(id, MANIFEST_FILE, format!("has more than {MANIFEST_BYTES_MAX} bytes")),
        _ => SnapshotError::io("read", dir.path().join(MANIFEST_FILE), source),
    })?;
    parse(id, &bytes)
}

fn parse(id: &SnapshotId, bytes: &[u8]) -> Result<Manifest, SnapshotError> {
    let nonsense = |error: serde_json::Error| broken(id, MANIFEST_FILE, format!("can't be parsed: {error}"));
    let AnyFormat { format } = serde_json::from_slice(bytes).map_err(nonsense)?;
    if format != SNAPSHOT_FORMAT {
        let problem = format!("has the format {format}; this version of Kiln reads {SNAPSHOT_FORMAT}");
        return Err(broken(id, MANIFEST_FILE, problem));
    }
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(nonsense)?;
    if manifest.id != *id {
        return Err(broken(id, MANIFEST_FILE, format!("belongs to the snapshot `{}`", manifest.id)));
    }
    check(&manifest)?;
    Ok(manifest)
}

/// Checks what needs no other file than the manifest.
pub(super) fn check(manifest: &Manifest) -> Result<(), SnapshotError> {
    let checks = [check_files, check_memory, check_disks];
    checks.iter().try_for_each(|check| check(manifest)).map_err(|(file, problem)| broken(&manifest.id, file, problem))
}

/// Checks that a snapshot and its parent fit each other.
pub(super) fn check_parent(manifest: &Manifest, parent: &Manifest) -> Result<(), SnapshotError> {
    let fault = |problem| Err(broken(&manifest.id, MANIFEST_FILE, problem));
    let (own, parents) = (manifest.spec.memory_mib, parent.spec.memory_mib);
    if manifest.memory == MemoryKind::Diff && own != parents {
        return fault(format!("is of a VM with {own} MiB of memory, but its parent has {parents} MiB"));
    }
    let is_there = |index| parent.disks.iter().any(|layer| layer.index == index);
    match manifest.disks.iter().find(|layer| layer.on_parent && !is_there(layer.index)) {
        Some(layer) => fault(format!(
            "has a layer of disk {} on its parent `{}`, which has no layer of it",
            layer.index, parent.id
        )),
        None => Ok(()),
    }
}

/// Checks that an unsealed snapshot was made in this boot of the host. After a crash of the host its files may be
/// incomplete.
pub(super) fn check_boot(manifest: &Manifest, host_boot_id: &str) -> Result<(), SnapshotError> {
    match &manifest.seal {
        Seal::Pending { host_boot_id: saved } if saved != host_boot_id => {
            Err(broken(&manifest.id, MANIFEST_FILE, "was not on disk yet when the host went down"))
        }
        _ => Ok(()),
    }
}

fn check_files(manifest: &Manifest) -> Result<(), Fault> {
    let fault = |problem| Err((MANIFEST_FILE.into(), problem));
    if manifest.files.len() > FILES_MAX {
        return fault(format!("names {} files, more than {FILES_MAX}", manifest.files.len()));
    }
    let mut names = BTreeSet::new();
    for entry in &manifest.files {
        let name = &entry.name;
        if !is_file_name(name) || name == MANIFEST_FILE || !names.insert(name) {
            return fault(format!("names the file {name:?}, which is not a file of a snapshot or is named twice"));
        }
        match &entry.blake3 {
            Some(digest) if !is_digest(digest) => return fault(format!("has no checksum for `{name}`: {digest:?}")),
            None if manifest.seal == Seal::Done => return fault(format!("is sealed without a checksum for `{name}`")),
            _ => {}
        }
    }
    Ok(())
}

fn check_memory(manifest: &Manifest) -> Result<(), Fault> {
    let file = match manifest.memory {
        MemoryKind::Full => MEMORY_FILE,
        MemoryKind::Diff => PAGES_FILE,
    };
    bytes_of(manifest, DEVICE_FILE)?;
    let bytes = bytes_of(manifest, file)?;
    let Some(guest_bytes) = manifest.spec.memory_mib.checked_mul(MIB) else {
        return Err((MANIFEST_FILE.into(), format!("is of a VM with {} MiB of memory", manifest.spec.memory_mib)));
    };
    match manifest.memory {
        MemoryKind::Full if bytes == 0 || bytes > guest_bytes => {
            Err((file.into(), format!("has {bytes} bytes for a guest with {guest_bytes}")))
        }
        MemoryKind::Diff if manifest.parent.is_none() => {
            Err((MANIFEST_FILE.into(), "is of a diff without a parent".into()))
        }
        _ => Ok(()),
    }
}

fn check_disks(manifest: &Manifest) -> Result<(), Fault> {
    let fault = |problem| Err((MANIFEST_FILE.into(), problem));
    let volumes = manifest.spec.disks.iter().filter(|disk| disk.role.is_volume()).count();
    let named = manifest.volumes.len();
    if volumes != named {
        return fault(format!("names {named} volumes, but its VM has {volumes}"));
    }
    let mut seen = BTreeSet::new();
    for layer in &manifest.disks {
        bytes_of(manifest, &layer.file)?;
        if layer.index >= manifest.spec.disks.len() || layer.index >= DISKS_MAX || !seen.insert(layer.index) {
            return fault(format!("has a layer of disk {}, which the VM does not have, or a second one", layer.index));
        }
        if layer.on_parent && manifest.parent.is_none() {
            return fault(format!("has a layer of disk {} on a parent, but no parent", layer.index));
        }
    }
    Ok(())
}

fn bytes_of(manifest: &Manifest, name: &str) -> Result<u64, Fault> {
    let entry = manifest.files.iter().find(|entry| entry.name == name);
    // The name comes from the manifest, so it may be as long as the manifest.
    entry.map(|entry| entry.bytes).ok_or_else(|| {
        let name = name.chars().take(FILE_NAME_BYTES_MAX).collect::<String>();
        (MANIFEST_FILE.into(), format!("does not have the file {name:?}"))
    })
}

/// A name that stays in the directory, and that Kiln does not give to unfinished files.
pub(super) fn is_file_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=FILE_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('.')
}

fn is_digest(text: &str) -> bool {
    text.len() == DIGEST_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use fs_err as fs;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::snapshot::testing::{Place, place};

    fn problem(place: &Place, id: &SnapshotId) -> String {
        match place.store.open(id).expect_err("is broken") {
            SnapshotError::Broken { id: of, problem, .. } if of == *id => problem,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_manifest_of_nonsense_is_named() {
        let place = place();
        let snapshot = place.full_with_disk("root");
        let path = place.store.path(snapshot.id()).join(MANIFEST_FILE);
        let good = fs::read(&path).expect("reads");
        let entry = |name: &str| json!({"name": name, "bytes": 1, "blake3": null});
        let set = |pointer: &'static str, value: Value| (pointer, value);
        let forgeries = [
            (set("/format", json!(1)), "has the format 1; this version of Kiln reads 2"),
            (set("/format", json!(3)), "has the format 3; this version of Kiln reads 2"),
            (set("/format", json!(-1)), "can't be parsed"),
            (set("/format", json!("1")), "can't be parsed"),
            (set("/id", json!("0123456789abcdef")), "belongs to the snapshot `0123456789abcdef`"),
            (set("/id", json!("../../../../etc")), "can't be parsed"),
            (set("/parent", json!("..")), "can't be parsed"),
            (set("/files", json!({})), "can't be parsed"),
            (set("/files", json!(null)), "can't be parsed"),
            (set("/files", json!([])), "does not have the file \"device\""),
            (set("/files/0/name", json!("../device")), "not a file of a snapshot"),
            (set("/files/0/name", json!("/etc/passwd")), "not a file of a snapshot"),
            (set("/files/0/name", json!("..")), "not a file of a snapshot"),
            (set("/files/0/name", json!("")), "not a file of a snapshot"),
            (set("/files/0/name", json!("a\0b")), "not a file of a snapshot"),
            (set("/files/0/name", json!("manifest.json")), "not a file of a snapshot"),
            (set("/files/0/name", json!("memory")), "named twice"),
            (set("/files/0/bytes", json!(-1)), "can't be parsed"),
            (set("/files/0/bytes", json!(u64::MAX)), "has 6 bytes, not"),
            (set("/files/0/blake3", json!("abc")), "no checksum"),
            (set("/files", (0..25).map(|number| entry(&format!("file-{number}"))).collect()), "names 25 files"),
            (set("/seal", json!("done")), "sealed without a checksum"),
            (set("/seal", json!("open")), "can't be parsed"),
            (set("/memory", json!("diff")), "does not have the file \"pages\""),
            (set("/spec/memory_mib", json!(0)), "bytes for a guest with 0"),
            (set("/spec/memory_mib", json!(u64::MAX)), "MiB of memory"),
            (set("/spec/disks/0/role", json!("volume")), "names 0 volumes, but its VM has 1"),
            (set("/spec/disks/0/role", json!("root")), "can't be parsed"),
            (set("/disks/0/index", json!(1)), "which the VM does not have"),
            (set("/disks/0/index", json!(u64::MAX)), "which the VM does not have"),
            (set("/disks/0/file", json!("../disk-0")), "does not have the file \"../disk-0\""),
            (set("/disks/0/on_parent", json!(true)), "on a parent, but no parent"),
        ];
        for ((pointer, value), expected) in forgeries {
            fs::write(&path, &good).expect("written");
            place.forge(snapshot.id(), |manifest| *manifest.pointer_mut(pointer).expect("is there") = value.clone());
            let problem = problem(&place, snapshot.id());
            assert!(problem.contains(expected), "{pointer} {value}: {problem}");
        }
    }

    #[test]
    fn garbage_is_refused_by_name() {
        let place = place();
        let snapshot = place.full("root");
        let path = place.store.path(snapshot.id()).join(MANIFEST_FILE);
        let texts = [
            (Vec::new(), "can't be parsed"),
            (b"\xff\xfe".to_vec(), "can't be parsed"),
            (vec![b'['; 100_000], "can't be parsed"),
            (vec![0; 4096], "can't be parsed"),
            (vec![b' '; MANIFEST_BYTES_MAX as usize + 1], "has more than 1048576 bytes"),
        ];
        for (text, expected) in texts {
            fs::write(&path, text).expect("written");
            assert!(problem(&place, snapshot.id()).contains(expected));
        }
        fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(1 << 40)).expect("sparse");
        assert!(problem(&place, snapshot.id()).contains("has more than"));
        fs::remove_file(&path).expect("removed");
        assert!(problem(&place, snapshot.id()).contains("is missing"));
        fs::create_dir(&path).expect("made");
        assert!(problem(&place, snapshot.id()).contains("is not an ordinary file"));
    }

    proptest! {
        #[test]
        fn a_manifest_with_other_bytes_is_one_or_broken(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let place = place();
            let snapshot = place.full_with_disk("root");
            let mut bytes = serde_json::to_vec(snapshot.manifest()).expect("JSON");
            prop_assert_eq!(&parse(snapshot.id(), &bytes).expect("is good"), snapshot.manifest());
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
            match parse(snapshot.id(), &bytes) {
                Ok(manifest) => prop_assert!(manifest.files.iter().all(|entry| is_file_name(&entry.name))),
                Err(SnapshotError::Broken { file, .. }) => prop_assert!(!file.is_empty()),
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }

    #[test]
    fn a_circular_chain_is_refused() {
        let place = place();
        let root = place.full("root");
        let diff = place.diff(&root, 1, "diff");
        place.forge(root.id(), |manifest| manifest["parent"] = diff.id().as_str().into());
        assert!(problem(&place, diff.id()).contains("leads to itself"));
        assert!(problem(&place, root.id()).contains("leads to itself"));
        place.forge(root.id(), |manifest| manifest["parent"] = root.id().as_str().into());
        assert!(problem(&place, diff.id()).contains("leads to itself"));
    }

    #[test]
    fn a_parent_of_another_size_is_refused() {
        let place = place();
        let root = place.full("root");
        let diff = place.diff(&root, 1, "diff");
        place.forge(root.id(), |manifest| manifest["spec"]["memory_mib"] = 2.into());
        assert!(problem(&place, diff.id()).contains("1 MiB of memory, but its parent has 2 MiB"));
    }
}

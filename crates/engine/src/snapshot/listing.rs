//! Lists the store, broken snapshots included. Hashes nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::chain::CHAIN_MAX;
use super::check::{check_boot, check_parent, read_manifest};
use super::error::SnapshotError;
use super::id::SnapshotId;
use super::locked_dir::LockedDir;
use super::manifest::{Manifest, Seal};
use super::ready::ReadyKey;
use super::seal::host_boot_id;
use super::store::SnapshotStore;
use super::verified::open_file;

/// A snapshot in a list.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its id.
    pub id: SnapshotId,
    /// Its manifest, if it can be read.
    pub manifest: Option<Manifest>,
    /// Why it can't be restored, as far as that is known without reading its files.
    pub problem: Option<String>,
    /// Disk space of its files.
    pub bytes_on_disk: u64,
    /// Whether a VM, a command or a child uses it.
    pub in_use: bool,
    /// The snapshots whose parent it is.
    pub children: Vec<SnapshotId>,
    /// The key for which it is the ready-made snapshot.
    pub ready_for: Option<ReadyKey>,
}

impl Listed {
    /// Whether it is on disk with checksums.
    pub fn is_sealed(&self) -> bool {
        self.manifest.as_ref().is_some_and(|manifest| manifest.seal == Seal::Done)
    }

    /// Its parent.
    pub fn parent(&self) -> Option<&SnapshotId> {
        self.manifest.as_ref()?.parent.as_ref()
    }
}

impl SnapshotStore {
    /// All snapshots, the oldest first. Snapshots with an unreadable manifest come before the others.
    ///
    /// # Errors
    /// The store's own directory can't be read.
    pub fn list(&self) -> Result<Vec<Listed>, SnapshotError> {
        let boot_id = host_boot_id()?;
        let mut listed = BTreeMap::new();
        for id in self.ids()? {
            if let Some(one) = self.look_at(&id, &boot_id) {
                listed.insert(id, one);
            }
        }
        for (key, id) in self.ready_names()? {
            if let Some(one) = listed.get_mut(&id) {
                one.ready_for = Some(key);
            }
        }
        let parents = listed.values().filter_map(|one| Some((one.id.clone(), one.parent()?.clone())));
        for (id, parent) in parents.collect::<Vec<_>>() {
            if let Some(parent) = listed.get_mut(&parent) {
                parent.children.push(id);
            }
        }
        let problems = listed.keys().filter_map(|id| Some((id.clone(), chain_problem(&listed, id)?)));
        for (id, problem) in problems.collect::<Vec<_>>() {
            if let Some(one) = listed.get_mut(&id) {
                one.problem.get_or_insert(problem);
            }
        }
        let mut listed: Vec<_> = listed.into_values().collect();
        listed.sort_by_key(|one| one.manifest.as_ref().map(|manifest| manifest.created_unix_ms));
        Ok(listed)
    }

    /// `None` if it is removed meanwhile.
    fn look_at(&self, id: &SnapshotId, boot_id: &str) -> Option<Listed> {
        let dir = LockedDir::open_unlocked(&self.path(id));
        let (manifest, problem, bytes_on_disk, in_use) = match dir {
            Ok(None) => return None,
            Err(error) => (None, Some(error.to_string()), 0, false),
            Ok(Some(dir)) => {
                let manifest = read_manifest(&dir, id);
                let problem = match &manifest {
                    Ok(manifest) => check_one(&dir, manifest, boot_id).err(),
                    Err(_) => None,
                };
                let problem = problem.as_ref().or(manifest.as_ref().err()).map(problem_words);
                // A fact of one snapshot that can't be read is left out; the list still shows the others.
                (manifest.ok(), problem, dir.bytes_on_disk().unwrap_or(0), dir.is_held().unwrap_or(true))
            }
        };
        let id = id.clone();
        Some(Listed { id, manifest, problem, bytes_on_disk, in_use, children: Vec::new(), ready_for: None })
    }
}

fn check_one(dir: &LockedDir, manifest: &Manifest, boot_id: &str) -> Result<(), SnapshotError> {
    check_boot(manifest, boot_id)?;
    manifest.files.iter().try_for_each(|entry| open_file(dir, &manifest.id, entry).map(drop))
}

/// What is wrong with its ancestors.
fn chain_problem(listed: &BTreeMap<SnapshotId, Listed>, id: &SnapshotId) -> Option<String> {
    let mut seen = BTreeSet::new();
    let mut one = listed.get(id)?;
    while let Some(parent) = one.parent() {
        if !seen.insert(parent) || seen.len() == CHAIN_MAX {
            return Some(format!("leads to itself, or to more than {CHAIN_MAX} snapshots"));
        }
        let Some(below) = listed.get(parent) else { return Some(format!("needs `{parent}`, which does not exist")) };
        if let Some(problem) = &below.problem {
            return Some(format!("needs `{parent}`, which is broken: {problem}"));
        }
        if let (Some(own), Some(parents)) = (&one.manifest, &below.manifest)
            && let Err(error) = check_parent(own, parents)
        {
            return Some(problem_words(&error));
        }
        one = below;
    }
    None
}

/// The problem without the snapshot's id, which a list shows in another column.
fn problem_words(error: &SnapshotError) -> String {
    match error {
        SnapshotError::Broken { file, problem, .. } => format!("`{file}` {problem}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;
    use crate::snapshot::ReadyKey;
    use crate::snapshot::testing::{Place, place};

    fn find(place: &Place, id: &SnapshotId) -> Listed {
        let listed = place.store.list().expect("lists");
        listed.into_iter().find(|one| one.id == *id).expect("is there")
    }

    #[test]
    fn a_list_shows_each_snapshot_and_its_users() {
        let place = place();
        assert_eq!(place.store.list().expect("lists").len(), 0);
        let root = place.full("root");
        let leaf = place.diff(&root, 1, "leaf");
        root.seal().expect("seals");
        let key = ReadyKey::of(&["image"]);
        place.store.set_ready(&key, root.id()).expect("written");

        let one = find(&place, root.id());
        assert_eq!((one.problem.as_deref(), one.in_use, one.is_sealed()), (None, true, true));
        assert_eq!(one.children, [leaf.id().clone()]);
        assert_eq!(one.ready_for, Some(key));
        assert!((4096..MEMORY_BOUND).contains(&one.bytes_on_disk), "{}", one.bytes_on_disk);
        let one = find(&place, leaf.id());
        assert_eq!((one.parent(), one.is_sealed(), one.ready_for.as_ref()), (Some(root.id()), false, None));

        let id = root.id().clone();
        drop((root, leaf));
        assert!(!find(&place, &id).in_use);
    }

    /// Less than all of the memory, most of which is a hole.
    const MEMORY_BOUND: u64 = 1 << 19;

    #[test]
    fn broken_snapshots_are_listed_with_the_reason() {
        let place = place();
        let root = place.full("root");
        let cut = place.diff(&root, 1, "cut");
        let above = place.diff(&cut, 1, "above");
        let other = place.full("other");
        let lost = place.diff(&other, 1, "lost");
        fs::write(cut.device(), "x").expect("written");
        fs::write(place.store.path(other.id()).join("manifest.json"), "{").expect("written");

        assert_eq!(find(&place, root.id()).problem, None);
        assert_eq!(find(&place, cut.id()).problem.as_deref(), Some("`device` has 1 bytes, not 13"));
        let problem = find(&place, above.id()).problem.expect("its parent is broken");
        assert!(problem.starts_with(&format!("needs `{}`, which is broken: `device`", cut.id())), "{problem}");
        let unreadable = find(&place, other.id());
        assert!(unreadable.manifest.is_none() && unreadable.problem.is_some_and(|words| words.contains("parsed")));

        fs::remove_dir_all(place.store.path(other.id())).expect("removed");
        let problem = find(&place, lost.id()).problem.expect("its parent is gone");
        assert_eq!(problem, format!("needs `{}`, which does not exist", other.id()));

        place.forge(root.id(), |manifest| manifest["parent"] = above.id().as_str().into());
        fs::write(cut.device(), "device of cut").expect("written");
        assert!(find(&place, root.id()).problem.expect("is a circle").contains("leads to itself"));
    }
}

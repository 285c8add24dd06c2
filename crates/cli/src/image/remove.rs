//! Removes images, and the snapshots that can't be restored without them.

use camino::Utf8Path;
use kiln_engine::home::Home;
use kiln_engine::image::{AnyImage, ImageStore};
use kiln_engine::snapshot::{Listed, SnapshotError, SnapshotStore};
use serde::Serialize;

use super::find::{home, image_failure};
use crate::engine_failure::snapshot_failure;
use crate::failure::{Failure, HOST};
use crate::output::{mebibytes, print, print_json, say};

/// Runs `kiln image rm`.
pub(super) fn remove(names: &[String]) -> Result<u8, Failure> {
    let home = home()?;
    let store = ImageStore::new(&home);
    let snapshots = SnapshotStore::new(&home).list().map_err(snapshot_failure)?;
    for name in names {
        if let Ok(image) = store.find(name)
            && store.names_of(image.digest()).map_err(image_failure)?.len() <= 1
            && let Some(snapshot) = snapshots.iter().find(|snapshot| needs(snapshot, dir(&image)))
        {
            let id = &snapshot.id;
            let failure = Failure::words(HOST, format!("the image `{name}` is in use: the snapshot {id} needs it"));
            return Err(failure.hint(format!("kiln snapshot rm {id}")));
        }
        store.remove(name).map_err(image_failure)?;
    }
    remove_ready_of_gone(&home)?;
    Ok(0)
}

/// What `kiln image prune --json` prints.
#[derive(Debug, Serialize)]
struct Pruned {
    digest: String,
    name: String,
    size_bytes: u64,
}

/// Runs `kiln image prune`.
pub(super) fn prune(dry_run: bool, json: bool) -> Result<u8, Failure> {
    let home = home()?;
    let store = ImageStore::new(&home);
    let snapshots = SnapshotStore::new(&home).list().map_err(snapshot_failure)?;
    let mut pruned = Vec::new();
    for image in store.list().map_err(image_failure)? {
        let is_named = !store.names_of(image.digest()).map_err(image_failure)?.is_empty();
        if is_named || snapshots.iter().any(|snapshot| needs(snapshot, dir(&image))) {
            continue;
        }
        if !dry_run {
            store.remove(image.digest()).map_err(image_failure)?;
        }
        let (digest, name) = (image.digest().to_owned(), image.name().to_owned());
        pruned.push(Pruned { digest, name, size_bytes: image.size_bytes() });
    }
    if !dry_run {
        remove_ready_of_gone(&home)?;
    }
    if json {
        print_json(&pruned)?;
        return Ok(0);
    }
    for image in &pruned {
        print(&image.digest)?;
    }
    let bytes = pruned.iter().map(|image| image.size_bytes).sum();
    let what = if dry_run { "would remove" } else { "removed" };
    say(format_args!("{what} {} images, {}", pruned.len(), mebibytes(bytes)));
    Ok(0)
}

fn dir(image: &AnyImage) -> &Utf8Path {
    match image {
        AnyImage::Boot(image) => &image.dir,
        AnyImage::Root(image) => &image.dir,
    }
}

/// Whether a snapshot can't be restored without the image in a directory. A ready-made one can be made again.
fn needs(snapshot: &Listed, dir: &Utf8Path) -> bool {
    snapshot.ready_for.is_none() && files(snapshot).any(|file| file.starts_with(dir))
}

/// The files outside of a snapshot that it can't be restored without.
fn files(snapshot: &Listed) -> impl Iterator<Item = &Utf8Path> {
    let specs = snapshot.manifest.iter().map(|manifest| &manifest.spec);
    specs.flat_map(|spec| {
        std::iter::once(spec.kernel.as_path()).chain(spec.disks.iter().map(|disk| disk.path.as_path()))
    })
}

/// Removes the ready-made snapshots of removed images.
fn remove_ready_of_gone(home: &Home) -> Result<(), Failure> {
    let store = SnapshotStore::new(home);
    for one in store.list().map_err(snapshot_failure)? {
        let is_gone = |file: &Utf8Path| file.starts_with(home.images()) && !file.exists();
        if one.ready_for.is_none() || !files(&one).any(is_gone) {
            continue;
        }
        match store.remove(&one.id) {
            Ok(()) | Err(SnapshotError::Unknown(_)) => {}
            Err(error @ SnapshotError::InUse { .. }) => say(format_args!("not removed: {error}")),
            Err(error) => return Err(snapshot_failure(error)),
        }
    }
    Ok(())
}

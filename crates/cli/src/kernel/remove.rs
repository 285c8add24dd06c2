//! Removes kernels, and what was made with them.

use kiln_engine::home::Home;
use kiln_engine::image::{AnyImage, Image, ImageError, ImageStore};
use kiln_engine::kernels::{KernelName, KernelStore};
use kiln_engine::snapshot::{Listed, SnapshotError, SnapshotStore};

use crate::engine_failure::snapshot_failure;
use crate::failure::{Failure, HOST};
use crate::image::{home, image_failure, kernel_failure};
use crate::output::say;

/// Runs `kiln kernel rm`.
pub(super) fn remove(kernels: &[String], force: bool) -> Result<u8, Failure> {
    let home = home()?;
    for asked in kernels {
        remove_one(&home, asked, force)?;
    }
    Ok(0)
}

fn remove_one(home: &Home, asked: &str, force: bool) -> Result<(), Failure> {
    let store = KernelStore::new(home);
    let digest = store.resolve(asked).map_err(kernel_failure)?;
    let names = store.names_of(&digest).map_err(kernel_failure)?;
    let is_one_of_several = names.len() > 1 && asked.parse::<KernelName>().is_ok_and(|name| names.contains(&name));
    if !is_one_of_several {
        let images = ImageStore::new(home);
        let name = ImageStore::name_with_kernel(&digest);
        let only = only_of(&images, &digest, &name)?;
        let needs = Needs { home, digest: &digest, images: &only };
        if !force {
            needs.refuse_if_a_snapshot_needs_it(asked)?;
        }
        needs.remove_ready_made(asked, force)?;
        for image in &only {
            images.remove(&image.digest).map_err(image_failure)?;
        }
        match images.remove(&name) {
            Ok(()) | Err(ImageError::Unknown { .. }) => {}
            Err(error) => return Err(image_failure(error)),
        }
    }
    store.remove(asked).map_err(kernel_failure)
}

/// The images with a kernel that no other name needs. The kernel of `mini` may be the same one.
fn only_of(images: &ImageStore, digest: &str, name: &str) -> Result<Vec<Image>, Failure> {
    let mut found = Vec::new();
    for image in images.list().map_err(image_failure)? {
        let AnyImage::Boot(image) = image else { continue };
        let names = images.names_of(&image.digest).map_err(image_failure)?;
        let is_with_it = image.kernel_digest.as_deref() == Some(digest) || names.iter().any(|one| one.as_str() == name);
        if is_with_it && names.iter().all(|one| one.as_str() == name) {
            found.push(*image);
        }
    }
    Ok(found)
}

/// What was made with a kernel.
struct Needs<'a> {
    home: &'a Home,
    digest: &'a str,
    images: &'a [Image],
}

impl Needs<'_> {
    /// Whether a snapshot can't be restored without the kernel: it names the kernel, or the disk with its modules.
    fn needs(&self, snapshot: &Listed) -> bool {
        let Some(spec) = snapshot.manifest.as_ref().map(|manifest| &manifest.spec) else { return false };
        let kernel = self.home.kernels().join(self.digest);
        self.images.iter().any(|image| spec.kernel.starts_with(&image.dir))
            || spec.disks.iter().any(|disk| disk.path.starts_with(&kernel))
    }

    fn refuse_if_a_snapshot_needs_it(&self, asked: &str) -> Result<(), Failure> {
        let snapshots = SnapshotStore::new(self.home).list().map_err(snapshot_failure)?;
        let mut needing = snapshots.iter().filter(|snapshot| snapshot.ready_for.is_none() && self.needs(snapshot));
        match needing.next() {
            None => Ok(()),
            Some(Listed { id, .. }) => {
                let failure =
                    Failure::words(HOST, format!("the kernel `{asked}` is in use: the snapshot {id} needs it"));
                Err(failure.hint(format!("kiln snapshot rm {id}, or --force")))
            }
        }
    }

    /// Removes the ready-made snapshots, which can be made again.
    fn remove_ready_made(&self, asked: &str, force: bool) -> Result<(), Failure> {
        let store = SnapshotStore::new(self.home);
        for one in store.list().map_err(snapshot_failure)? {
            if one.ready_for.is_none() || !self.needs(&one) {
                continue;
            }
            match store.remove(&one.id) {
                Ok(()) | Err(SnapshotError::Unknown(_)) => {}
                Err(error @ SnapshotError::InUse { .. }) if force => say(format_args!("not removed: {error}")),
                Err(error @ SnapshotError::InUse { .. }) => {
                    let failure = Failure::words(HOST, format!("the kernel `{asked}` is in use: {error}"));
                    return Err(failure.hint("stop the VM, or --force"));
                }
                Err(error) => return Err(snapshot_failure(error)),
            }
        }
        Ok(())
    }
}

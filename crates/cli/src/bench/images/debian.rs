//! The image that is measured.

use anyhow::Context as _;
use camino::Utf8PathBuf;
use kiln_engine::home::Home;
use kiln_engine::image::{CommandError, DebianError, DebianOptions, ImageStore, Origin, RootImage, write_debian_tar};
use kiln_engine::snapshot::{Snapshot, SnapshotStore};
use kiln_engine::{Engine as _, Nic, ReadyRequest, VmSpec, blocking};
use kiln_oci::{Image as OciImage, OpenOptions};
use kiln_wire::Network;

use super::{conversion, crowd, interpreter, second_use};
use crate::bench::results::Results;
use crate::bench::suite::{BOOT_TIMEOUT, Bench, CPUS, MEMORY_MIB};
use crate::image::Runnable;
use crate::output::say;

/// The name of the image in the home. No user has one of this name.
pub(super) const NAME: &str = "kiln-bench-debian";
const SUITE: &str = "bookworm";
const PACKAGE: &str = "python3";
const CACHE: &str = "bench";

/// An image of Debian, in the home. Dropping it removes it, and its ready-made snapshots.
pub(in crate::bench) struct Debian {
    pub(super) tar: Utf8PathBuf,
    home: Home,
    image: RootImage,
    ready: Vec<Snapshot>,
}

/// Measures everything about images.
pub async fn measure(bench: &Bench, results: &mut Results) -> anyhow::Result<()> {
    let Some(mut debian) = Debian::make(bench).await? else { return Ok(()) };
    conversion::measure(bench, &debian.tar, results).await?;
    let base = debian.ready(bench, &[], None).await?;
    second_use::measure(bench, &base, results).await?;
    crowd::measure(bench, &base, results).await?;
    drop(base);
    interpreter::measure(bench, &mut debian, results).await
}

impl Debian {
    /// Makes the image. `None`, with a message, if mmdebstrap is not installed.
    pub(in crate::bench) async fn make(bench: &Bench) -> anyhow::Result<Option<Self>> {
        let home = Home::at(bench.engine.home());
        blocking(move || {
            let Some(tar) = tar(&home)? else {
                say("mmdebstrap is not installed: nothing is measured with an image of Debian");
                return Ok(None);
            };
            let image = import(&home, NAME, &tar)?;
            Ok(Some(Self { tar, home, image, ready: Vec::new() }))
        })
        .await
    }

    /// The spec that `kiln run --image` has, with these network cards.
    pub(in crate::bench) fn spec(&self, bench: &Bench, nics: &[Nic]) -> VmSpec {
        let acceleration = bench.acceleration;
        let spec = self.image.vm_spec(&bench.image);
        VmSpec { memory_mib: MEMORY_MIB, cpus: CPUS, acceleration, nics: nics.to_vec(), ..spec }
    }

    /// The snapshot that `kiln run --image` forks.
    pub(in crate::bench) async fn ready(
        &mut self,
        bench: &Bench,
        nics: &[Nic],
        network: Option<Network>,
    ) -> anyhow::Result<Snapshot> {
        let spec = self.spec(bench, nics);
        let request = ReadyRequest { network, ..ReadyRequest::new(&spec, NAME, BOOT_TIMEOUT) };
        let ready = bench.engine.ready(request).await?;
        self.ready.push(ready.clone());
        Ok(ready)
    }

    /// The same after `kiln image warm --run LINE`.
    pub(super) async fn warmed(&mut self, bench: &Bench, line: &str) -> anyhow::Result<Snapshot> {
        let (home, lines) = (self.home.clone(), vec![line.to_owned()]);
        let runnable = Runnable::of(bench.image.clone(), Some(self.image.clone()));
        let rehearse = runnable.rehearse(&lines);
        blocking(move || ImageStore::new(&home).set_warm(NAME, &lines)).await?;
        let spec = self.spec(bench, &[]);
        let request = ReadyRequest { rehearse, ..ReadyRequest::new(&spec, NAME, BOOT_TIMEOUT) };
        let ready = bench.engine.ready(request).await?;
        self.ready.push(ready.clone());
        Ok(ready)
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        let store = SnapshotStore::new(&self.home);
        for snapshot in self.ready.drain(..) {
            let id = snapshot.id().clone();
            drop(snapshot);
            // A later one has replaced it if it is unknown.
            if store.open(&id).map(drop).is_ok()
                && let Err(error) = store.remove(&id)
            {
                say(format_args!("failed to remove a snapshot of the bench: {error}"));
            }
        }
        if let Err(error) = ImageStore::new(&self.home).remove(NAME) {
            say(format_args!("failed to remove the image of the bench: {error}"));
        }
    }
}

/// Makes an image as `kiln image import` does. Blocks.
pub(super) fn import(home: &Home, name: &str, tar: &Utf8PathBuf) -> anyhow::Result<RootImage> {
    let options = OpenOptions::new(home.cache().join("import").as_std_path());
    let source = OciImage::open_archive(tar.as_std_path(), &options)?;
    Ok(ImageStore::new(home).import(name, &source, Origin::default(), &mut |_| {})?)
}

/// The archive, from the cache or from mmdebstrap. `None` if there is no mmdebstrap. Blocks.
fn tar(home: &Home) -> anyhow::Result<Option<Utf8PathBuf>> {
    let directory = home.cache().join(CACHE);
    let path = directory.join(format!("debian-{SUITE}-{PACKAGE}.tar"));
    if path.exists() {
        return Ok(Some(path));
    }
    fs_err::create_dir_all(&directory)?;
    let options = DebianOptions { suite: SUITE.into(), packages: vec![PACKAGE.into()], mirror: None };
    let mut file = tempfile::NamedTempFile::new_in(&directory)?;
    match write_debian_tar(&options, &mut file) {
        Err(DebianError::Command(CommandError::Missing { .. })) => return Ok(None),
        other => other.context("failed to make the file system of Debian that is measured")?,
    }
    file.persist(&path)?;
    Ok(Some(path))
}

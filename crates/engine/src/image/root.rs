//! Images with a root filesystem: `images/<digest>/` with `root.erofs`, the configuration, and `image.json`.
//!
//! Such an image has no kernel. A VM boots the kernel and the agent of another image, finds this root on its first
//! disk, and mounts it under an overlay. One file serves all VMs: nothing ever writes to it, and the host caches it
//! once.

use std::io;
use std::os::unix::fs::MetadataExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use kiln_oci::{ConfigDocument, ImageConfig};
use serde::{Deserialize, Serialize};

use super::error::ImageError;
use super::store::{
    AnyImage, FileEntry, Image, ImageStore, check_manifest, is_digest, read_manifest, verify_files, write_manifest,
};
use crate::spec::{Disk, DiskFormat, DiskRole, RootSpec, VmSpec};

/// The root filesystem.
pub(super) const ROOT_FILE: &str = "root.erofs";
/// The configuration, as an OCI document.
pub(super) const CONFIG_FILE: &str = "config.json";
/// The longest configuration; what the OCI specification suggests.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// Version of what the digest covers.
const DIGEST_FORMAT: u32 = 1;
/// The first disk of a VM.
const ROOT_DEVICE: &str = "/dev/vda";
const ROOT_FILESYSTEM: &str = "erofs";

/// An image with a root filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootImage {
    /// The name that it was made under.
    pub name: String,
    /// Digest of the root filesystem and the configuration: 64 hex digits.
    pub digest: String,
    /// Its directory.
    pub dir: Utf8PathBuf,
    /// The root filesystem: an EROFS file.
    pub root: Utf8PathBuf,
    /// What runs in it and how.
    pub config: ImageConfig,
    /// Where it comes from.
    pub origin: Origin,
    /// Files, directories and links in it.
    pub entries: u64,
    /// Lines for its shell that its VM runs before it is saved: see [`ImageStore::set_warm`].
    pub warm: Vec<String>,
    /// When it was made here.
    pub created_unix_seconds: u64,
    /// Bytes of its files.
    pub size_bytes: u64,
}

/// Where an image with a root filesystem comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The source as users name it: a reference of a registry, a file, a suite of Debian.
    pub source: String,
    /// Digest of the manifest in the registry or layout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// Digests of the contents of its layers, the lowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<String>,
    /// What of the source was left out, for users.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Its `image.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RootManifest {
    pub(super) format: u32,
    pub(super) name: String,
    pub(super) digest: String,
    pub(super) root: FileEntry,
    pub(super) config: FileEntry,
    pub(super) origin: Origin,
    pub(super) entries: u64,
    /// Set by users. The digest does not cover it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) warm: Vec<String>,
    pub(super) created_unix_seconds: u64,
}

impl RootManifest {
    /// The digest that names an image: of the root filesystem and the configuration.
    pub(super) fn digest_of(root: &FileEntry, config: &FileEntry) -> String {
        let canonical = format!(
            "kiln-root {DIGEST_FORMAT}\nroot {} {}\nconfig {} {}\n",
            root.bytes, root.blake3, config.bytes, config.blake3
        );
        blake3::hash(canonical.as_bytes()).to_hex().to_string()
    }

    pub(super) fn files(&self) -> [&FileEntry; 2] {
        [&self.root, &self.config]
    }

    pub(super) fn write(&self, dir: &Utf8Path) -> io::Result<()> {
        write_manifest(dir, self)
    }

    pub(super) fn read(dir: &Utf8Path) -> Result<Self, ImageError> {
        let manifest: Self = read_manifest(dir)?;
        let digest = Self::digest_of(&manifest.root, &manifest.config);
        check_manifest(dir, &manifest.digest, &digest, &manifest.files())?;
        if manifest.config.bytes > CONFIG_BYTES_MAX {
            return Err(ImageError::damaged(dir, format!("`{CONFIG_FILE}` has {} bytes", manifest.config.bytes)));
        }
        Ok(manifest)
    }

    /// Reads the configuration, too.
    pub(super) fn into_image(self, dir: &Utf8Path) -> Result<RootImage, ImageError> {
        let path = dir.join(&self.config.file);
        let text = fs::read(&path).map_err(ImageError::io(&path))?;
        let config = ConfigDocument::parse(&text)
            .map_err(|error| ImageError::damaged(dir, format!("`{CONFIG_FILE}`: {error}")))?
            .config;
        Ok(RootImage {
            dir: dir.into(),
            root: dir.join(&self.root.file),
            size_bytes: self.root.bytes.saturating_add(self.config.bytes),
            name: self.name,
            digest: self.digest,
            config,
            origin: self.origin,
            entries: self.entries,
            warm: self.warm,
            created_unix_seconds: self.created_unix_seconds,
        })
    }
}

impl RootImage {
    /// A VM with this root, booted by the kernel and agent of another image.
    ///
    /// ```no_run
    /// # fn example(mini: &kiln_engine::image::Image, python: &kiln_engine::image::RootImage) {
    /// use kiln_engine::VmSpec;
    ///
    /// let spec = VmSpec { memory_mib: 512, ..python.vm_spec(mini) };
    /// assert_eq!(spec.disks[0].path, python.root);
    /// # }
    /// ```
    pub fn vm_spec(&self, boot: &Image) -> VmSpec {
        VmSpec {
            disks: vec![Disk { path: self.root.clone(), format: DiskFormat::Raw, role: DiskRole::Shared }],
            root: Some(RootSpec {
                device: ROOT_DEVICE.into(),
                fstype: ROOT_FILESYSTEM.into(),
                upper: None,
                image: Some(self.digest.clone()),
                init: false,
            }),
            ..boot.vm_spec()
        }
    }

    /// Reads its files whole and compares them with its digest.
    ///
    /// # Errors
    /// [`ImageError::Damaged`] names the file that changed.
    pub fn verify(&self) -> Result<(), ImageError> {
        verify_files(&self.dir, &RootManifest::read(&self.dir)?.files())
    }
}

impl ImageStore {
    /// The image whose root a VM has, with its files as they were made. `None` if the VM has no such image.
    ///
    /// # Errors
    /// [`ImageError::Unknown`] if the image does not exist any more, [`ImageError::Damaged`], or
    /// [`ImageError::OtherRoot`] if the VM's disk is not that of the image.
    pub fn root_of(&self, spec: &VmSpec) -> Result<Option<RootImage>, ImageError> {
        let (Some(root), Some(disk)) = (&spec.root, spec.disks.first()) else { return Ok(None) };
        // Specs of older versions name only the disk, which is in the directory of its image.
        let directory = || disk.path.parent().filter(|directory| directory.parent() == Some(&self.home.images()));
        let digest = root.image.as_deref().or_else(|| directory()?.file_name());
        let Some(digest) = digest.filter(|digest| is_digest(digest)) else { return Ok(None) };
        match self.find(digest)? {
            // One file may have several paths, so paths are not compared.
            AnyImage::Root(image) if is_same_file(&image.root, &disk.path) => Ok(Some(*image)),
            _ => Err(ImageError::OtherRoot { digest: digest.into(), disk: disk.path.clone() }),
        }
    }
}

fn is_same_file(one: &Utf8Path, other: &Utf8Path) -> bool {
    let file = |path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    file(one).is_some() && file(one) == file(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::Home;

    /// An end of a tar archive, which is a whole layer without entries.
    const EMPTY_LAYER: [u8; 1024] = [0; 1024];

    fn make(store: &ImageStore, name: &str, command: &str) -> RootImage {
        let mut silent = |_| {};
        let mut builder = store.root_builder(name, &mut silent).expect("starts");
        builder.layer(1, &mut &EMPTY_LAYER[..]).expect("is a layer");
        let config = ImageConfig { cmd: vec![command.into()], ..ImageConfig::bare() };
        builder.finish(&config, Origin::default()).expect("is made")
    }

    fn vm_of(image: &RootImage) -> VmSpec {
        let disks = vec![Disk { path: image.root.clone(), format: DiskFormat::Raw, role: DiskRole::Shared }];
        let (device, fstype) = (ROOT_DEVICE.into(), ROOT_FILESYSTEM.into());
        let root = RootSpec { device, fstype, upper: None, image: Some(image.digest.clone()), init: false };
        VmSpec { disks, root: Some(root), ..VmSpec::new("/k", "/i") }
    }

    #[test]
    fn the_image_of_a_vm_is_found_by_digest_or_by_the_disk_of_an_older_spec() {
        let place = tempfile::tempdir().expect("a directory");
        let home = Utf8PathBuf::from_path_buf(place.path().join("home")).expect("UTF-8");
        let store = ImageStore::new(&Home::at(home));
        let image = make(&store, "one", "first");
        let spec = vm_of(&image);
        assert_eq!(store.root_of(&spec).expect("is there"), Some(image.clone()));
        assert_eq!(store.root_of(&VmSpec { root: None, ..spec.clone() }).expect("has none"), None);

        let mut old = spec.clone();
        old.root.as_mut().expect("has a root").image = None;
        assert_eq!(store.root_of(&old).expect("is there"), Some(image.clone()));
        // A disk of the user's own.
        let own = place.path().join("disk");
        fs::write(&own, b"disk").expect("written");
        old.disks[0].path = Utf8PathBuf::from_path_buf(own).expect("UTF-8");
        assert_eq!(store.root_of(&old).expect("is not an image's"), None);

        // The configuration differs, and so does the digest.
        let other = make(&store, "two", "second");
        assert_ne!(image.digest, other.digest);
        let mut mixed = spec.clone();
        mixed.disks[0].path = other.root.clone();
        let error = store.root_of(&mixed).expect_err("is another root");
        assert!(matches!(&error, ImageError::OtherRoot { disk, .. } if *disk == other.root), "{error}");

        store.remove("one").expect("is removed");
        assert!(matches!(store.root_of(&spec), Err(ImageError::Unknown { .. })));
    }

    #[test]
    fn a_root_that_was_changed_in_place_is_refused() {
        let place = tempfile::tempdir().expect("a directory");
        let home = Utf8PathBuf::from_path_buf(place.path().join("home")).expect("UTF-8");
        let store = ImageStore::new(&Home::at(home));
        let image = make(&store, "one", "first");
        let mut bytes = fs::read(&image.root).expect("reads");
        *bytes.last_mut().expect("has bytes") ^= 1;
        fs::remove_file(&image.root).expect("removed");
        fs::write(&image.root, bytes).expect("written");
        let error = store.root_of(&vm_of(&image)).expect_err("is not what it was");
        assert!(matches!(error, ImageError::Damaged { .. }), "{error}");
    }
}

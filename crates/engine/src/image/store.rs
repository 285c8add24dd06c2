//! Built images: `images/<digest>/` with its `image.json`, and the names that point to them.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read as _};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::build::BuildStep;
use super::error::ImageError;
use super::name::ImageName;
use super::root::{ROOT_FILE, RootImage, RootManifest};
use crate::files::{FileFacts, Partial, private_file};
use crate::home::Home;
use crate::kernel::KernelFormat;

/// Version of `image.json` and of what the digest covers.
const FORMAT: u32 = 1;
const MANIFEST: &str = "image.json";
/// A manifest has a few hundred bytes and the names of some modules.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
const FILE_NAME_BYTES_MAX: usize = 64;
const DIGEST_HEX_BYTES: usize = 64;
/// So many digits of a digest name an image, if no other digest begins with them.
const DIGEST_PREFIX_BYTES_MIN: usize = 8;

/// A guest image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The name of its recipe.
    pub name: String,
    /// Digest of the kernel, the initramfs and the command line: 64 hex digits.
    pub digest: String,
    /// Its directory.
    pub dir: Utf8PathBuf,
    /// The kernel.
    pub kernel: Utf8PathBuf,
    /// The initial filesystem.
    pub initramfs: Utf8PathBuf,
    /// The kernel command line. The engine adds to it.
    pub cmdline: String,
    /// The kernel's release, such as `6.1.0-44-cloud-amd64`.
    pub kernel_version: String,
    /// How to load the kernel.
    pub kernel_format: KernelFormat,
    /// Digest of its agent.
    pub agent_digest: String,
    /// Its modules, sorted.
    pub modules: Vec<String>,
    /// The package of its kernel, if apt downloaded it.
    pub kernel_package: Option<String>,
    /// The digest of its kernel in the store of kernels, if it is from there.
    pub kernel_digest: Option<String>,
    /// The least memory that it boots with, if that was measured.
    pub memory_mib_min: Option<u64>,
    /// Lines for its shell that its VM runs before it is saved: see [`ImageStore::set_warm`].
    pub warm: Vec<String>,
    /// When it was built.
    pub created_unix_seconds: u64,
    /// Bytes of kernel and initramfs.
    pub size_bytes: u64,
}

/// `image.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) format: u32,
    pub(super) name: String,
    pub(super) digest: String,
    pub(super) kernel: FileEntry,
    pub(super) kernel_format: KernelFormat,
    pub(super) kernel_version: String,
    pub(super) initramfs: FileEntry,
    pub(super) cmdline: String,
    pub(super) agent_digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kernel_package: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kernel_digest: Option<String>,
    /// Found after the image was built. The digest does not cover it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) memory_mib_min: Option<u64>,
    /// Set by users. The digest does not cover it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) warm: Vec<String>,
    /// A digest of all parts of the image, so that it is not built again.
    pub(super) inputs: String,
    pub(super) modules: Vec<String>,
    pub(super) created_unix_seconds: u64,
}

/// A file of an image or a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    pub(crate) file: String,
    pub(crate) bytes: u64,
    pub(crate) blake3: String,
}

impl FileEntry {
    pub(crate) fn of(file: &str, bytes: &[u8]) -> Self {
        Self { file: file.into(), bytes: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() }
    }
}

impl Manifest {
    pub(super) const FORMAT: u32 = FORMAT;

    /// The digest that names an image: of the kernel, the initramfs and the command line.
    pub(super) fn digest_of(kernel: &FileEntry, initramfs: &FileEntry, cmdline: &str) -> String {
        let canonical = format!(
            "kiln-image {FORMAT}\nkernel {} {}\ninitramfs {} {}\ncmdline {cmdline}\n",
            kernel.bytes, kernel.blake3, initramfs.bytes, initramfs.blake3
        );
        blake3::hash(canonical.as_bytes()).to_hex().to_string()
    }

    pub(super) fn write(&self, dir: &Utf8Path) -> io::Result<()> {
        write_manifest(dir, self)
    }

    pub(super) fn read(dir: &Utf8Path) -> Result<Self, ImageError> {
        let manifest: Self = read_manifest(dir)?;
        let digest = Self::digest_of(&manifest.kernel, &manifest.initramfs, &manifest.cmdline);
        check_manifest(dir, &manifest.digest, &digest, &[&manifest.kernel, &manifest.initramfs])?;
        Ok(manifest)
    }

    fn into_image(self, dir: &Utf8Path) -> Image {
        Image {
            dir: dir.into(),
            kernel: dir.join(&self.kernel.file),
            initramfs: dir.join(&self.initramfs.file),
            size_bytes: self.kernel.bytes.saturating_add(self.initramfs.bytes),
            name: self.name,
            digest: self.digest,
            cmdline: self.cmdline,
            kernel_version: self.kernel_version,
            kernel_format: self.kernel_format,
            agent_digest: self.agent_digest,
            modules: self.modules,
            kernel_package: self.kernel_package,
            kernel_digest: self.kernel_digest,
            memory_mib_min: self.memory_mib_min,
            warm: self.warm,
            created_unix_seconds: self.created_unix_seconds,
        }
    }
}

/// Writes the manifest of a new image.
pub(super) fn write_manifest(dir: &Utf8Path, manifest: &impl Serialize) -> io::Result<()> {
    private_file::write_new(&dir.join(MANIFEST), &manifest_text(manifest)?)
}

fn manifest_text(manifest: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(manifest)?;
    text.push(b'\n');
    Ok(text)
}

/// Reads the manifest of an image. Its kind must be that of `T`.
pub(super) fn read_manifest<T: DeserializeOwned>(dir: &Utf8Path) -> Result<T, ImageError> {
    let damaged = |error: &dyn fmt::Display| ImageError::damaged(dir, format!("`{MANIFEST}`: {error}"));
    let file = fs::File::open(dir.join(MANIFEST)).map_err(|error| ImageError::damaged(dir, error.to_string()))?;
    let mut text = Vec::new();
    file.take(MANIFEST_BYTES_MAX).read_to_end(&mut text).map_err(ImageError::io(dir))?;
    /// The part of a manifest that every format has.
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let Format { format } = serde_json::from_slice(&text).map_err(|error| damaged(&error))?;
    if format != FORMAT {
        return Err(ImageError::damaged(dir, format!("its format is {format}, but this Kiln reads {FORMAT}")));
    }
    serde_json::from_slice(&text).map_err(|error| damaged(&error))
}

/// Checks what a manifest claims about itself and its files, without reading those.
pub(super) fn check_manifest(
    dir: &Utf8Path,
    claimed: &str,
    digest: &str,
    files: &[&FileEntry],
) -> Result<(), ImageError> {
    let damaged = |problem: String| Err(ImageError::damaged(dir, problem));
    if Some(claimed) != dir.file_name() {
        return damaged(format!("`{MANIFEST}` belongs to another image"));
    }
    if digest != claimed {
        return damaged(format!("the digest of its parts is `{digest}`"));
    }
    for entry in files {
        if !is_file_name(&entry.file) {
            return damaged(format!("`{}` is not a file name", entry.file));
        }
        let found = fs::metadata(dir.join(&entry.file));
        let found = found.map_err(|error| ImageError::damaged(dir, error.to_string()))?.len();
        if found != entry.bytes {
            return damaged(format!("`{}` has {found} bytes, not {}", entry.file, entry.bytes));
        }
    }
    Ok(())
}

/// Reads files of an image whole and compares them with its manifest.
pub(super) fn verify_files(dir: &Utf8Path, files: &[&FileEntry]) -> Result<(), ImageError> {
    for entry in files {
        let path = dir.join(&entry.file);
        let mut hasher = blake3::Hasher::new();
        let mut file = fs::File::open(&path).map_err(ImageError::io(&path))?;
        io::copy(&mut file, &mut hasher).map_err(ImageError::io(&path))?;
        if hasher.finalize().to_hex().as_str() != entry.blake3 {
            return Err(ImageError::changed(dir, entry));
        }
    }
    Ok(())
}

/// An image of either kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnyImage {
    /// It boots: a kernel and an initramfs.
    Boot(Box<Image>),
    /// A root filesystem, which another image's kernel boots.
    Root(Box<RootImage>),
}

impl AnyImage {
    /// The name that it was built under.
    pub fn name(&self) -> &str {
        match self {
            Self::Boot(image) => &image.name,
            Self::Root(image) => &image.name,
        }
    }

    /// Its digest: 64 hex digits.
    pub fn digest(&self) -> &str {
        match self {
            Self::Boot(image) => &image.digest,
            Self::Root(image) => &image.digest,
        }
    }

    /// Lines for its shell that its VM runs before it is saved: see [`ImageStore::set_warm`].
    pub fn warm(&self) -> &[String] {
        match self {
            Self::Boot(image) => &image.warm,
            Self::Root(image) => &image.warm,
        }
    }

    /// When it was made.
    pub fn created_unix_seconds(&self) -> u64 {
        match self {
            Self::Boot(image) => image.created_unix_seconds,
            Self::Root(image) => image.created_unix_seconds,
        }
    }

    /// Bytes of its files.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Boot(image) => image.size_bytes,
            Self::Root(image) => image.size_bytes,
        }
    }

    /// Reads its files whole and compares them with its digest.
    ///
    /// # Errors
    /// [`ImageError::Damaged`] names the file that changed.
    pub fn verify(&self) -> Result<(), ImageError> {
        match self {
            Self::Boot(image) => image.verify(),
            Self::Root(image) => image.verify(),
        }
    }
}

impl Image {
    /// Reads kernel and initramfs whole and compares them with the digest.
    ///
    /// # Errors
    /// [`ImageError::Damaged`] names the file that changed.
    pub fn verify(&self) -> Result<(), ImageError> {
        let manifest = Manifest::read(&self.dir)?;
        verify_files(&self.dir, &[&manifest.kernel, &manifest.initramfs])
    }
}

/// The images in a [`Home`].
#[derive(Debug, Clone)]
pub struct ImageStore {
    pub(super) home: Home,
}

impl ImageStore {
    /// The images of a home. Does no I/O.
    pub fn new(home: &Home) -> Self {
        Self { home: home.clone() }
    }

    /// Finds an image by its name, its digest, or unique first digits of the digest. Its files are as they were built:
    /// they are read once, and again after they have changed.
    ///
    /// # Errors
    /// [`ImageError::Unknown`] with the existing names; [`ImageError::Damaged`] with the file that changed.
    pub fn find(&self, name_or_digest: &str) -> Result<AnyImage, ImageError> {
        let digest = self.resolve(name_or_digest)?;
        let dir = self.dir(&digest);
        if is_root(&dir) {
            let manifest = RootManifest::read(&dir)?;
            self.check_files(&dir, &manifest.files())?;
            return manifest.into_image(&dir).map(Box::new).map(AnyImage::Root);
        }
        let manifest = Manifest::read(&dir)?;
        self.check_files(&dir, &[&manifest.kernel, &manifest.initramfs])?;
        Ok(AnyImage::Boot(manifest.into_image(&dir).into()))
    }

    /// Finds an image that boots, as [`find`](Self::find) does.
    ///
    /// # Errors
    /// Also [`ImageError::NoBoot`].
    pub fn find_boot(&self, name_or_digest: &str) -> Result<Image, ImageError> {
        match self.find(name_or_digest)? {
            AnyImage::Boot(image) => Ok(*image),
            AnyImage::Root(image) => Err(ImageError::NoBoot { name: image.name.clone() }),
        }
    }

    /// All images, by name and age, the newest first.
    ///
    /// # Errors
    /// The store can't be read. Damaged images are left out.
    pub fn list(&self) -> Result<Vec<AnyImage>, ImageError> {
        let mut images: Vec<_> = self.digests()?.iter().filter_map(|digest| self.load_any(digest).ok()).collect();
        images.sort_by(|left, right| {
            left.name().cmp(right.name()).then(right.created_unix_seconds().cmp(&left.created_unix_seconds()))
        });
        Ok(images)
    }

    /// All names, each with its digest.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn names(&self) -> Result<BTreeMap<ImageName, String>, ImageError> {
        let names = entries(&self.names_dir())?;
        let names = names.iter().filter_map(|file| ImageName::of_file(file));
        Ok(names.filter_map(|name| Some((name.clone(), self.named(&name)?))).collect())
    }

    /// The names of an image.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn names_of(&self, digest: &str) -> Result<Vec<ImageName>, ImageError> {
        Ok(self.names()?.into_iter().filter(|(_, named)| named == digest).map(|(name, _)| name).collect())
    }

    /// Removes a name, and the image unless it has another name. For a digest, removes the image and all its names.
    /// Running VMs are not affected.
    ///
    /// # Errors
    /// [`ImageError::Unknown`], or a file can't be removed.
    pub fn remove(&self, name_or_digest: &str) -> Result<(), ImageError> {
        let digest = self.resolve(name_or_digest)?;
        let asked = name_or_digest.parse::<ImageName>().ok();
        let (gone, kept): (Vec<_>, Vec<_>) = self
            .names_of(&digest)?
            .into_iter()
            .partition(|name| asked.as_ref() == Some(name) || digest.starts_with(name_or_digest));
        for name in gone {
            let path = self.names_dir().join(name.file_name());
            fs::remove_file(&path).map_err(ImageError::io(&path))?;
        }
        if kept.is_empty() { self.discard(&digest) } else { Ok(()) }
    }

    /// Removes an image's directory. No other process sees it half removed.
    pub(super) fn discard(&self, digest: &str) -> Result<(), ImageError> {
        let dir = self.dir(digest);
        if !dir.exists() {
            return Ok(());
        }
        // After the move into a partial directory, readers do not find it any more. If this process is killed, a sweep
        // removes it.
        let partial = Partial::create(&self.home.images(), "removed").map_err(ImageError::io(&dir))?;
        match fs::rename(&dir, partial.path().join(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::io(&dir)(error)),
            _ => Ok(()),
        }
    }

    /// Gives an image a name. If another image has that name, it loses it.
    ///
    /// # Errors
    /// [`ImageError::BadName`], or the name can't be written.
    pub fn set_name(&self, name: &str, digest: &str) -> Result<(), ImageError> {
        let name: ImageName = name.parse()?;
        if self.named(&name).as_deref() == Some(digest) {
            return Ok(());
        }
        let directory = self.names_dir();
        let path = directory.join(name.file_name());
        let write = || -> io::Result<()> {
            private_file::create_dir_all(&directory)?;
            private_file::replace(&path, &self.home.images(), format!("{digest}\n").as_bytes())?;
            fs::File::open(&directory)?.sync_all()
        };
        write().map_err(ImageError::io(&path))
    }

    /// The least memory with which an earlier image of this name boots, from the newest that was measured.
    pub(super) fn measured_before(&self, name: &str) -> Result<Option<u64>, ImageError> {
        Ok(self.list()?.into_iter().find_map(|image| match image {
            AnyImage::Boot(image) if image.name == name => image.memory_mib_min,
            _ => None,
        }))
    }

    /// Writes the least memory into an image's manifest.
    pub(super) fn set_memory_min(&self, image: &Image, memory_mib: u64) -> Result<Image, ImageError> {
        let manifest = Manifest { memory_mib_min: Some(memory_mib), ..Manifest::read(&image.dir)? };
        self.replace_manifest(&image.dir, &manifest)?;
        Ok(manifest.into_image(&image.dir))
    }

    /// Replaces the manifest of an image that exists. The digest must not cover what changes.
    pub(super) fn replace_manifest(&self, dir: &Utf8Path, manifest: &impl Serialize) -> Result<(), ImageError> {
        let path = dir.join(MANIFEST);
        let write = || private_file::replace(&path, &self.home.images(), &manifest_text(manifest)?);
        write().map_err(ImageError::io(&path))
    }

    /// The image that was built from these inputs, if it is unchanged.
    pub(super) fn made_from(
        &self,
        inputs: &str,
        progress: &mut dyn FnMut(BuildStep),
    ) -> Result<Option<Image>, ImageError> {
        for digest in self.digests()? {
            let dir = self.dir(&digest);
            if let Ok(manifest) = Manifest::read(&dir)
                && manifest.inputs == inputs
            {
                match self.check_files(&dir, &[&manifest.kernel, &manifest.initramfs]) {
                    Ok(()) => return Ok(Some(manifest.into_image(&dir))),
                    Err(error) => progress(BuildStep::Repairing { problem: error.to_string() }),
                }
            }
        }
        Ok(None)
    }

    /// Compares an image's files with its manifest. The result is remembered as long as a file is the same, so each
    /// launch can check.
    fn check_files(&self, dir: &Utf8Path, files: &[&FileEntry]) -> Result<(), ImageError> {
        let facts = FileFacts::new(self.home.path());
        for entry in files {
            let path = dir.join(&entry.file);
            if facts.digest(&path).map_err(ImageError::io(&path))? != entry.blake3 {
                return Err(ImageError::changed(dir, entry));
            }
        }
        Ok(())
    }

    pub(super) fn load(&self, digest: &str) -> Result<Image, ImageError> {
        let dir = self.dir(digest);
        Ok(Manifest::read(&dir)?.into_image(&dir))
    }

    pub(super) fn load_any(&self, digest: &str) -> Result<AnyImage, ImageError> {
        let dir = self.dir(digest);
        if is_root(&dir) {
            return RootManifest::read(&dir)?.into_image(&dir).map(Box::new).map(AnyImage::Root);
        }
        self.load(digest).map(Box::new).map(AnyImage::Boot)
    }

    pub(super) fn dir(&self, digest: &str) -> Utf8PathBuf {
        self.home.images().join(digest)
    }

    fn names_dir(&self) -> Utf8PathBuf {
        self.home.images().join("names")
    }

    pub(super) fn resolve(&self, asked: &str) -> Result<String, ImageError> {
        if let Ok(name) = asked.parse::<ImageName>()
            && let Some(digest) = self.named(&name)
            && self.dir(&digest).is_dir()
        {
            return Ok(digest);
        }
        let mut found = Vec::new();
        if asked.len() >= DIGEST_PREFIX_BYTES_MIN {
            found = self.digests()?.into_iter().filter(|digest| digest.starts_with(asked)).collect();
        }
        match (found.pop(), found.len()) {
            (Some(digest), 0) => Ok(digest),
            (Some(_), more) => Err(ImageError::Ambiguous { asked: asked.into(), count: more + 1 }),
            (None, _) => Err(ImageError::Unknown { asked: asked.into(), known: self.known()? }),
        }
    }

    fn known(&self) -> Result<Vec<String>, ImageError> {
        Ok(self.names()?.into_keys().map(|name| name.to_string()).collect())
    }

    pub(super) fn named(&self, name: &ImageName) -> Option<String> {
        let mut text = String::new();
        let file = fs::File::open(self.names_dir().join(name.file_name())).ok()?;
        file.take(DIGEST_HEX_BYTES as u64 + 1).read_to_string(&mut text).ok()?;
        let digest = text.trim_end();
        is_digest(digest).then(|| digest.to_owned())
    }

    fn digests(&self) -> Result<Vec<String>, ImageError> {
        Ok(entries(&self.home.images())?.into_iter().filter(|name| is_digest(name)).collect())
    }
}

/// The sorted names in a directory; empty if it does not exist.
fn entries(directory: &Utf8Path) -> Result<Vec<String>, ImageError> {
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in directory.read_dir_utf8()? {
            names.push(entry?.file_name().to_owned());
        }
        names.sort();
        Ok(names)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(ImageError::io(directory)),
    }
}

/// Whether a text can be the name of an image's file.
fn is_file_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=FILE_NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(allowed) && !name.starts_with(['.', '-'])
}

/// Whether a directory has an image with a root filesystem.
pub(super) fn is_root(dir: &Utf8Path) -> bool {
    dir.join(ROOT_FILE).exists()
}

pub(super) fn is_digest(text: &str) -> bool {
    text.len() == DIGEST_HEX_BYTES && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

//! Makes an image with a root filesystem from layers.
//!
//! ```text
//!   RootBuilder ──layer(tar)──▶ one tree in memory, contents in a spool ──finish(config)──▶ root.erofs, config.json
//!                                                                                    └─▶ images/<digest>/
//! ```
//! Layers are read and never unpacked: no path in them is a path of the host. Everything is made in a partial directory,
//! so an image appears as a whole or not at all.

use std::fmt;
use std::io::{self, Read};
use std::time::{SystemTime, UNIX_EPOCH};

use camino::Utf8PathBuf;
use fs_err as fs;
use kiln_oci::{Image as OciImage, ImageConfig};
use kiln_rootfs::erofs;
use kiln_rootfs::{LayerError, Layers, Limits, Spool, SpoolError, SpoolLimits};

use super::error::ImageError;
use super::name::ImageName;
use super::root::{CONFIG_FILE, Origin, ROOT_FILE, RootImage, RootManifest};
use super::space::{self, NoSpace};
use super::store::{FileEntry, ImageStore, Manifest};
use crate::files::{Partial, private_file};

/// Permissions of a root filesystem: no program of this user writes to it by mistake.
const ROOT_MODE: u32 = 0o444;

/// Why an image can't be made from layers.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A layer of its source can't be read, or is not what the image says.
    #[error(transparent)]
    Source(#[from] kiln_oci::LayerError),
    /// A layer is refused.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The contents of files can't be stored.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The root filesystem can't be written.
    #[error("failed to write the root filesystem")]
    Write(#[from] erofs::WriteError),
    /// There is no room for the image.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// The store refuses it.
    #[error(transparent)]
    Store(#[from] ImageError),
}

impl ImportError {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Spool(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::NoSpace(_) => Some("free some space, or point `KILN_HOME` to another filesystem".into()),
            Self::Source(_) | Self::Layer(_) | Self::Write(_) => None,
        }
    }
}

/// A step of an import. Its text is for users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImportStep {
    /// Reads a layer.
    Layer {
        /// Its number; the lowest one is 1.
        number: usize,
        /// How many there are, if that is known.
        count: Option<usize>,
    },
    /// Writes the root filesystem.
    Writing {
        /// Files, directories and links in it.
        entries: u64,
    },
    /// This image exists already.
    Unchanged,
}

impl fmt::Display for ImportStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer { number, count: Some(count) } => write!(f, "reading layer {number} of {count}"),
            Self::Layer { number, count: None } => write!(f, "reading layer {number}"),
            Self::Writing { entries } => write!(f, "writing {entries} files and directories"),
            Self::Unchanged => f.write_str("nothing has changed"),
        }
    }
}

/// An image that is being made. Dropping it leaves nothing.
pub struct RootBuilder<'a> {
    store: ImageStore,
    name: ImageName,
    partial: Partial,
    layers: Layers,
    progress: &'a mut dyn FnMut(ImportStep),
}

impl ImageStore {
    /// Makes an image from the layers of one of OCI or docker.
    ///
    /// # Errors
    /// [`ImportError`]. Nothing of the image is left then.
    pub fn import(
        &self,
        name: &str,
        source: &OciImage,
        origin: Origin,
        progress: &mut dyn FnMut(ImportStep),
    ) -> Result<RootImage, ImportError> {
        let limits = Limits::default();
        let mut builder = self.root_builder(name, progress)?;
        let count = source.layers().len();
        let mut diff_ids = Vec::with_capacity(count);
        for (index, layer) in source.layers().enumerate() {
            (builder.progress)(ImportStep::Layer { number: index + 1, count: Some(count) });
            let mut reader = layer.open(limits.bytes_max)?;
            builder.layers.apply(&mut reader)?;
            // The digests are known only now. Until here the layer is only in memory and in the spool.
            diff_ids.push(reader.finish()?.diff_id.to_string());
        }
        builder.finish(&source.config, Origin { layers: diff_ids, ..origin })
    }

    /// Starts an image under a name.
    ///
    /// # Errors
    /// [`ImportError::Store`] for a bad name, or no file can be created.
    pub fn root_builder<'a>(
        &self,
        name: &str,
        progress: &'a mut dyn FnMut(ImportStep),
    ) -> Result<RootBuilder<'a>, ImportError> {
        let name: ImageName = name.parse().map_err(ImageError::from)?;
        let images = self.home.images();
        let partial = Partial::create(&images, "root").map_err(ImageError::io(&images))?;
        let spool = Spool::new(partial.path().as_std_path(), SpoolLimits::default())?;
        let layers = Layers::new(spool, Limits::default());
        Ok(RootBuilder { store: self.clone(), name, partial, layers, progress })
    }
}

impl RootBuilder<'_> {
    /// Adds a layer: a tar archive. It is read to its end.
    ///
    /// # Errors
    /// [`ImportError::Layer`] names the entry that is refused.
    pub fn layer(&mut self, number: usize, tar: &mut dyn Read) -> Result<(), ImportError> {
        (self.progress)(ImportStep::Layer { number, count: None });
        self.layers.apply(tar)?;
        Ok(())
    }

    /// Writes the image and gives it its name.
    ///
    /// # Errors
    /// [`ImportError`]
    pub fn finish(self, config: &ImageConfig, origin: Origin) -> Result<RootImage, ImportError> {
        let Self { store, name, partial, mut layers, progress } = self;
        if let Some(directory) = &config.working_dir {
            // Docker creates it, too: images rely on it.
            layers.make_directory(directory.as_bytes())?;
        }
        let (tree, spool, notes) = layers.finish();
        let entries = tree.len() as u64;
        progress(ImportStep::Writing { entries });
        let path = partial.path().join(ROOT_FILE);
        let mut file = private_file::create_new(&path).map_err(ImageError::io(&path))?;
        let written = erofs::write(&tree, &spool, &mut file, &erofs::Options::default())
            .map_err(|error| explain(&path, error))?;
        drop((tree, spool));
        set_read_only(&file).map_err(ImageError::io(&path))?;
        let root = FileEntry { file: ROOT_FILE.into(), bytes: written.bytes, blake3: hex(&written.digest) };
        let text = config.to_json(&[]);
        let config = FileEntry::of(CONFIG_FILE, &text);
        let path = partial.path().join(CONFIG_FILE);
        private_file::write_new(&path, &text).map_err(ImageError::io(&path))?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let notes = notes.lines();
        let manifest = RootManifest {
            format: Manifest::FORMAT,
            name: name.to_string(),
            digest: RootManifest::digest_of(&root, &config),
            root,
            config,
            origin: Origin { notes, ..origin },
            entries,
            warm: Vec::new(),
            created_unix_seconds: created,
        };
        let dir = store.dir(&manifest.digest);
        // Another source may have led to the same image.
        if RootManifest::read(&dir).and_then(|found| found.into_image(&dir)?.verify()).is_ok() {
            progress(ImportStep::Unchanged);
        } else {
            store.discard(&manifest.digest)?;
            let write = manifest.write(partial.path()).and_then(|()| partial.publish(&dir));
            write.map_err(ImageError::io(&dir))?;
        }
        store.replace_name(&name, &manifest.digest)?;
        Ok(RootManifest::read(&dir)?.into_image(&dir)?)
    }
}

impl fmt::Debug for RootBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootBuilder").field("name", &self.name).field("partial", &self.partial).finish_non_exhaustive()
    }
}

/// Says so if the disk is full.
fn explain(path: &Utf8PathBuf, error: erofs::WriteError) -> ImportError {
    match error {
        erofs::WriteError::Output(source) => match space::explain(path, 0, source) {
            Ok(no_space) => no_space.into(),
            Err(source) => erofs::WriteError::Output(source).into(),
        },
        other => other.into(),
    }
}

fn set_read_only(file: &fs::File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.file().set_permissions(std::fs::Permissions::from_mode(ROOT_MODE))
}

fn hex(digest: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

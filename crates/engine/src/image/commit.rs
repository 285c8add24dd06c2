//! Makes an image from another one and what a guest has changed.
//!
//! ```text
//!   root.erofs of the base ──▶ tar ──▶ layer 1 ─┐
//!   changes of the guest (tar, hostile) ─────────▶ layer 2 ─┴─▶ RootBuilder ──▶ images/<digest>/
//! ```
//! A guest sends any bytes, so its changes take the same way as a layer of a stranger.

use std::io::{self, Read, Seek as _};

use fs_err as fs;
use kiln_oci::ImageConfig;
use kiln_rootfs::erofs::{self, ReadError, ReadLimits};
use kiln_rootfs::export::{self, ExportError};

use super::error::ImageError;
use super::import::{ImportError, ImportStep};
use super::root::{Origin, RootImage};
use super::store::ImageStore;

/// Why no image can be made of changes.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The root filesystem of the base can't be read.
    #[error("failed to read the root filesystem of the image `{base}`")]
    Base {
        /// The base.
        base: String,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// It can't be copied.
    #[error("failed to copy the root filesystem of the image `{base}`")]
    Copy {
        /// The base.
        base: String,
        /// Why.
        #[source]
        source: ExportError,
    },
    /// The new image can't be made.
    #[error(transparent)]
    Import(#[from] ImportError),
}

impl CommitError {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Import(error) => error.hint(),
            Self::Base { .. } | Self::Copy { .. } => None,
        }
    }
}

impl ImageStore {
    /// Makes an image of the files of another one, and of changes as a layer on them: a tar archive. It has the lines
    /// that its base runs before a save.
    ///
    /// # Errors
    /// [`CommitError`]. Nothing of the image is left then.
    pub fn commit(
        &self,
        name: &str,
        base: &RootImage,
        changes: &mut dyn Read,
        config: &ImageConfig,
        origin: Origin,
        progress: &mut dyn FnMut(ImportStep),
    ) -> Result<RootImage, CommitError> {
        let mut builder = self.root_builder(name, progress)?;
        let mut files = self.files_of(base)?;
        builder.layer(1, &mut files)?;
        drop(files);
        builder.layer(2, changes)?;
        let image = builder.finish(config, origin)?;
        if image.warm.is_empty() && !base.warm.is_empty() {
            self.set_warm(&image.digest, &base.warm).map_err(ImportError::from)?;
        }
        Ok(image)
    }

    /// The files of an image as an archive, in a file without a name.
    fn files_of(&self, base: &RootImage) -> Result<fs::File, CommitError> {
        let io = |error: io::Error| CommitError::Import(ImageError::io(&base.root)(error).into());
        let failed = |source| CommitError::Copy { base: base.name.clone(), source };
        let root = fs::File::open(&base.root).map_err(io)?;
        let bytes = root.metadata().map_err(io)?.len();
        let tree = erofs::read(root.file(), bytes, &ReadLimits::default())
            .map_err(|source| CommitError::Base { base: base.name.clone(), source })?;
        let cache = self.home.cache();
        fs::create_dir_all(&cache).map_err(io)?;
        let file = tempfile::tempfile_in(&cache).map_err(io)?;
        export::tar(&tree, root.file(), io::BufWriter::new(&file)).map_err(failed)?;
        let mut file = fs::File::from_parts(file, cache.as_std_path());
        file.rewind().map_err(io)?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;

    use super::super::AnyImage;
    use super::*;
    use crate::home::Home;

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, name, *content).expect("a short name");
        }
        archive.into_inner().expect("bytes")
    }

    /// Names and contents of an image's files.
    fn files(image: &RootImage) -> Vec<(String, Vec<u8>)> {
        let root = std::fs::File::open(&image.root).expect("is there");
        let tree = erofs::read(&root, image.size_bytes, &ReadLimits::default()).expect("is whole");
        let mut bytes = Vec::new();
        export::tar(&tree, &root, &mut bytes).expect("is copied");
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().expect("an archive").map(|entry| {
            let mut entry = entry.expect("an entry");
            let name = entry.path().expect("a path").display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("reads");
            (name, content)
        });
        entries.filter(|(name, _)| name != "./").collect()
    }

    #[test]
    fn changes_are_a_layer_on_the_base_and_hostile_ones_leave_nothing() {
        let place = tempfile::tempdir().expect("a directory");
        let home = Utf8Path::from_path(place.path()).expect("UTF-8").join("home");
        let store = ImageStore::new(&Home::at(&home));
        let mut silent = |_| {};
        let mut builder = store.root_builder("base", &mut silent).expect("starts");
        let lower = archive(&[("keep", b"kept"), ("gone", b"x"), ("old", b"before")]);
        builder.layer(1, &mut lower.as_slice()).expect("a layer");
        builder.finish(&ImageConfig::bare(), Origin::default()).expect("is made");
        let warm = ["true".to_owned()];
        store.set_warm("base", &warm).expect("is set");
        let base = match store.find("base").expect("is there") {
            AnyImage::Root(image) => *image,
            AnyImage::Boot(image) => panic!("{image:?}"),
        };

        let changes = archive(&[(".wh.gone", b""), ("old", b"after"), ("new", b"made")]);
        let config = ImageConfig { cmd: vec!["new".into()], ..base.config.clone() };
        let commit = |changes: &[u8]| {
            let mut silent = |_| {};
            store.commit("made", &base, &mut &*changes, &config, Origin::default(), &mut silent)
        };
        let made = commit(&changes).expect("is made");
        let named = |name: &str, content: &[u8]| (name.to_owned(), content.to_vec());
        assert_eq!(files(&made), [named("keep", b"kept"), named("new", b"made"), named("old", b"after")]);
        assert_eq!(made.config.cmd, ["new"]);
        assert_eq!(store.find("made").expect("is there").warm(), warm);
        assert_eq!(commit(&changes).expect("is made").digest, made.digest, "a function of the content");

        store.remove("made").expect("is removed");
        for hostile in [&b"no archive"[..], &archive(&[(".wh..", b"")]), &changes[..700]] {
            let error = commit(hostile).expect_err("is refused");
            assert!(matches!(error, CommitError::Import(ImportError::Layer(_))), "{error}");
        }
        let images = std::fs::read_dir(home.join("images")).expect("is there").flatten();
        let mut left: Vec<_> = images.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        left.retain(|name| name != "names");
        assert!(left.contains(&base.digest) && !left.iter().any(|name| name.contains("partial")), "{left:?}");
    }
}

//! OCI layouts, as a directory or in an archive: `index.json` names the images, `blobs/` has everything else.
//!
//! An archive of `docker save` since version 25 is one too.

use std::sync::Arc;

use crate::archive_index::ArchiveIndex;
use crate::config_check::ConfigDocument;
use crate::descend::descend;
use crate::digest::Digest;
use crate::folder::Folder;
use crate::image::{Blob, Image, Origin, blob_path, check_document};
use crate::json::{self, DOCUMENT_BYTES_MAX, Object};
use crate::layer::Expected;
use crate::manifest::{Descriptor, Document, Index};
use crate::reference::Reference;
use crate::source::{OpenError, OpenOptions};

/// The file that marks a layout.
pub(crate) const MARK: &str = "oci-layout";
const INDEX: &str = "index.json";
/// Annotations that have the name of an image: the whole one as docker writes it, and the one of OCI, which is often
/// only a tag.
pub(crate) const WHOLE_NAME: &str = "io.containerd.image.name";
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Where a layout is.
#[derive(Debug, Clone)]
pub(crate) enum Layout {
    Folder(Arc<Folder>),
    Archive(Arc<ArchiveIndex>),
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mark {
    image_layout_version: String,
}

impl Layout {
    /// The image of a name, or the only one.
    pub(crate) fn image(&self, options: &OpenOptions) -> Result<Image, OpenError> {
        let Object(mark): Object<Mark> = json::read(&self.read(MARK)?).map_err(OpenError::Mark)?;
        if !mark.image_layout_version.starts_with("1.") {
            let found = mark.image_layout_version.chars().take(32).collect();
            return Err(OpenError::LayoutVersion { found });
        }
        let served = Some(crate::manifest::OCI_INDEX);
        let Document::Index(index) = Document::parse(&self.read(INDEX)?, served).map_err(OpenError::Manifest)? else {
            return Err(OpenError::Manifest(crate::manifest::ManifestError::Neither));
        };
        let chosen = select(&index, options.name.as_deref())?;
        let (digest, manifest) = descend(&chosen, options.cpu, |descriptor| self.document(descriptor))?;
        let config = ConfigDocument::parse(&self.document(&manifest.config)?).map_err(OpenError::Config)?;
        let blobs = manifest.layers.iter().map(|layer| Ok((Expected::from(layer), self.blob(&layer.digest)?)));
        let blobs = blobs.collect::<Result<_, OpenError>>()?;
        let mut image = Image::new(Origin::Layout, config, blobs, options.cpu).map_err(OpenError::Config)?;
        image.names = chosen.manifests.iter().flat_map(names_of).map(str::to_owned).collect();
        image.names.dedup();
        image.manifest_digest = Some(digest);
        image.config_digest = Some(manifest.config.digest);
        Ok(image)
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, OpenError> {
        check_document(descriptor, self.read(&blob_path(&descriptor.digest))?).map_err(OpenError::Document)
    }

    fn read(&self, path: &str) -> Result<Vec<u8>, OpenError> {
        let limit = DOCUMENT_BYTES_MAX as u64;
        Ok(match self {
            Self::Folder(folder) => folder.read(path, limit)?,
            Self::Archive(index) => index.read(path, limit)?,
        })
    }

    /// A layer. That it exists is checked now, so that a layout that is not whole fails at once.
    fn blob(&self, digest: &Digest) -> Result<Blob, OpenError> {
        let path = blob_path(digest);
        Ok(match self {
            Self::Folder(folder) => {
                folder.file(&path)?;
                Blob::File { folder: Arc::clone(folder), path }
            }
            Self::Archive(index) => Blob::Span { file: index.whole().0, span: index.find(&path)?.0 },
        })
    }
}

/// The manifests of one image. Those with the same name, or all without a name, are one image for several platforms.
fn select(index: &Index, name: Option<&str>) -> Result<Index, OpenError> {
    let is_named = |manifest: &&Descriptor| name.is_none_or(|name| has_name(manifest, name));
    let manifests: Vec<Descriptor> = index.manifests.iter().filter(is_named).cloned().collect();
    let all_names = || {
        let mut names: Vec<String> = index.manifests.iter().flat_map(names_of).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        names
    };
    match (manifests.as_slice(), name) {
        ([], Some(name)) => Err(OpenError::NoSuchName { name: name.to_owned(), names: all_names() }),
        ([], None) => Err(OpenError::Empty),
        ([first, rest @ ..], _) => {
            let is_same = |other: &Descriptor| {
                other.digest == first.digest || names_of(other).eq(names_of(first)) && other.platform != first.platform
            };
            if !rest.iter().all(is_same) {
                return Err(OpenError::SeveralImages { names: all_names() });
            }
            Ok(Index { manifests })
        }
    }
}

fn names_of(descriptor: &Descriptor) -> impl Iterator<Item = &str> {
    [WHOLE_NAME, REF_NAME].into_iter().filter_map(|key| descriptor.annotations.get(key)).map(String::as_str)
}

fn has_name(descriptor: &Descriptor, wanted: &str) -> bool {
    let reference: Option<Reference> = wanted.parse().ok();
    let is_same = |name: &str| {
        let parsed: Option<Reference> = name.parse().ok();
        name == wanted || (parsed.is_some() && parsed == reference)
    };
    names_of(descriptor).any(is_same)
}

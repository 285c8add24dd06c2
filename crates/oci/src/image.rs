//! An image that was found: its configuration, and where its layers are.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use crate::archive_index::{Span, SpanReader};
use crate::config::ImageConfig;
use crate::config_check::{ConfigDocument, ConfigError};
use crate::digest::Digest;
use crate::folder::Folder;
use crate::layer::{Expected, LayerError, LayerReader};
use crate::manifest::Descriptor;
use crate::platform::CpuLevel;

/// Where an image was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// In a registry.
    Registry,
    /// In an OCI layout, as a directory or an archive.
    Layout,
    /// In an archive of `docker save`.
    DockerArchive,
    /// It is the file system alone, as an archive. There is no configuration.
    RootArchive,
}

/// An image: what to run, and its layers.
#[derive(Debug, Clone)]
pub struct Image {
    /// Where it was found.
    pub origin: Origin,
    /// Its names there, as they are written there.
    pub names: Vec<String>,
    /// Digest of its manifest, if it has one. This is what a registry knows it by.
    pub manifest_digest: Option<Digest>,
    /// Digest of its configuration, if it has one. Docker shows it as the image's id.
    pub config_digest: Option<Digest>,
    /// What to run.
    pub config: ImageConfig,
    /// What was ignored, for the user.
    pub notes: Vec<String>,
    pub(crate) layers: Vec<Layer>,
}

/// A layer of an image: a tar archive, maybe compressed.
#[derive(Debug, Clone)]
pub struct Layer {
    expected: Expected,
    blob: Blob,
}

/// Where the bytes of a layer are.
#[derive(Debug, Clone)]
pub(crate) enum Blob {
    /// In a file below a directory.
    File { folder: Arc<Folder>, path: String },
    /// In a part of an archive.
    Span { file: Arc<File>, span: Span },
}

/// The bytes of a layer as they are stored.
#[derive(Debug)]
pub struct BlobReader(Inner);

#[derive(Debug)]
enum Inner {
    File(File),
    Span(SpanReader),
}

impl Image {
    /// The layers, the lowest first.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = &Layer> {
        self.layers.iter()
    }

    /// Length of all layers as they are stored, as far as it is known.
    pub fn packed_bytes(&self) -> u64 {
        self.layers.iter().filter_map(|layer| layer.expected.size).fold(0, u64::saturating_add)
    }

    /// An image of a manifest, after its configuration was compared with its layers and the CPU.
    pub(crate) fn new(
        origin: Origin,
        config: ConfigDocument,
        blobs: Vec<(Expected, Blob)>,
        cpu: CpuLevel,
    ) -> Result<Self, ConfigError> {
        config.check(blobs.len(), cpu)?;
        let layers = blobs.into_iter().zip(config.diff_ids).map(|((expected, blob), diff_id)| {
            let expected = Expected { diff_id: Some(diff_id), ..expected };
            Layer { expected, blob }
        });
        Ok(Self {
            origin,
            names: Vec::new(),
            manifest_digest: None,
            config_digest: None,
            config: config.config,
            notes: config.notes,
            layers: layers.collect(),
        })
    }

    /// A file system alone.
    pub(crate) fn of_root(file: Arc<File>, span: Span) -> Self {
        let expected = Expected { size: Some(span.bytes), ..Expected::default() };
        Self {
            origin: Origin::RootArchive,
            names: Vec::new(),
            manifest_digest: None,
            config_digest: None,
            config: ImageConfig::bare(),
            notes: Vec::new(),
            layers: vec![Layer { expected, blob: Blob::Span { file, span } }],
        }
    }
}

impl Layer {
    /// Digest of its content, if the image has one. It identifies what the layer does.
    pub fn diff_id(&self) -> Option<&Digest> {
        self.expected.diff_id.as_ref()
    }

    /// Digest of the layer as it is stored, if it is known.
    pub fn digest(&self) -> Option<&Digest> {
        self.expected.digest.as_ref()
    }

    /// Length of the layer as it is stored, if it is known.
    pub fn packed_bytes(&self) -> Option<u64> {
        self.expected.size
    }

    /// The layer's tar archive. It may unpack to at most `unpacked_bytes_max`. Read it to its end, or call
    /// [`LayerReader::finish`]: only then was it compared with its digests.
    ///
    /// # Errors
    /// If the layer can't be opened, or is in a format that Kiln does not unpack.
    pub fn open(&self, unpacked_bytes_max: u64) -> Result<LayerReader<BlobReader>, LayerError> {
        let reader = match &self.blob {
            Blob::File { folder, path } => {
                let file = folder.file(path).map_err(|error| LayerError::Read(io::Error::other(error)))?;
                Inner::File(file)
            }
            Blob::Span { file, span } => Inner::Span(SpanReader::new(Arc::clone(file), *span)),
        };
        LayerReader::new(BlobReader(reader), self.expected.clone(), unpacked_bytes_max)
    }
}

impl Read for BlobReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::File(file) => file.read(into),
            Inner::Span(span) => span.read(into),
        }
    }
}

/// What a descriptor promises of its blob.
impl From<&Descriptor> for Expected {
    fn from(descriptor: &Descriptor) -> Self {
        Self { size: Some(descriptor.size), digest: Some(descriptor.digest.clone()), diff_id: None }
    }
}

/// The path of a blob in a layout, and in a cache.
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// A document is compared with its descriptor before it is parsed.
pub(crate) fn check_document(descriptor: &Descriptor, bytes: Vec<u8>) -> Result<Vec<u8>, DocumentError> {
    if bytes.len() as u64 != descriptor.size {
        let (digest, found) = (descriptor.digest.clone(), bytes.len() as u64);
        return Err(DocumentError::Size { digest, expected: descriptor.size, found });
    }
    if !descriptor.digest.matches(&bytes) {
        return Err(DocumentError::Digest { digest: descriptor.digest.clone() });
    }
    Ok(bytes)
}

/// Why a manifest or configuration is not what its descriptor promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Its length is wrong.
    #[error("`{digest}` has {found} bytes, not {expected}")]
    Size {
        /// Its digest.
        digest: Digest,
        /// Its length according to its descriptor.
        expected: u64,
        /// Its length.
        found: u64,
    },
    /// Its content is wrong.
    #[error("`{digest}` has another digest than its name")]
    Digest {
        /// The digest that it should have.
        digest: Digest,
    },
}

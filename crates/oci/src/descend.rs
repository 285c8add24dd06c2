//! From a document to one manifest: through at most two indexes, by the platform.

use crate::choice::PlatformError;
use crate::digest::Digest;
use crate::manifest::{Descriptor, Document, INDEX_DEPTH_MAX, Index, Manifest, ManifestError};
use crate::platform::CpuLevel;

/// Why no manifest was reached.
#[derive(Debug, thiserror::Error)]
pub enum DescendError {
    /// A document is not what it should be.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// No image is for this machine.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// Too many indexes follow each other.
    #[error("more than {INDEX_DEPTH_MAX} indexes follow each other")]
    TooDeep,
}

/// The manifest that the index leads to, and its digest. `fetch` returns a document that was compared with its
/// descriptor.
pub(crate) fn descend<E: From<DescendError>>(
    first: &Index,
    cpu: CpuLevel,
    mut fetch: impl FnMut(&Descriptor) -> Result<Vec<u8>, E>,
) -> Result<(Digest, Manifest), E> {
    let mut index = first.clone();
    for _ in 0..INDEX_DEPTH_MAX {
        let chosen = index.choose(cpu).map_err(DescendError::from)?;
        let bytes = fetch(chosen)?;
        match Document::parse(&bytes, Some(&chosen.media_type)).map_err(DescendError::from)? {
            Document::Manifest(manifest) => return Ok((chosen.digest.clone(), manifest)),
            Document::Index(inner) => index = inner,
        }
    }
    Err(DescendError::TooDeep.into())
}

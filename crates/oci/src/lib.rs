//! Images of OCI and docker: where they are, what they say, and their layers as streams whose digests are checked.
//!
//! ```text
//!   registry, layout, archive ──▶ manifest, config ──▶ Image ──▶ Layer ──▶ tar bytes, digests compared at the end
//! ```
//! Everything that is read here was written by a stranger. Documents are bounded and refused if two programs could read
//! them differently; blobs are compared with their digests while they are read. Nothing here runs a file of an image or
//! opens a path of one on the host.

#![forbid(unsafe_code)]

mod archive_index;
mod choice;
mod compression;
mod config;
mod config_change;
mod config_check;
mod config_document;
mod descend;
mod digest;
mod docker_archive;
mod export;
mod folder;
mod image;
mod json;
mod layer;
mod layout;
mod manifest;
mod open;
mod platform;
mod reference;
mod registry;
mod signal;
mod source;
#[cfg(test)]
mod texts;
mod user;

pub use archive_index::{IndexError, MEMBERS_MAX};
pub use choice::PlatformError;
pub use compression::{Compression, UnknownCompression, Unpacked, XZ_MEMORY_BYTES_MAX, ZSTD_WINDOW_BYTES_MAX};
pub use config::{HealthTest, Healthcheck, History, ImageConfig, PATH_DEFAULT};
pub use config_change::ChangeError;
pub use config_check::{ConfigDocument, ConfigError, STRING_BYTES_MAX, STRINGS_BYTES_MAX, STRINGS_MAX};
pub use descend::DescendError;
pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use export::{ExportError, Exported, write_archive, write_layout};
pub use folder::FileError;
pub use image::{BlobReader, DocumentError, Image, Layer, Origin};
pub use json::{DEPTH_MAX, DOCUMENT_BYTES_MAX, JsonError};
pub use layer::{Expected, LayerError, LayerReader, LayerSums};
pub use manifest::{
    DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Document, INDEX_DEPTH_MAX, Index, LAYERS_MAX, Manifest, ManifestError,
    OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST,
};
pub use platform::{CpuLevel, Platform};
pub use reference::{DEFAULT_REGISTRY, DEFAULT_TAG, REFERENCE_BYTES_MAX, Reference, ReferenceError};
pub use registry::{
    BlobCache, CacheError, Credentials, CredentialsError, LayerProgress, Location, LocationError, MinimumRate,
    Progress, PullError, PullOptions, Pulled, RetryOptions, docker_config_path, pull, resolve,
};
pub use signal::{Signal, SignalError};
pub use source::{ARCHIVE_BYTES_MAX, OpenError, OpenOptions, Source};
pub use user::{Account, ID_MAX, User, UserError};

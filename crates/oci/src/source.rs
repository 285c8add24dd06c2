//! Where an image is, how to open it, and why it can't be opened.

use std::io;
use std::path::PathBuf;

use crate::archive_index::IndexError;
use crate::config_check::ConfigError;
use crate::descend::DescendError;
use crate::folder::FileError;
use crate::image::DocumentError;
use crate::json::JsonError;
use crate::manifest::ManifestError;
use crate::platform::CpuLevel;
use crate::reference::{Reference, ReferenceError};

/// How much a compressed archive may unpack to, if the caller does not decide.
pub const ARCHIVE_BYTES_MAX: u64 = 32 << 30;
/// Names of images that an error lists.
const LISTED_MAX: usize = 16;
/// Characters of each of them.
const LISTED_CHARS_MAX: usize = 128;

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In a registry.
    Registry(Reference),
    /// In a directory with an OCI layout.
    Folder(PathBuf),
    /// In an archive: an OCI layout, one of docker, or a file system.
    Archive(PathBuf),
}

/// How to open an image.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The name of the image, if there are several. It is a tag, or a whole reference.
    pub name: Option<String>,
    /// The CPU of the VMs.
    pub cpu: CpuLevel,
    /// A directory for the unpacked form of a compressed archive. Nothing in it outlives the [`Image`].
    pub scratch: PathBuf,
    /// How much a compressed archive may unpack to.
    pub archive_bytes_max: u64,
}

/// Why an image can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The text is neither a path that exists nor a reference.
    #[error("`{}` is neither a file, nor a directory, nor the name of an image", .text.escape_debug())]
    Guess {
        /// The text.
        text: String,
        /// Why it is not a reference.
        source: ReferenceError,
    },
    /// A file can't be opened or is not regular.
    #[error(transparent)]
    File(#[from] FileError),
    /// The archive can't be used.
    #[error(transparent)]
    Archive(#[from] IndexError),
    /// A compressed archive can't be unpacked.
    #[error("failed to unpack `{}`", .path.display())]
    Unpack {
        /// The archive.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// A compressed archive unpacks to too much.
    #[error("`{}` unpacks to more than {limit} bytes", .path.display())]
    TooLarge {
        /// The archive.
        path: PathBuf,
        /// The bound.
        limit: u64,
    },
    /// The unpacked form can't be kept.
    #[error("failed to keep the unpacked archive in `{}`", .path.display())]
    Spool {
        /// The directory.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// `oci-layout` is malformed.
    #[error("`oci-layout` is malformed")]
    Mark(#[source] JsonError),
    /// The layout has a version that does not exist yet.
    #[error("the layout has the version `{}`, not 1", .found.escape_debug())]
    LayoutVersion {
        /// The version.
        found: String,
    },
    /// `manifest.json` is malformed.
    #[error("`manifest.json` is malformed")]
    DockerManifest(#[source] JsonError),
    /// An index or manifest is refused.
    #[error(transparent)]
    Manifest(ManifestError),
    /// No manifest was reached.
    #[error(transparent)]
    Descend(#[from] DescendError),
    /// A document is not what its digest promises.
    #[error(transparent)]
    Document(DocumentError),
    /// The configuration is refused.
    #[error(transparent)]
    Config(ConfigError),
    /// There is no image.
    #[error("there is no image in it")]
    Empty,
    /// There are several, and no name was given.
    #[error("there are several images in it: {}", listed(.names))]
    SeveralImages {
        /// Their names.
        names: Vec<String>,
    },
    /// There is no image of the name.
    #[error("there is no image `{}` in it; there is {}", .name.escape_debug(), listed(.names))]
    NoSuchName {
        /// The name.
        name: String,
        /// The names that there are.
        names: Vec<String>,
    },
}

impl OpenError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::SeveralImages { .. } => Some("choose one with `--tag`"),
            Self::Manifest(error) | Self::Descend(DescendError::Manifest(error)) => error.hint(),
            Self::Guess { source, .. } => source.hint(),
            _ => None,
        }
    }
}

impl Source {
    /// Where a text points to: an existing file or directory, or else a reference. A text that starts with `docker://`,
    /// `oci:`, `oci-archive:` or `docker-archive:`, or looks like a path, is not guessed.
    ///
    /// # Errors
    /// If it is something else.
    pub fn guess(text: &str) -> Result<Self, OpenError> {
        if let Some(reference) = text.strip_prefix("docker://") {
            return reference.parse().map(Self::Registry).map_err(|source| guess_failed(text, source));
        }
        if let Some(path) = text.strip_prefix("oci:") {
            return Ok(Self::Folder(path.into()));
        }
        let archive = ["oci-archive:", "docker-archive:"].iter().find_map(|prefix| text.strip_prefix(prefix));
        if let Some(path) = archive {
            return Ok(Self::Archive(path.into()));
        }
        match std::fs::metadata(text) {
            Ok(found) if found.is_dir() => return Ok(Self::Folder(text.into())),
            Ok(_) => return Ok(Self::Archive(text.into())),
            Err(source) if text.starts_with(['/', '.']) => {
                return Err(FileError::Open { path: text.into(), source }.into());
            }
            Err(_) => {}
        }
        text.parse().map(Self::Registry).map_err(|source| guess_failed(text, source))
    }
}

fn guess_failed(text: &str, source: ReferenceError) -> OpenError {
    OpenError::Guess { text: text.chars().take(LISTED_CHARS_MAX).collect(), source }
}

impl OpenOptions {
    /// The only image, for any CPU.
    pub fn new(scratch: impl Into<PathBuf>) -> Self {
        Self { name: None, cpu: CpuLevel::V1, scratch: scratch.into(), archive_bytes_max: ARCHIVE_BYTES_MAX }
    }
}

fn listed(names: &[String]) -> String {
    let shown = |name: &String| name.chars().take(LISTED_CHARS_MAX).flat_map(char::escape_debug).collect::<String>();
    let list: Vec<String> = names.iter().take(LISTED_MAX).map(shown).collect();
    match names.len() {
        0 => "none with a name".to_owned(),
        count if count > LISTED_MAX => format!("{} and {} more", list.join(", "), count - LISTED_MAX),
        _ => list.join(", "),
    }
}

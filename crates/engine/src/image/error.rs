//! Why an image was not found, built or removed.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};

use super::cpio::TooLarge;
use super::modules::ModulesError;
use super::name::BadName;
use super::packages::SourceError;
use super::recipe::MINI;
use super::space::NoSpace;
use super::store::FileEntry;
use super::warm::{WARM_BYTES_MAX, WARM_LINES_MAX};

/// Why an image was not found, built or removed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No image has that name or digest.
    #[error("there is no image `{asked}` {}", known_words(known))]
    Unknown {
        /// The requested name or digest.
        asked: String,
        /// The existing names.
        known: Vec<String>,
    },
    /// Several digests begin with this.
    #[error("the digests of {count} images begin with `{asked}`")]
    Ambiguous {
        /// The requested digits.
        asked: String,
        /// The number of these images.
        count: usize,
    },
    /// A text that is not a name.
    #[error(transparent)]
    BadName(#[from] BadName),
    /// It has a root filesystem and no kernel.
    #[error("the image `{name}` has no kernel of its own")]
    NoBoot {
        /// Its name.
        name: String,
    },
    /// The disk of a VM is not the root of the image that it names.
    #[error("the VM's root `{disk}` is not that of the image `{digest}`")]
    OtherRoot {
        /// Digest of the image.
        digest: String,
        /// The disk.
        disk: Utf8PathBuf,
    },
    /// An image does not match its manifest.
    #[error("the image in `{dir}` is damaged: {problem}")]
    Damaged {
        /// Its directory.
        dir: Utf8PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The agent can't be the first program of a guest.
    #[error("the agent `{path}` {problem}")]
    Agent {
        /// The agent's path.
        path: Utf8PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The kernel or busybox was not found.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The kernel's file is not a kernel.
    #[error("`{release}` is not a Linux kernel for x86-64")]
    NoKernel {
        /// Its release.
        release: String,
    },
    /// The kernel's modules can't be used.
    #[error("the kernel `{release}` can't be used: {problem}")]
    Modules {
        /// The kernel.
        release: String,
        /// What is wrong with them.
        problem: String,
    },
    /// A file does not fit into an initramfs.
    #[error("the image can't be built: {problem}")]
    TooLarge {
        /// The file, and why.
        problem: String,
    },
    /// An image boots with none of the sizes that were tried.
    #[error("the image `{image}` does not boot, not even with {memory_mib} MiB: {problem}")]
    DoesNotBoot {
        /// The image's name.
        image: String,
        /// The largest size that was tried.
        memory_mib: u64,
        /// How the last attempt ended.
        problem: String,
    },
    /// Too many lines to run before the save, or too long ones.
    #[error("an image keeps at most {WARM_LINES_MAX} lines with {WARM_BYTES_MAX} bytes to run before the save")]
    Warm,
    /// There is no room for the image.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// Another build of the same image takes too long.
    #[error("another build of `{name}` did not finish within {waited:?}: its lock is `{lock}`")]
    Busy {
        /// The image.
        name: String,
        /// The file that the other build has locked.
        lock: Utf8PathBuf,
        /// The time that this build waited.
        waited: std::time::Duration,
    },
    /// A file can't be read or written.
    #[error("failed to read or write `{path}`")]
    Io {
        /// The file or directory.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn known_words(known: &[String]) -> String {
    if known.is_empty() { "(none is built yet)".into() } else { format!("(there are: {})", known.join(", ")) }
}

impl ImageError {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { .. } | Self::Damaged { .. } => Some(format!("kiln image build {MINI}")),
            Self::NoSpace(_) => Some("free some space, or point `KILN_HOME` to another filesystem".into()),
            Self::Source(SourceError::NoSpace(_)) => {
                Some("free some space, or point `KILN_HOME` to another filesystem".into())
            }
            Self::Source(source) => source.hint().map(str::to_owned),
            Self::Agent { .. } => Some("RUSTFLAGS=\"-C target-feature=+crt-static\" builds a static agent".into()),
            _ => None,
        }
    }

    pub(super) fn damaged(dir: &Utf8Path, problem: String) -> Self {
        Self::Damaged { dir: dir.into(), problem }
    }

    pub(super) fn changed(dir: &Utf8Path, entry: &FileEntry) -> Self {
        Self::Damaged { dir: dir.into(), problem: format!("`{}` is not what was built", entry.file) }
    }

    pub(super) fn modules(release: &str, error: &ModulesError) -> Self {
        let problem = match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        Self::Modules { release: release.into(), problem }
    }

    pub(super) fn io(path: &Utf8Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }
}

impl From<TooLarge> for ImageError {
    fn from(error: TooLarge) -> Self {
        Self::TooLarge { problem: error.to_string() }
    }
}

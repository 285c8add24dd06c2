//! Why a kernel is not found, not accepted or can't be used.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use kiln_rootfs::{SpoolError, erofs};

use super::name::BadKernelName;
use super::needs::{self, Missing, Purpose};
use crate::image::modules::ModulesError;
use crate::image::{CommandError, NoSpace, SourceError};

/// Why a kernel is not found, not accepted or can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No kernel has that name or digest.
    #[error("there is no kernel `{asked}` {}", known_words(known))]
    Unknown {
        /// What was asked for.
        asked: String,
        /// The existing names.
        known: Vec<String>,
    },
    /// Several kernels could be meant.
    #[error("`{asked}` is the name of several kernels: {}", found.join(", "))]
    Ambiguous {
        /// What was asked for.
        asked: String,
        /// The kernels.
        found: Vec<String>,
    },
    /// A text that is not a name.
    #[error(transparent)]
    BadName(#[from] BadKernelName),
    /// The package was not found or can't be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The file is not a kernel.
    #[error("`{path}` is not a Linux kernel for x86-64, and not a Debian package of one")]
    NotAKernel {
        /// The file.
        path: Utf8PathBuf,
    },
    /// The kernel does not say which release it is.
    #[error("the kernel `{path}` does not name its release, and without modules nothing else does")]
    NoRelease {
        /// The file.
        path: Utf8PathBuf,
    },
    /// Nothing says what the kernel has.
    #[error(
        "the kernel `{release}` can't be checked: it holds no configuration, and there is no list of what is built in"
    )]
    NoConfig {
        /// Its release.
        release: String,
    },
    /// A file is not a configuration.
    #[error("`{path}` is not the configuration of a kernel")]
    BadConfig {
        /// The file.
        path: Utf8PathBuf,
    },
    /// The kernel lacks options.
    #[error("the kernel `{release}` lacks what Kiln needs {purpose}: {}", needs::line(missing))]
    Lacks {
        /// Its release.
        release: String,
        /// What for.
        purpose: Purpose,
        /// The options.
        missing: Vec<Missing>,
    },
    /// A directory has no modules.
    #[error("`{path}` is not the directory of a kernel's modules")]
    NoModules {
        /// The directory.
        path: Utf8PathBuf,
    },
    /// Modules can't be read.
    #[error("the modules of the kernel `{release}` can't be used: {problem}")]
    Modules {
        /// The kernel.
        release: String,
        /// What is wrong with them.
        problem: String,
    },
    /// The kernel does not have a module.
    #[error("the kernel `{release}` has no module `{module}`")]
    NoModule {
        /// The kernel.
        release: String,
        /// The module.
        module: String,
    },
    /// A module was built for another kernel.
    #[error("the module `{module}` is of the kernel `{found}`, not of `{release}`")]
    OtherModules {
        /// Its path.
        module: Utf8PathBuf,
        /// The release that it was built for.
        found: String,
        /// The kernel's release.
        release: String,
    },
    /// The modules are too large, or the disk is full.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The filesystem of the modules can't be written.
    #[error("failed to write the modules")]
    Write(#[from] erofs::WriteError),
    /// There is no room for the kernel.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// A kernel does not match its record.
    #[error("the kernel in `{dir}` is damaged: {problem}")]
    Damaged {
        /// Its directory.
        dir: Utf8PathBuf,
        /// What is wrong.
        problem: String,
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
    if known.is_empty() { "(none was added yet)".into() } else { format!("(there are: {})", known.join(", ")) }
}

impl KernelError {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        let space = "free some space, or point `KILN_HOME` to another filesystem";
        match self {
            Self::Unknown { asked, .. } if asked.starts_with(|c: char| c.is_ascii_digit()) => {
                Some(format!("kiln kernel add debian:{asked}"))
            }
            Self::Unknown { asked, .. } if asked.starts_with("debian:") => Some(format!("kiln kernel add {asked}")),
            Self::Unknown { .. } => Some("kiln kernel ls lists kernels, kiln kernel add adds one".into()),
            Self::Ambiguous { .. } => Some("kiln kernel ls shows their names and digests".into()),
            Self::Source(error) => error.hint().map(str::to_owned),
            Self::NoRelease { .. } | Self::NoModules { .. } => {
                Some("--modules DIR, where DIR is lib/modules/RELEASE, or has lib/modules/RELEASE below it".into())
            }
            Self::NoConfig { .. } => Some("--config FILE, which is the `.config` of its build".into()),
            Self::Lacks { missing, .. } if missing.iter().any(|one| one.module.is_some()) => {
                Some("--modules DIR adds its modules, or set the options to y and build it again".into())
            }
            Self::Lacks { .. } => Some("set the options and build it again, or use another kernel".into()),
            Self::OtherModules { .. } => Some("--modules must be the directory of this very kernel".into()),
            Self::Damaged { .. } => Some("kiln kernel rm --force removes it; then add it again".into()),
            Self::NoSpace(_) => Some(space.into()),
            Self::Spool(error) => error.hint(),
            _ => None,
        }
    }

    /// Whether it is because [`cancel_programs`](crate::image::cancel_programs) was called.
    pub fn is_interrupt(&self) -> bool {
        matches!(self, Self::Source(SourceError::Command(CommandError::Cancelled)))
    }

    pub(super) fn io(path: &Utf8Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }

    pub(super) fn damaged(dir: &Utf8Path, problem: impl Into<String>) -> Self {
        Self::Damaged { dir: dir.into(), problem: problem.into() }
    }

    pub(super) fn modules(release: &str, error: &ModulesError) -> Self {
        let problem = match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        Self::Modules { release: release.into(), problem }
    }
}

//! Errors of volumes.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};

use super::name::VolumeName;
use crate::error::ErrorKind;
use crate::failpoint::FailPoint;
use crate::image::CommandError;

/// Why something can't be done with a volume. It is as it was before, unless the error describes more.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No volume has the name.
    #[error("the volume `{0}` does not exist")]
    Unknown(VolumeName),
    /// A volume has the name.
    #[error("the volume `{0}` already exists")]
    Exists(VolumeName),
    /// A process uses it in a way that excludes this one.
    #[error("the volume `{name}` is in use{}", users(by))]
    InUse {
        /// Its name.
        name: VolumeName,
        /// The processes that use it. Empty if they are not known.
        by: Vec<u32>,
    },
    /// A size that no volume can have.
    #[error("a volume of {bytes} bytes is not possible: it must have {min} to {max} bytes")]
    Size {
        /// The size.
        bytes: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// Volumes grow, but never shrink.
    #[error("the volume `{name}` can't shrink from {now} to {wanted} bytes")]
    Shrink {
        /// Its name.
        name: VolumeName,
        /// Its size.
        now: u64,
        /// The size that was requested.
        wanted: u64,
    },
    /// Its files are not those of a volume.
    #[error("the volume `{name}` is broken: {problem}")]
    Broken {
        /// Its name.
        name: VolumeName,
        /// What is wrong, as text for users.
        problem: String,
    },
    /// e2fsck can't repair its filesystem without a decision of its user.
    #[error("the filesystem of the volume `{name}` is damaged, and e2fsck does not repair it on its own: {found}")]
    Damaged {
        /// Its name.
        name: VolumeName,
        /// What e2fsck printed.
        found: String,
    },
    /// It has no filesystem to mount.
    #[error("the volume `{0}` has no ext4 filesystem: it is a raw disk")]
    NotMountable(VolumeName),
    /// A file can't become a volume.
    #[error("`{path}` can't become a volume: {problem}")]
    NotImportable {
        /// The file.
        path: Utf8PathBuf,
        /// Why, as text for users.
        problem: String,
    },
    /// An export never replaces a file.
    #[error("`{0}` already exists")]
    TargetExists(Utf8PathBuf),
    /// e2fsprogs is not installed.
    #[error("`{program}` was not found: filesystems are made, checked and grown by the package e2fsprogs")]
    NoTools {
        /// The program.
        program: String,
    },
    /// A program of e2fsprogs failed.
    #[error("a program of e2fsprogs failed")]
    Tool(#[source] CommandError),
    /// The disk of the host is full.
    #[error("no space left to {doing} `{path}`")]
    NoSpace {
        /// The step.
        doing: &'static str,
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file can't be read or written.
    #[error("failed to {doing} `{path}`")]
    Io {
        /// The step.
        doing: &'static str,
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A test made a step fail.
    #[error(transparent)]
    Test(#[from] FailPoint),
}

impl VolumeError {
    /// An error with a file.
    pub(super) fn io(doing: &'static str, path: impl AsRef<Utf8Path>, source: io::Error) -> Self {
        let path = path.as_ref().to_owned();
        match ErrorKind::of_io(&source) {
            ErrorKind::NoSpace => Self::NoSpace { doing, path, source },
            _ => Self::Io { doing, path, source },
        }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown(_) => ErrorKind::NotFound,
            Self::InUse { .. } => ErrorKind::Busy,
            Self::Exists(_)
            | Self::TargetExists(_)
            | Self::Size { .. }
            | Self::Shrink { .. }
            | Self::NotMountable(_)
            | Self::NotImportable { .. } => ErrorKind::Invalid,
            Self::Broken { .. } | Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::NoTools { .. } => ErrorKind::HostLacks,
            Self::NoSpace { .. } => ErrorKind::NoSpace,
            Self::Tool(_) | Self::Test(_) => ErrorKind::Io,
            Self::Io { source, .. } => ErrorKind::of_io(source),
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unknown(name) => format!("kiln volume ls lists the volumes, kiln volume create {name} makes it"),
            Self::Exists(_) => "choose another name, or remove it first: kiln volume rm NAME".into(),
            Self::InUse { .. } => {
                "one VM can write to a volume, or any number can read it (NAME:/DIR:ro); wait for its end".into()
            }
            Self::Shrink { name, .. } => {
                format!("create a smaller volume and copy the files in a VM that has both; `{name}` is unchanged")
            }
            Self::Broken { name, .. } => format!("kiln volume rm {name} removes it"),
            Self::Damaged { name, .. } => format!(
                "keep a copy and repair that: kiln volume export {name} copy.img && e2fsck -fy copy.img && kiln volume \
                 import copy.img --name repaired"
            ),
            Self::NotMountable(name) => format!("attach it as a disk instead of a directory: -v {name}:disk"),
            Self::TargetExists(_) => "name a file that does not exist".into(),
            Self::NoTools { .. } => "apt-get install e2fsprogs".into(),
            Self::NoSpace { .. } => "free space on the host: kiln volume ls shows what each volume takes".into(),
            Self::Size { .. } | Self::NotImportable { .. } | Self::Tool(_) | Self::Io { .. } | Self::Test(_) => {
                return None;
            }
        })
    }
}

fn users(by: &[u32]) -> String {
    let list = by.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    match by.len() {
        0 => String::new(),
        1 => format!(" by the process {list}"),
        _ => format!(" by the processes {list}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::*;
    use crate::every_variant::{chains, every_variant};

    #[test]
    fn each_error_has_its_text_and_a_hint() {
        let name = || "data".parse::<VolumeName>().expect("a name");
        let path = || Utf8PathBuf::from("/v/data");
        let failed = || CommandError::Failed {
            command: "mke2fs -q /v/data".into(),
            status: ExitStatus::from_raw(256),
            stderr: "mke2fs: no".into(),
        };
        let errors = every_variant!(VolumeError {
            Unknown: [VolumeError::Unknown(name())],
            Exists: [VolumeError::Exists(name())],
            InUse: [
                VolumeError::InUse { name: name(), by: vec![] },
                VolumeError::InUse { name: name(), by: vec![7] },
                VolumeError::InUse { name: name(), by: vec![7, 8] },
            ],
            Size: [VolumeError::Size { bytes: 1, min: 2, max: 3 }],
            Shrink: [VolumeError::Shrink { name: name(), now: 2, wanted: 1 }],
            Broken: [VolumeError::Broken { name: name(), problem: "it has no file `data`".into() }],
            Damaged: [VolumeError::Damaged { name: name(), found: "UNEXPECTED INCONSISTENCY".into() }],
            NotMountable: [VolumeError::NotMountable(name())],
            NotImportable: [VolumeError::NotImportable { path: path(), problem: "it is a directory".into() }],
            TargetExists: [VolumeError::TargetExists(path())],
            NoTools: [VolumeError::NoTools { program: "mke2fs".into() }],
            Tool: [VolumeError::Tool(failed())],
            NoSpace: [VolumeError::io("write", path(), io::ErrorKind::StorageFull.into())],
            Io: [VolumeError::io("read", path(), io::ErrorKind::PermissionDenied.into())],
            Test: [VolumeError::Test(FailPoint("volume.data"))],
        });
        let about = |error: &VolumeError| {
            [Some(error.kind().to_string()), error.hint()].into_iter().flatten().collect::<Vec<_>>()
        };
        insta::assert_snapshot!(chains(&errors, about));
    }
}

//! The source of a kernel: found, digested, unpacked.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use kiln_programs::PATH_ONLY;

use super::make::BuildError;
use crate::files::{FileFacts, private_file};
use crate::home::Home;
use crate::image::BuildStep;
use crate::image::{command, packages};

/// Unpacking 80,000 files on a slow disk.
const UNPACK_DEADLINE: Duration = Duration::from_secs(60 * 60);
/// Files of a source. Linux 6.12 has 90,000.
const FILES_MAX: usize = 1 << 20;
/// Directories below each other.
const DEPTH_MAX: usize = 64;
/// Where a package has its source.
const PACKED_PREFIX: &str = "usr/src/linux-source-";

/// What a kernel is built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildSource {
    /// Debian's package of the source of a version, such as `6.1`.
    Debian {
        /// The version.
        version: String,
    },
    /// A directory, or an archive that tar reads, with the files in one directory.
    Path(Utf8PathBuf),
}

/// A source that was found.
#[derive(Debug)]
pub(super) struct Found {
    /// A digest of it, so that the same source is not built again.
    pub(super) digest: String,
    /// Its name for users.
    pub(super) name: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Package(Utf8PathBuf),
    Archive(Utf8PathBuf),
    Directory(Utf8PathBuf),
}

impl BuildSource {
    /// Finds the source and computes its digest. For a directory, that is of the names, sizes and times of its files.
    pub(super) fn find(&self, home: &Home, progress: &mut dyn FnMut(BuildStep)) -> Result<Found, BuildError> {
        let facts = FileFacts::new(home.path());
        let place = match self {
            Self::Debian { version } => Place::Package(packages::find_source(version, &home.cache(), progress)?),
            Self::Path(path) if path.is_dir() => {
                let path = path.canonicalize_utf8().map_err(BuildError::io(path))?;
                if !path.join("Makefile").is_file() {
                    return Err(BuildError::NotASource { path });
                }
                Place::Directory(path)
            }
            Self::Path(path) if path.is_file() => {
                Place::Archive(path.canonicalize_utf8().map_err(BuildError::io(path))?)
            }
            Self::Path(path) => return Err(BuildError::NotASource { path: path.clone() }),
        };
        let (digest, name) = match &place {
            Place::Package(path) => {
                (facts.digest(path).map_err(BuildError::io(path))?, path.file_name().unwrap_or_default().to_owned())
            }
            Place::Archive(path) => (facts.digest(path).map_err(BuildError::io(path))?, path.to_string()),
            Place::Directory(path) => (directory_digest(path).map_err(BuildError::io(path))?, path.to_string()),
        };
        Ok(Found { digest, name, place })
    }
}

impl Found {
    /// The directory of the source. An archive is unpacked below `work`.
    pub(super) fn unpack(&self, work: &Utf8Path) -> Result<Utf8PathBuf, BuildError> {
        let source = work.join("source");
        match &self.place {
            Place::Directory(path) => return Ok(path.clone()),
            Place::Archive(path) => untar(path, &source)?,
            Place::Package(package) => {
                let archive = work.join("archive");
                let mut file = private_file::create_new(&archive).map_err(BuildError::io(&archive))?;
                let wanted =
                    |path: &Utf8Path| path.as_str().starts_with(PACKED_PREFIX) && path.as_str().contains(".tar");
                packages::copy_member(package, wanted, &mut file)?;
                untar(&archive, &source)?;
                fs::remove_file(&archive).map_err(BuildError::io(&archive))?;
            }
        }
        if !source.join("Makefile").is_file() {
            return Err(BuildError::NotASource { path: self.name.clone().into() });
        }
        Ok(source)
    }
}

/// Unpacks an archive of one directory. tar finds out how it is packed, and refuses paths that lead out.
fn untar(archive: &Utf8Path, directory: &Utf8Path) -> Result<(), BuildError> {
    private_file::create_dir(directory).map_err(BuildError::io(directory))?;
    let mut tar = kiln_programs::command("tar", PATH_ONLY);
    tar.args(["--extract", "--no-same-owner", "--strip-components=1", "--file", archive.as_str()]);
    command::stream(tar.args(["--directory", directory.as_str()]), UNPACK_DEADLINE, |_| Ok(()))?;
    Ok(())
}

/// Of the paths, sizes and times of all files; the history of git is left out.
fn directory_digest(directory: &Utf8Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut count = 0;
    let mut open = vec![(directory.as_std_path().to_owned(), 0)];
    while let Some((path, depth)) = open.pop() {
        let mut entries = fs::read_dir(&path)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            count += 1;
            let meta = entry.path().symlink_metadata()?;
            if meta.is_dir() && entry.file_name() != ".git" && depth < DEPTH_MAX {
                open.push((entry.path(), depth + 1));
            }
            let text = format!("{:?} {} {}.{}\n", entry.path(), meta.size(), meta.mtime(), meta.mtime_nsec());
            if !meta.is_dir() {
                hasher.update(text.as_bytes());
            }
        }
        if count > FILES_MAX {
            return Err(io::Error::other(format!("it has more than {FILES_MAX} files")));
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

//! Opens an image that is in a file or directory, whatever its form.
//!
//! ```text
//!   directory ──▶ OCI layout
//!   file ──▶ unpacked to a spool if compressed ──▶ index of members ─┬▶ `oci-layout`:    OCI layout
//!                                                                    ├▶ `manifest.json`: archive of docker
//!                                                                    └▶ neither:         a file system, one layer
//! ```

use std::fs::File;
use std::io::{self, Read, Seek as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use crate::archive_index::{ArchiveIndex, IndexError};
use crate::compression::{Compression, Unpacked};
use crate::docker_archive;
use crate::folder::{Folder, open_file};
use crate::image::Image;
use crate::layout::{self, Layout};
use crate::source::{OpenError, OpenOptions};

const BUFFER_BYTES: usize = 64 << 10;

impl Image {
    /// Opens a directory with an OCI layout.
    ///
    /// # Errors
    /// If it is not one, or the image in it is refused.
    pub fn open_folder(path: &Path, options: &OpenOptions) -> Result<Self, OpenError> {
        Layout::Folder(Arc::new(Folder::open(path)?)).image(options)
    }

    /// Opens an archive.
    ///
    /// # Errors
    /// If it can't be read, or the image in it is refused.
    pub fn open_archive(path: &Path, options: &OpenOptions) -> Result<Self, OpenError> {
        let mut file = open_file(path)?;
        let failed = |source| OpenError::Unpack { path: path.to_owned(), source };
        let compression = Unpacked::new(&file).map_err(failed)?.compression();
        file.rewind().map_err(failed)?;
        match compression {
            Compression::None => from_archive(file, options),
            _ => from_archive(spool(file, path, options)?, options),
        }
    }

    /// Reads an archive from a stream, such as stdin.
    ///
    /// # Errors
    /// See [`Image::open_archive`].
    pub fn read_archive(stream: impl Read, options: &OpenOptions) -> Result<Self, OpenError> {
        from_archive(spool(stream, Path::new("stdin"), options)?, options)
    }
}

fn from_archive(file: File, options: &OpenOptions) -> Result<Image, OpenError> {
    let index = ArchiveIndex::new(file)?;
    let (is_layout, is_docker) = (index.contains(layout::MARK), index.contains(docker_archive::MARK));
    if index.is_truncated() && (is_layout || is_docker) {
        return Err(IndexError::TooManyMembers.into());
    }
    // What has more members than that and none of these two is a file system.
    if is_layout {
        Layout::Archive(Arc::new(index)).image(options)
    } else if is_docker {
        docker_archive::image(&index, options)
    } else if let Some(name) = &options.name {
        Err(OpenError::NoSuchName { name: name.clone(), names: Vec::new() })
    } else {
        let (file, span) = index.whole();
        Ok(Image::of_root(file, span))
    }
}

/// The plain bytes of a stream, in a file without a name.
fn spool(stream: impl Read, path: &Path, options: &OpenOptions) -> Result<File, OpenError> {
    let kept = |source| OpenError::Spool { path: options.scratch.clone(), source };
    let failed = |source| OpenError::Unpack { path: path.to_owned(), source };
    let mut spool = tempfile::tempfile_in(&options.scratch).map_err(kept)?;
    let mut unpacked = Unpacked::new(stream).map_err(failed)?;
    let (mut buffer, mut left) = (vec![0; BUFFER_BYTES], options.archive_bytes_max);
    loop {
        let count = match unpacked.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        let too_large = || OpenError::TooLarge { path: path.to_owned(), limit: options.archive_bytes_max };
        left = left.checked_sub(count as u64).ok_or_else(too_large)?;
        spool.write_all(&buffer[..count]).map_err(kept)?;
    }
    spool.rewind().map_err(kept)?;
    Ok(spool)
}

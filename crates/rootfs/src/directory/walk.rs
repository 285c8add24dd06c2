//! Walks through a directory of the host, depth first, with one open descriptor for each level.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};

use super::error::DirectoryError;
use super::node::{ATTEMPTS_MAX, Buffers, ContentsError, Found, names, start};
use crate::layers::Limits;
use crate::spool::Spool;
use crate::tree::{Attributes, Body, Children, Kind, Node, NodeId, Tree};

/// Directories that a node may be below. As many descriptors are open at once.
pub const DEPTH_MAX: usize = 255;

/// What was read, and what was left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DirectoryReport {
    /// Names in all directories.
    pub entries: u64,
    /// Sockets, which lead nowhere in a guest: left out.
    pub sockets: u64,
    /// Directories and files of kernel file systems, such as `/proc`: left empty.
    pub of_the_kernel: u64,
    /// Extended attributes of kinds that no image holds, or that are orders to an overlay filesystem: left out.
    pub xattrs: u64,
}

/// Reads a directory of the host as a tree, and the contents of its files into a spool.
///
/// Mount points in it are read, too, as a bind mount with its submounts has them. Hard links are kept, holes stay holes.
/// Of the limits, those on entries, text and extended attributes count; contents are bounded by the spool.
///
/// # Errors
/// If something can't be read, a file does not stop changing, or the directory is over a limit.
pub fn read(path: &Path, spool: &mut Spool, limits: &Limits) -> Result<(Tree, DirectoryReport), DirectoryError> {
    let mut walk = Walk {
        path: path.to_owned(),
        tree: Tree::new(Attributes::default()),
        spool,
        buffers: Buffers::default(),
        links: HashMap::new(),
        left: *limits,
        limits: *limits,
        report: DirectoryReport::default(),
    };
    let root = start(path).map_err(|source| DirectoryError::of_start(path, source))?;
    let mut levels = vec![walk.root(&root)?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.next() else {
            levels.pop();
            walk.path.pop();
            continue;
        };
        let (parent, depth) = (level.id, levels.len());
        walk.path.push(OsStr::from_bytes(name.to_bytes()));
        let level = &levels[depth - 1];
        match walk.entry(level, parent, &name)? {
            Some(_) if depth > DEPTH_MAX => {
                return Err(DirectoryError::TooDeep { path: walk.path, depth_max: DEPTH_MAX });
            }
            Some(level) => levels.push(level),
            None => drop(walk.path.pop()),
        }
    }
    Ok((walk.tree, walk.report))
}

/// A directory that is being read.
struct Level {
    descriptor: OwnedFd,
    id: NodeId,
    /// Names that are left.
    names: std::vec::IntoIter<CString>,
    device: u64,
}

struct Walk<'a> {
    /// The path of what is being read, for messages.
    path: PathBuf,
    tree: Tree,
    spool: &'a mut Spool,
    buffers: Buffers,
    /// Nodes with several names, by device and inode.
    links: HashMap<(u64, u64), NodeId>,
    limits: Limits,
    /// What is left of the limits.
    left: Limits,
    report: DirectoryReport,
}

impl Walk<'_> {
    fn root(&mut self, found: &Found) -> Result<Level, DirectoryError> {
        self.tree.node_mut(Tree::ROOT).attributes = self.attributes(found)?;
        self.level(found, Tree::ROOT, None)
    }

    /// Adds a name to the tree. Returns what is to be read next if it is a directory.
    fn entry(&mut self, level: &Level, parent: NodeId, name: &CString) -> Result<Option<Level>, DirectoryError> {
        let found = Found::at(&level.descriptor, name).map_err(|error| self.unreadable(error))?;
        // A name that is gone by now could have been gone before.
        let Some(mut found) = found else { return Ok(None) };
        if found.file_type() == FileType::Socket {
            self.report.sockets += 1;
            return Ok(None);
        }
        self.report.entries += 1;
        self.take(name)?;
        let is_directory = found.file_type() == FileType::Directory;
        let linked = (!is_directory && found.stat.st_nlink > 1).then(|| found.identity());
        let known = linked.and_then(|identity| self.links.get(&identity)).copied();
        let id = match known {
            Some(id) => id,
            None => {
                let node = self.node(&mut found, level.device)?;
                let id = self.tree.add(node);
                self.links.extend(linked.map(|identity| (identity, id)));
                id
            }
        };
        self.tree.children_mut(parent).expect("it is a directory").insert(name.to_bytes().into(), id);
        if is_directory { self.level(&found, id, Some(level.device)).map(Some) } else { Ok(None) }
    }

    fn node(&mut self, found: &mut Found, device: u64) -> Result<Node, DirectoryError> {
        let (major, minor) = (rustix::fs::major(found.stat.st_rdev), rustix::fs::minor(found.stat.st_rdev));
        let kind = match found.file_type() {
            FileType::Directory => Kind::Directory(Children::new()),
            FileType::RegularFile => Kind::File(self.contents(found, device)?),
            FileType::Symlink => {
                let target = found.symlink().map_err(|error| self.unreadable(error))?;
                self.take_text(target.len())?;
                Kind::Symlink(target.into())
            }
            FileType::CharacterDevice => Kind::CharacterDevice { major, minor },
            FileType::BlockDevice => Kind::BlockDevice { major, minor },
            FileType::Fifo => Kind::Fifo,
            _ => return Err(self.unreadable(io::Error::other("its kind is unknown"))),
        };
        // After the contents, which may be read again with a later time.
        let attributes = self.attributes(found)?;
        Ok(Node { attributes, kind })
    }

    fn contents(&mut self, found: &mut Found, device: u64) -> Result<Body, DirectoryError> {
        // A file may be a mount point, too.
        if found.stat.st_dev != device && self.is_of_the_kernel(found)? {
            return self.spool.body().finish(0).map_err(|source| self.spool_error(source));
        }
        found.contents(self.spool, &mut self.buffers).map_err(|error| match error {
            ContentsError::Read(error) => self.unreadable(error),
            ContentsError::Spool(source) => self.spool_error(source),
            ContentsError::Changing => DirectoryError::Changing { path: self.path.clone(), attempts: ATTEMPTS_MAX },
        })
    }

    fn attributes(&mut self, found: &Found) -> Result<Attributes, DirectoryError> {
        let (attributes, left_out) = found.attributes(&mut self.buffers).map_err(|error| self.unreadable(error))?;
        self.report.xattrs += left_out;
        let bytes: usize = attributes.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        let left = self.left.xattr_bytes_max.checked_sub(bytes as u64);
        let bytes_max = self.limits.xattr_bytes_max;
        self.left.xattr_bytes_max =
            left.ok_or_else(|| self.too_much(format!("more than {bytes_max} bytes of extended attributes")))?;
        Ok(attributes)
    }

    /// A directory to be read. One of a kernel file system has no names.
    fn level(&mut self, found: &Found, id: NodeId, device: Option<u64>) -> Result<Level, DirectoryError> {
        let is_mounted = device != Some(found.stat.st_dev);
        let is_of_the_kernel = is_mounted && self.is_of_the_kernel(found)?;
        let descriptor = found.open(OFlags::DIRECTORY).map_err(|error| self.unreadable(error))?;
        let names = if is_of_the_kernel { Ok(Vec::new()) } else { names(&descriptor) };
        let names = names.map_err(|error| self.unreadable(error))?.into_iter();
        Ok(Level { descriptor, id, names, device: found.stat.st_dev })
    }

    fn is_of_the_kernel(&mut self, found: &Found) -> Result<bool, DirectoryError> {
        let is_of_the_kernel = found.is_of_the_kernel().map_err(|error| self.unreadable(error))?;
        self.report.of_the_kernel += u64::from(is_of_the_kernel);
        Ok(is_of_the_kernel)
    }

    fn take(&mut self, name: &CString) -> Result<(), DirectoryError> {
        let entries_max = self.limits.entries_max;
        let left = self.left.entries_max.checked_sub(1);
        self.left.entries_max = left.ok_or_else(|| self.too_much(format!("more than {entries_max} entries")))?;
        self.take_text(name.to_bytes().len())
    }

    fn take_text(&mut self, bytes: usize) -> Result<(), DirectoryError> {
        let bytes_max = self.limits.text_bytes_max;
        let left = self.left.text_bytes_max.checked_sub(bytes as u64);
        self.left.text_bytes_max =
            left.ok_or_else(|| self.too_much(format!("more than {bytes_max} bytes of names and links")))?;
        Ok(())
    }

    fn unreadable(&self, source: io::Error) -> DirectoryError {
        DirectoryError::Unreadable { path: self.path.clone(), source }
    }

    fn spool_error(&self, source: crate::spool::SpoolError) -> DirectoryError {
        DirectoryError::Spool { path: self.path.clone(), source }
    }

    fn too_much(&self, what: String) -> DirectoryError {
        DirectoryError::TooMuch { path: self.path.clone(), what }
    }
}

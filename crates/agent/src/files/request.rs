//! Starts the work of a request.

use std::sync::atomic::AtomicBool;

use kiln_wire::{Fault, FileRequest, FileStat, FilesRequest, ListPage};

use super::archive::Packer;
use super::changes::ChangesPacker;
use super::list::{list, stat};
use super::place::Root;
use super::read::Reader;
use super::remove::remove;
use super::tree::{chmod, chown, copy, mkdir, rename, symlink};
use super::unpack::{Owners, Unpacker};
use super::write::{Append, AtomicWrite};

/// A request that was started.
#[derive(Debug)]
pub enum Job {
    /// It is done.
    Answered(Answer),
    /// A file to read.
    Read(Reader),
    /// A file that needs its bytes and a commit.
    Write(AtomicWrite),
    /// A file that needs bytes for its end and a commit.
    Append(Append),
    /// A directory that needs an archive.
    Unpack(Unpacker),
    /// An archive to read.
    Pack(Packer),
    /// An archive of the root's changes to read.
    PackChanges(ChangesPacker),
}

/// The reply of a request that is done, before its `Done`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// No reply.
    Done,
    /// The status of the path.
    Stat(FileStat),
    /// A page of the directory.
    Page(ListPage),
}

/// Does the work if it needs no stream, or else opens the file. `stop` ends `remove` and `copy`, which may take long.
///
/// # Errors
/// The error of the operation.
pub fn start(request: &FilesRequest, stop: &AtomicBool) -> Result<Job, Fault> {
    let root = &Root::new(request.jail.as_ref())?;
    let answer = match &request.request {
        FileRequest::Read { path, range } => return Reader::open(root, path, *range).map(Job::Read),
        FileRequest::Write { path, mode, permissions, owner } => {
            return AtomicWrite::begin(root, path, *mode, *permissions, *owner).map(Job::Write);
        }
        FileRequest::Append { path } => return Append::begin(root, path).map(Job::Append),
        FileRequest::TarIn { path } => return Unpacker::open(root, path, Owners::Archive).map(Job::Unpack),
        FileRequest::TarOut { path } => return Packer::open(root, path).map(Job::Pack),
        FileRequest::Changes {} => return ChangesPacker::open().map(Job::PackChanges),
        FileRequest::Stat { path, follow } => return stat(root, path, *follow).map(Answer::Stat).map(Job::Answered),
        FileRequest::List { path, after, limit } => {
            return list(root, path, after.as_ref(), *limit).map(Answer::Page).map(Job::Answered);
        }
        FileRequest::Mkdir { path, parents, permissions } => mkdir(root, path, *parents, *permissions),
        FileRequest::Remove { path, recursive } => remove(root, path, *recursive, stop),
        FileRequest::Rename { from, to } => rename(root, from, to),
        FileRequest::Copy { from, to } => copy(root, from, to, stop).map(|_| ()),
        FileRequest::Symlink { target, path } => symlink(root, target, path),
        FileRequest::Chmod { path, permissions } => chmod(root, path, *permissions),
        FileRequest::Chown { path, owner } => chown(root, path, *owner),
    };
    answer.map(|()| Job::Answered(Answer::Done))
}

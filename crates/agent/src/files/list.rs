//! The status of a path, and the entries of a directory in sorted pages with bounded memory.

use std::collections::BinaryHeap;
use std::ffi::CString;
use std::os::fd::OwnedFd;

use kiln_wire::{Entry, Fault, FileKind, FileStat, ListPage, PAYLOAD_MAX, Text};
use rustix::fs::{Dir, OFlags};
use rustix::io::Errno;

use super::fault::{fault_from_errno, invalid};
use super::place::{Root, stat_at};
use super::stat::{file_stat, kind_of, size_of};

/// The most entries of one page.
pub const LIST_LIMIT_MAX: u32 = 10_000;
/// Bytes of a page's entries. A page is sent in one frame; the rest of the frame is for `next` and the JSON around
/// entries.
const PAGE_BYTES_MAX: usize = PAYLOAD_MAX - 4096;

/// The status of a path. With `follow`, symlinks at its end are followed.
///
/// # Errors
/// `not_found`, also if a symlink is followed and its target does not exist.
pub fn stat(root: &Root, path: &Text, follow: bool) -> Result<FileStat, Fault> {
    let fail = |errno: Errno| fault_from_errno(path, "stat", errno);
    let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
    let handle = root.open(path, flags, "stat")?;
    let stat = rustix::fs::fstat(&handle).map_err(fail)?;
    let target = match kind_of(&stat) {
        FileKind::Symlink => Some(link_target(&handle).map_err(fail)?),
        _ => None,
    };
    Ok(file_stat(&stat, target))
}

/// The entries of a directory whose names come after `after`, sorted by the bytes of their names.
///
/// A page ends at its limit or when a frame is full. `next` is set if names are left.
///
/// # Errors
/// `invalid_request` if the limit is outside 1 ..= [`LIST_LIMIT_MAX`]; `not_a_directory`, `not_found`.
pub fn list(root: &Root, path: &Text, after: Option<&Text>, limit: Option<u32>) -> Result<ListPage, Fault> {
    let limit = limit.unwrap_or(LIST_LIMIT_MAX);
    if limit == 0 || limit > LIST_LIMIT_MAX {
        return Err(invalid(format!("`limit` is {limit}, outside 1 ..= {LIST_LIMIT_MAX}")));
    }
    let fail = |errno: Errno| fault_from_errno(path, "list", errno);
    let directory = root.open(path, OFlags::RDONLY | OFlags::DIRECTORY, "list")?;
    let mut stream = Dir::read_from(&directory).map_err(fail)?;
    let mut first = Smallest::new(limit as usize + 1);
    while let Some(entry) = stream.read() {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        let is_after = after.is_none_or(|after| name.to_bytes() > after.as_bytes());
        if is_after && !matches!(name.to_bytes(), b"." | b"..") {
            first.offer(name.to_bytes());
        }
    }
    let mut names = first.into_sorted();
    let mut more = names.len() > limit as usize;
    names.truncate(limit as usize);

    let mut entries = Vec::with_capacity(names.len());
    let mut last = None;
    let mut bytes = 0;
    for name in names {
        let name = CString::new(name).expect("the kernel's names have no zero byte");
        // An entry that was removed since then is not listed.
        if let Some(stat) = stat_at(&directory, &name).map_err(fail)? {
            let entry = Entry { name: Text::from(name.as_bytes()), kind: kind_of(&stat), size: size_of(&stat) };
            bytes += json_bytes(&entry) + 1;
            if bytes > PAGE_BYTES_MAX {
                more = true;
                break;
            }
            entries.push(entry);
        }
        last = Some(Text::from(name.into_bytes()));
    }
    Ok(ListPage { entries, next: last.filter(|_| more) })
}

/// The target of a symlink that is open with `O_PATH`.
pub(super) fn link_target(handle: &OwnedFd) -> Result<Text, Errno> {
    Ok(rustix::fs::readlinkat(handle, c"", Vec::new())?.into_bytes().into())
}

fn json_bytes(entry: &Entry) -> usize {
    serde_json::to_vec(entry).map_or(PAGE_BYTES_MAX, |json| json.len())
}

/// Collects the smallest of many names. Only those are kept in memory.
struct Smallest {
    heap: BinaryHeap<Vec<u8>>,
    count_max: usize,
}

impl Smallest {
    fn new(count_max: usize) -> Self {
        Self { heap: BinaryHeap::new(), count_max }
    }

    fn offer(&mut self, name: &[u8]) {
        if self.heap.len() < self.count_max {
            self.heap.push(name.to_vec());
        } else if let Some(mut largest) = self.heap.peek_mut()
            && name < largest.as_slice()
        {
            largest.clear();
            largest.extend_from_slice(name);
        }
    }

    fn into_sorted(self) -> Vec<Vec<u8>> {
        self.heap.into_sorted_vec()
    }
}

//! A tar archive that is read by name: one pass finds where each member is.
//!
//! ```text
//!   file ──▶ unpacked into a spool if it is compressed ──▶ Members, one pass ──▶ name: offset and length
//! ```
//! Only plain files and links are kept. Links are resolved within the archive: docker and skopeo link layers that two
//! images share. A name that occurs twice is refused when it is used, because programs differ in which one they take.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use kiln_archive::{ArchiveError, EntryType, Members};

/// The most members of an archive of images. Those have a few for each layer.
pub const MEMBERS_MAX: usize = 65_536;
/// The longest name of a member, and the longest target of a link.
const NAME_BYTES_MAX: usize = 4096;
/// The most bytes of all names.
const NAMES_BYTES_MAX: usize = 16 << 20;
/// How many links may follow each other, as in Linux.
const LINKS_MAX: usize = 40;
const BUFFER_BYTES: usize = 256 << 10;

/// Where the members of an archive are.
#[derive(Debug)]
pub(crate) struct ArchiveIndex {
    file: Arc<File>,
    bytes: u64,
    entries: BTreeMap<Vec<u8>, Entry>,
    /// Whether there are more members than are kept.
    truncated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    File(Span),
    /// To a path from the archive's root.
    Link(Vec<u8>),
    /// Neither a plain file nor a link.
    Other,
    /// The name occurs twice.
    Twice,
}

/// Where a member's data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub offset: u64,
    pub bytes: u64,
}

/// A part of a file that is read by offset, so that several readers can share the file.
#[derive(Debug)]
pub(crate) struct SpanReader {
    file: Arc<File>,
    span: Span,
}

/// Why an archive of images can't be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// It is not a tar archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// It has too many members, or their names are too long.
    #[error("the archive has more than {MEMBERS_MAX} members or {NAMES_BYTES_MAX} bytes of names")]
    TooManyMembers,
    /// A member's name leaves the archive.
    #[error("the archive has a member with the name `{}`", .name.escape_debug())]
    Name {
        /// Its name.
        name: String,
    },
    /// A member has holes, or its length does not fit.
    #[error("`{}` in the archive is a sparse file", .name.escape_debug())]
    Sparse {
        /// Its name.
        name: String,
    },
    /// There is no such member.
    #[error("the archive has no `{}`", .name.escape_debug())]
    Missing {
        /// Its name.
        name: String,
    },
    /// It is a directory or device.
    #[error("`{}` in the archive is not a plain file", .name.escape_debug())]
    NotRegular {
        /// Its name.
        name: String,
    },
    /// There are two.
    #[error("the archive has `{}` twice", .name.escape_debug())]
    Twice {
        /// Its name.
        name: String,
    },
    /// A link leaves the archive, or leads through too many others.
    #[error("the link `{}` in the archive does not lead to a member", .name.escape_debug())]
    Link {
        /// Its name.
        name: String,
    },
    /// A document in it is too large.
    #[error("`{}` in the archive has {bytes} bytes, over {limit}", .name.escape_debug())]
    TooLarge {
        /// Its name.
        name: String,
        /// Its length.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// The file can't be read.
    #[error("failed to read the archive")]
    Read(#[source] io::Error),
}

impl ArchiveIndex {
    /// Reads an archive that is not compressed, from the file's start.
    pub(crate) fn new(file: File) -> Result<Self, IndexError> {
        let file = Arc::new(file);
        let bytes = file.metadata().map_err(IndexError::Read)?.len();
        let whole = SpanReader { file: Arc::clone(&file), span: Span { offset: 0, bytes } };
        let mut index = Self { file, bytes, entries: BTreeMap::new(), truncated: false };
        index.fill(Members::new(io::BufReader::with_capacity(BUFFER_BYTES, whole)))?;
        Ok(index)
    }

    /// Whether members are missing, because there were too many.
    pub(crate) fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// Whether there is a file or link of this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.entries.get(name.as_bytes()).is_some_and(|entry| *entry != Entry::Other)
    }

    /// A reader of the whole archive.
    pub(crate) fn whole(&self) -> (Arc<File>, Span) {
        (Arc::clone(&self.file), Span { offset: 0, bytes: self.bytes })
    }

    /// Where the file of this name is, and its name after links were followed.
    pub(crate) fn find(&self, name: &str) -> Result<(Span, String), IndexError> {
        let own = || name.to_owned();
        let mut path = normalise(b"", name.as_bytes()).ok_or_else(|| IndexError::Name { name: own() })?;
        for _ in 0..LINKS_MAX {
            match self.entries.get(&path) {
                Some(Entry::File(span)) => return Ok((*span, shown(&path))),
                Some(Entry::Link(target)) => path.clone_from(target),
                Some(Entry::Other) => return Err(IndexError::NotRegular { name: own() }),
                Some(Entry::Twice) => return Err(IndexError::Twice { name: own() }),
                None => return Err(IndexError::Missing { name: shown(&path) }),
            }
        }
        Err(IndexError::Link { name: own() })
    }

    /// A reader of a part.
    pub(crate) fn reader(&self, span: Span) -> SpanReader {
        SpanReader { file: Arc::clone(&self.file), span }
    }

    /// A small file whole.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, IndexError> {
        let (span, _) = self.find(name)?;
        if span.bytes > limit {
            return Err(IndexError::TooLarge { name: name.to_owned(), bytes: span.bytes, limit });
        }
        let mut bytes = Vec::new();
        self.reader(span).read_to_end(&mut bytes).map_err(IndexError::Read)?;
        Ok(bytes)
    }

    fn fill(&mut self, mut members: Members<impl Read>) -> Result<(), IndexError> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let (mut count, mut names_bytes) = (0, 0);
        while let Some(member) = members.next()? {
            count += 1;
            names_bytes += member.path.len() + member.link.len();
            if count > MEMBERS_MAX || names_bytes > NAMES_BYTES_MAX {
                self.truncated = true;
                return Ok(());
            }
            let is_long = member.path.len() > NAME_BYTES_MAX || member.link.len() > NAME_BYTES_MAX;
            let name = normalise(b"", &member.path).filter(|_| !is_long);
            let name = name.ok_or_else(|| IndexError::Name { name: shown(&member.path) })?;
            let entry = match member.kind {
                EntryType::Regular => {
                    let offset = members.bytes();
                    let is_whole = pass(&mut members, &mut buffer, member.size)?;
                    if is_whole { Entry::File(Span { offset, bytes: member.size }) } else { Entry::Other }
                }
                // A link out of the archive leads nowhere, so it is kept as what can't be read.
                EntryType::Symlink => normalise(parent(&name), &member.link).map_or(Entry::Other, Entry::Link),
                EntryType::Link => normalise(b"", &member.link).map_or(Entry::Other, Entry::Link),
                _ => Entry::Other,
            };
            match self.entries.entry(name) {
                MapEntry::Vacant(vacant) => drop(vacant.insert(entry)),
                MapEntry::Occupied(mut earlier) if entry != Entry::Other || *earlier.get() != Entry::Other => {
                    earlier.insert(Entry::Twice);
                }
                MapEntry::Occupied(_) => {}
            }
        }
        Ok(())
    }
}

impl Read for SpanReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let want = into.len().min(usize::try_from(self.span.bytes).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut into[..want], self.span.offset)?;
        if count == 0 && want > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
        }
        self.span.offset += count as u64;
        self.span.bytes -= count as u64;
        Ok(count)
    }
}

impl SpanReader {
    pub(crate) fn new(file: Arc<File>, span: Span) -> Self {
        Self { file, span }
    }
}

/// Reads the data of a member. Returns whether it is in one piece in the archive, as that of a file without holes is.
fn pass(members: &mut Members<impl Read>, buffer: &mut [u8], size: u64) -> Result<bool, ArchiveError> {
    let mut at = 0;
    while let Some(data) = members.read(buffer)? {
        if data.offset != at {
            return Ok(false);
        }
        at += data.bytes as u64;
    }
    Ok(at == size)
}

/// A path from the archive's root, without `.` and empty components. `None` if it leads out of the archive.
fn normalise(base: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let base = if path.starts_with(b"/") { b"" } else { base };
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in base.split(|byte| *byte == b'/').chain(path.split(|byte| *byte == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |end| &path[..end])
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(&name[..name.len().min(256)]).into_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tar::{Builder, Header};

    use super::*;

    /// An archive of members: kind, name, content or target.
    fn index(members: &[(EntryType, &str, &str)]) -> Result<ArchiveIndex, IndexError> {
        let mut builder = Builder::new(Vec::new());
        for (kind, name, text) in members {
            let mut header = Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            let is_file = *kind == EntryType::Regular;
            header.set_size(if is_file { text.len() as u64 } else { 0 });
            if !is_file {
                header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
            }
            header.set_cksum();
            builder.append(&header, if is_file { text.as_bytes() } else { b"" }).expect("in memory");
        }
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&builder.into_inner().expect("in memory")).expect("a file");
        ArchiveIndex::new(file)
    }

    const FILE: EntryType = EntryType::Regular;
    const SYMLINK: EntryType = EntryType::Symlink;

    #[test]
    fn files_are_found_by_name_and_through_links() {
        let index = index(&[
            (FILE, "./a/layer.tar", "layer"),
            (SYMLINK, "b/layer.tar", "../a/layer.tar"),
            (SYMLINK, "c/layer.tar", "/b/layer.tar"),
            (EntryType::Link, "d", "a/layer.tar"),
            (EntryType::Directory, "e/", ""),
            (EntryType::Directory, "e/", ""),
            (FILE, "empty", ""),
        ])
        .expect("is an archive");
        for name in ["a/layer.tar", "./a//layer.tar", "b/layer.tar", "c/layer.tar", "d"] {
            assert_eq!(index.read(name, 100).expect(name), b"layer", "{name}");
        }
        assert_eq!(index.read("empty", 0).expect("is there"), b"");
        assert_eq!(index.find("c/layer.tar").expect("is there").1, "a/layer.tar");
        assert!(index.contains("d") && !index.contains("e") && !index.contains("x"));
    }

    #[test]
    fn hostile_archives_are_refused_by_name() {
        let hostile = index(&[
            (SYMLINK, "out", "../../etc/shadow"),
            (SYMLINK, "root", "/etc/shadow"),
            (SYMLINK, "self", "self"),
            (SYMLINK, "to", "fro"),
            (SYMLINK, "fro", "to"),
            (EntryType::Link, "hard", "../x"),
            (EntryType::Fifo, "fifo", ""),
            (EntryType::Char, "device", ""),
            (FILE, "twice", "a"),
            (FILE, "./twice", "b"),
            (FILE, "long", "123456"),
        ])
        .expect("is an archive");
        let names = ["out", "root", "self", "to", "hard", "fifo", "device", "twice", "long", "missing", "../x"];
        let lines = names.map(|name| hostile.read(name, 5).expect_err(name).to_string());
        let outside = index(&[(FILE, "../x", "")]).expect_err("leaves the archive");
        insta::assert_snapshot!(format!("{}\n{outside}", lines.join("\n")));
    }

    #[test]
    fn a_file_that_becomes_shorter_is_an_error() {
        let file = tempfile::tempfile().expect("a file");
        let span = Span { offset: 0, bytes: 10 };
        let mut reader = SpanReader::new(Arc::new(file), span);
        assert!(reader.read(&mut [0; 4]).is_err());
    }
}

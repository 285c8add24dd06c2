//! What a reader sees of a tree: a list that is the same for a tree, an image and a directory of the host.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use kiln_rootfs::{Body, Kind, Source, Tree};

const BLOCK_LEN: usize = 4096;
const ZEROS: [u8; BLOCK_LEN] = [0; BLOCK_LEN];

/// One name and what it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Kind, and what belongs to it: a target, the numbers of a device.
    pub kind: String,
    pub permissions: u32,
    pub owner: (u32, u32),
    pub modified: (i64, i64),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Size of a file, and digests of its blocks that are not zeros.
    pub contents: Option<(u64, BTreeMap<u64, [u8; 32]>)>,
    /// The first path of the same file, and the number of all.
    pub links: (Vec<u8>, u64),
}

/// All names, each as a path.
pub type Listing = BTreeMap<Vec<u8>, Seen>;

/// What a tree has.
pub fn of_tree(tree: &Tree, source: &(impl Source + ?Sized)) -> Listing {
    let mut listing = Listing::new();
    let mut waiting = vec![(Vec::new(), Tree::ROOT)];
    let mut paths: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
    while let Some((path, id)) = waiting.pop() {
        let node = tree.node(id);
        let attributes = &node.attributes;
        let kind = match &node.kind {
            Kind::Directory(children) => {
                let path_of = |name: &[u8]| [&path[..], b"/", name].concat();
                waiting.extend(children.iter().map(|(name, id)| (path_of(name), *id)));
                "directory".to_owned()
            }
            Kind::File(_) => "file".to_owned(),
            Kind::Symlink(target) => format!("symlink {}", target.escape_ascii()),
            Kind::CharacterDevice { major, minor } => format!("character device {major}:{minor}"),
            Kind::BlockDevice { major, minor } => format!("block device {major}:{minor}"),
            Kind::Fifo => "fifo".to_owned(),
            Kind::Socket => "socket".to_owned(),
        };
        let contents = if let Kind::File(body) = &node.kind { Some(blocks_of(body, source)) } else { None };
        paths.entry(id.index()).or_default().push(path.clone());
        let seen = Seen {
            kind,
            permissions: attributes.permissions.into(),
            owner: (attributes.uid, attributes.gid),
            modified: (attributes.modified.seconds, attributes.modified.nanoseconds.into()),
            xattrs: attributes.xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
            contents,
            links: (Vec::new(), 0),
        };
        assert!(listing.insert(path, seen).is_none());
    }
    for paths in paths.values_mut() {
        paths.sort();
        let (first, count) = (paths[0].clone(), paths.len() as u64);
        for path in paths {
            listing.get_mut(path).expect("it was listed").links = (first.clone(), count);
        }
    }
    listing
}

fn blocks_of(body: &Body, source: &(impl Source + ?Sized)) -> (u64, BTreeMap<u64, [u8; 32]>) {
    let mut blocks: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for extent in &body.extents {
        let mut bytes = vec![0; extent.bytes as usize];
        source.read_exact_at(&mut bytes, extent.spool_offset).expect("the source has the extent");
        let (mut offset, mut rest) = (extent.offset, &bytes[..]);
        while !rest.is_empty() {
            let within = offset as usize % BLOCK_LEN;
            let (now, later) = rest.split_at(rest.len().min(BLOCK_LEN - within));
            let block = blocks.entry(offset / BLOCK_LEN as u64).or_insert_with(|| vec![0; BLOCK_LEN]);
            block[within..within + now.len()].copy_from_slice(now);
            offset += now.len() as u64;
            rest = later;
        }
    }
    let full = blocks.into_iter().filter(|(_, block)| block[..] != ZEROS);
    (body.size, full.map(|(number, block)| (number, *blake3::hash(&block).as_bytes())).collect())
}

/// What a directory of the host has. Numbers of links are only meaningful if all names are in it.
pub fn of_directory(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut inodes: HashMap<u64, Vec<u8>> = HashMap::new();
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let full = root.join(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(&path)));
        let metadata = fs::symlink_metadata(&full).expect("metadata of what a directory lists");
        let file_type = metadata.file_type();
        let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        let kind = if file_type.is_dir() {
            for entry in fs::read_dir(&full).expect("a directory can be read") {
                let name = entry.expect("a directory can be read").file_name();
                waiting.push([&path[..], b"/", name.as_bytes()].concat());
            }
            "directory".to_owned()
        } else if file_type.is_file() {
            "file".to_owned()
        } else if file_type.is_symlink() {
            let target = fs::read_link(&full).expect("a symlink can be read");
            format!("symlink {}", target.as_os_str().as_bytes().escape_ascii())
        } else if file_type.is_char_device() {
            format!("character device {major}:{minor}")
        } else if file_type.is_block_device() {
            format!("block device {major}:{minor}")
        } else if file_type.is_fifo() {
            "fifo".to_owned()
        } else {
            "socket".to_owned()
        };
        let links = if file_type.is_dir() { 1 } else { metadata.nlink() };
        let first = inodes.entry(metadata.ino()).or_insert_with(|| path.clone());
        if path < *first {
            *first = path.clone();
        }
        let seen = Seen {
            kind,
            permissions: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            xattrs: xattrs_of(&full),
            contents: file_type.is_file().then(|| (metadata.len(), blocks_of_file(&full, metadata.len()))),
            links: (metadata.ino().to_le_bytes().to_vec(), links),
        };
        assert!(listing.insert(path, seen).is_none(), "a directory lists each name once");
    }
    for seen in listing.values_mut() {
        let inode = u64::from_le_bytes(seen.links.0[..].try_into().expect("8 bytes"));
        seen.links.0 = inodes[&inode].clone();
    }
    listing
}

fn blocks_of_file(path: &Path, size: u64) -> BTreeMap<u64, [u8; 32]> {
    let file = File::open(path).expect("a file can be opened");
    let mut blocks = BTreeMap::new();
    let mut buffer = vec![0; size.min(256 * BLOCK_LEN as u64) as usize];
    let mut offset = 0;
    while offset < size {
        let count = buffer.len().min((size - offset) as usize);
        Source::read_exact_at(&file, &mut buffer[..count], offset).expect("a file can be read up to its size");
        for (index, block) in buffer[..count].chunks(BLOCK_LEN).enumerate() {
            if block != &ZEROS[..block.len()] {
                let mut whole = block.to_vec();
                whole.resize(BLOCK_LEN, 0);
                blocks.insert(offset / BLOCK_LEN as u64 + index as u64, *blake3::hash(&whole).as_bytes());
            }
        }
        offset += count as u64;
    }
    blocks
}

fn xattrs_of(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path without NUL");
    let mut names = vec![0_u8; 65536];
    let len = rustix::fs::llistxattr(&*path, &mut names[..]).expect("attributes can be listed");
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0_u8; 65536];
            let name = CString::new(name).expect("split at NUL");
            let len = rustix::fs::lgetxattr(&*path, &*name, &mut value[..]).expect("an attribute that is listed");
            value.truncate(len);
            (name.into_bytes(), value)
        })
        .collect()
}

/// Fails with the first difference, not with two lists of thousands of names.
pub fn assert_same(found: &Listing, expected: &Listing) {
    for (path, seen) in expected {
        assert_eq!(found.get(path), Some(seen), "at `{}`", path.escape_ascii());
    }
    let more: Vec<_> =
        found.keys().filter(|path| !expected.contains_key(*path)).map(|path| path.escape_ascii().to_string()).collect();
    assert_eq!(more, Vec::<String>::new(), "names that are too many");
}

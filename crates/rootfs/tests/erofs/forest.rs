//! Trees for tests, with their contents in memory.

use kiln_rootfs::erofs::{Options, Written, write};
use kiln_rootfs::{Attributes, Body, BodyHasher, Children, Extent, Kind, Node, NodeId, Source, Time, Tree};

/// A tree and the bytes of its files.
pub struct Forest {
    pub tree: Tree,
    pub contents: Vec<u8>,
}

impl Forest {
    pub fn new() -> Self {
        Self { tree: Tree::new(attributes(0o755)), contents: Vec::new() }
    }

    pub fn add(&mut self, parent: NodeId, name: impl AsRef<[u8]>, attributes: Attributes, kind: Kind) -> NodeId {
        let id = self.tree.add(Node { attributes, kind });
        self.link(parent, name, id);
        id
    }

    pub fn link(&mut self, parent: NodeId, name: impl AsRef<[u8]>, id: NodeId) {
        let children = self.tree.children_mut(parent).expect("a directory");
        assert!(children.insert(name.as_ref().into(), id).is_none(), "the name is free");
    }

    pub fn directory(&mut self, parent: NodeId, name: impl AsRef<[u8]>) -> NodeId {
        self.add(parent, name, attributes(0o755), Kind::Directory(Children::new()))
    }

    /// A file with data at some offsets, and holes elsewhere.
    pub fn sparse(&mut self, parent: NodeId, name: impl AsRef<[u8]>, size: u64, parts: &[(u64, &[u8])]) -> NodeId {
        let body = self.body(size, parts);
        self.add(parent, name, attributes(0o644), Kind::File(body))
    }

    pub fn file(&mut self, parent: NodeId, name: impl AsRef<[u8]>, contents: &[u8]) -> NodeId {
        self.sparse(parent, name, contents.len() as u64, &[(0, contents)])
    }

    pub fn body(&mut self, size: u64, parts: &[(u64, &[u8])]) -> Body {
        let (mut hasher, mut extents) = (BodyHasher::default(), Vec::new());
        for (offset, bytes) in parts.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            hasher.data(*offset, bytes);
            let spool_offset = self.contents.len() as u64;
            extents.push(Extent { offset: *offset, bytes: bytes.len() as u64, spool_offset });
            self.contents.extend_from_slice(bytes);
        }
        Body { size, extents, digest: hasher.finish(size) }
    }

    /// The tree as an image.
    pub fn image(&self) -> (Vec<u8>, Written) {
        image_of(&self.tree, &self.contents[..])
    }
}

/// A tree as an image.
pub fn image_of(tree: &Tree, source: &(impl Source + ?Sized)) -> (Vec<u8>, Written) {
    let mut image = Vec::new();
    let written = write(tree, source, &mut image, &Options::default()).expect("a valid tree");
    assert_eq!(image.len() as u64, written.bytes);
    assert_eq!(blake3::hash(&image).as_bytes(), &written.digest);
    (image, written)
}

pub fn attributes(permissions: u16) -> Attributes {
    Attributes { permissions, modified: Time { seconds: 1_700_000_000, nanoseconds: 1 }, ..Attributes::default() }
}

pub fn with_xattrs(permissions: u16, xattrs: &[(&str, &[u8])]) -> Attributes {
    let xattrs = xattrs.iter().map(|(name, value)| (name.as_bytes().into(), (*value).into())).collect();
    Attributes { xattrs, ..attributes(permissions) }
}

/// Bytes that do not repeat within a block.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut bytes = vec![0; len];
    reader.fill(&mut bytes);
    bytes
}

/// A tree with all kinds of nodes that `fsck.erofs` 1.5 extracts right: it has no holes.
pub fn all_kinds() -> Forest {
    let mut forest = Forest::new();
    let root = Tree::ROOT;
    let odd = Attributes {
        permissions: 0o4751,
        uid: 3_000_000_000,
        gid: 70_000,
        modified: Time { seconds: 2_234_567_890, nanoseconds: 987_654_321 },
        ..Attributes::default()
    };
    for size in [0, 1, 31, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 8193, 1_000_000] {
        forest.file(root, format!("size-{size:07}"), &noise(size, size as u64));
    }
    let inner = forest.add(root, "dir", odd.clone(), Kind::Directory(Children::new()));
    let first = forest.file(inner, "first", &noise(5000, 1));
    forest.link(inner, "second name", first);
    forest.link(root, "third name", first);
    forest.file(inner, "same contents", &noise(5000, 1));
    let body = forest.body(10, &[(0, b"0123456789")]);
    forest.add(inner, "odd", odd.clone(), Kind::File(body.clone()));
    let early = Time { seconds: -31_536_000, nanoseconds: 5 };
    forest.add(inner, "1969", Attributes { modified: early, ..attributes(0o600) }, Kind::File(body));
    forest.add(root, "link", attributes(0o777), Kind::Symlink(b"dir/first".as_slice().into()));
    let long = [b"../".repeat(1364), b"end".to_vec()].concat();
    forest.add(root, "long link", attributes(0o777), Kind::Symlink(long.into()));
    forest.add(root, "fifo", attributes(0o620), Kind::Fifo);
    forest.add(inner, "socket", odd, Kind::Socket);
    forest.add(inner, "null", attributes(0o666), Kind::CharacterDevice { major: 1, minor: 3 });
    forest.add(inner, "large", attributes(0o660), Kind::BlockDevice { major: 4095, minor: 1_048_575 });
    names(&mut forest);
    deep(&mut forest);
    forest
}

/// Names of all lengths, and of bytes that are no text.
fn names(forest: &mut Forest) {
    let directory = forest.directory(Tree::ROOT, "names");
    for len in 1..=255 {
        forest.add(directory, vec![b'n'; len], attributes(0o644), Kind::Fifo);
    }
    for name in [&b"\xff\xfe"[..], b"new\nline", b"!", b"-", b".-", b"...", b".x", b"\x7f", b"\xc3\xa9", b"~"] {
        forest.file(directory, name, name);
    }
}

/// Directories in directories, 255 deep.
fn deep(forest: &mut Forest) {
    let mut directory = Tree::ROOT;
    for depth in 0..255 {
        directory = forest.directory(directory, format!("{}", depth % 10));
    }
    forest.file(directory, "bottom", b"deep");
}

/// Adds what `fsck.erofs` 1.5 does not extract: holes and extended attributes.
pub fn add_holes_and_xattrs(forest: &mut Forest) {
    let root = Tree::ROOT;
    let directory = forest.directory(root, "holes");
    let gibibyte = 1 << 30;
    forest.sparse(directory, "1 GiB", gibibyte, &[(0, &noise(10, 2)), (gibibyte / 2, &noise(9000, 3))]);
    forest.sparse(directory, "empty", 100_000_017, &[]);
    forest.sparse(
        directory,
        "not aligned",
        100_000,
        &[(5, b"five"), (50_001, &noise(4000, 5)), (99_000, b"near the end")],
    );
    forest.sparse(directory, "twin", 100_000, &[(5, b"five"), (50_001, &noise(4000, 5)), (99_000, b"near the end")]);
    forest.sparse(directory, "short", 100, &[]);
    let one_in_three: Vec<(u64, Vec<u8>)> = (0..500).map(|n| (n * 12288, noise(4096, n))).collect();
    let parts: Vec<(u64, &[u8])> = one_in_three.iter().map(|(offset, bytes)| (*offset, &bytes[..])).collect();
    forest.sparse(directory, "many", 500 * 12288, &parts);

    let directory = forest.directory(root, "attributes");
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let acl =
        [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255];
    let large = noise(3000, 6);
    let sets: [&[(&str, &[u8])]; 6] = [
        &[("security.capability", &capability)],
        &[("security.capability", &capability), ("user.empty", b""), ("user.name", b"value")],
        &[("trusted.secret", b"for root"), ("user.3 KiB", &large)],
        &[("user.name", b"value"), ("user.3 KiB", &large), ("trusted.\u{e9}", &[0, 1, 2, 0])],
        &[("system.posix_acl_access", &acl)],
        &[("system.posix_acl_access", &acl), ("user.only here", b"1")],
    ];
    for (index, set) in sets.iter().enumerate() {
        let tail = forest.body(700, &[(0, &noise(700, index as u64))]);
        forest.add(directory, format!("file {index}"), with_xattrs(0o644, set), Kind::File(tail));
    }
    forest.add(directory, "directory", with_xattrs(0o755, sets[2]), Kind::Directory(Children::new()));
    let names: Vec<String> = (0..300).map(|n| format!("user.{n:03}-{}", "x".repeat(n % 200))).collect();
    for (file, value) in [("many, first", &b"v"[..]), ("many, second", b"v"), ("many, alone", b"w")] {
        let set: Vec<(&str, &[u8])> = names.iter().map(|name| (&**name, value)).collect();
        let body = forest.body(5000, &[(0, &noise(5000, 7))]);
        forest.add(directory, file, with_xattrs(0o644, &set), Kind::File(body));
    }
    let set = [("trusted.large", &large[..]), ("trusted.larger", &large[..1500])];
    forest.add(directory, "link", with_xattrs(0o777, &set), Kind::Symlink(b"file 0".as_slice().into()));
}

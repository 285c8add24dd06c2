//! Writes cpio archives of the kind the kernel unpacks as its initramfs (`newc`, see the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst). The same tree always gives the same bytes: entries are
//! sorted, times and owners are zero, inode numbers count up. Device nodes need no root, they are but numbers here.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

/// Every header field is this many hex digits.
const MAGIC: &[u8; 6] = b"070701";
/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// Names and contents start at multiples of this.
const ALIGNMENT: usize = 4;

const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_SYMLINK: u32 = 0o120_000;
const TYPE_CHARACTER: u32 = 0o020_000;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Directory { mode: u32 },
    File { mode: u32, bytes: Vec<u8> },
    Symlink { target: String },
    CharacterDevice { mode: u32, major: u32, minor: u32 },
}

/// A filesystem tree; paths are relative to its root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree(BTreeMap<Utf8PathBuf, Node>);

/// A tree that does not fit into the format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{path}` has {bytes} bytes, more than an initramfs file can have")]
pub(crate) struct TooLarge {
    pub(crate) path: Utf8PathBuf,
    pub(crate) bytes: usize,
}

impl Tree {
    /// Puts a node in its place, making the directories above it. A later node wins over an earlier one.
    pub(crate) fn insert(&mut self, path: impl Into<Utf8PathBuf>, node: Node) {
        let path = path.into();
        for above in path.ancestors().skip(1).filter(|above| !above.as_str().is_empty()) {
            self.0.entry(above.to_owned()).or_insert(Node::Directory { mode: 0o755 });
        }
        self.0.insert(path, node);
    }

    pub(crate) fn contains(&self, path: &Utf8Path) -> bool {
        self.0.contains_key(path)
    }

    /// The archive.
    pub(crate) fn to_cpio(&self) -> Result<Vec<u8>, TooLarge> {
        let mut out = Vec::with_capacity(self.bytes_estimate());
        // Sorted by components, so that a directory always comes before what is in it.
        for (index, (path, node)) in self.0.iter().enumerate() {
            let inode = u32::try_from(index + 1).unwrap_or(u32::MAX);
            let (mode, device, contents): (u32, (u32, u32), &[u8]) = match node {
                Node::Directory { mode } => (TYPE_DIRECTORY | mode, (0, 0), &[]),
                Node::File { mode, bytes } => (TYPE_FILE | mode, (0, 0), bytes),
                Node::Symlink { target } => (TYPE_SYMLINK | 0o777, (0, 0), target.as_bytes()),
                Node::CharacterDevice { mode, major, minor } => (TYPE_CHARACTER | mode, (*major, *minor), &[]),
            };
            let size =
                u32::try_from(contents.len()).map_err(|_| TooLarge { path: path.clone(), bytes: contents.len() })?;
            header(&mut out, Header { inode, mode, size, device, name: path.as_str() });
            out.extend_from_slice(contents);
            pad(&mut out);
        }
        header(&mut out, Header { inode: 0, mode: 0, size: 0, device: (0, 0), name: TRAILER });
        Ok(out)
    }

    fn bytes_estimate(&self) -> usize {
        let contents = |node: &Node| match node {
            Node::File { bytes, .. } => bytes.len(),
            _ => 0,
        };
        self.0.iter().map(|(path, node)| 128 + path.as_str().len() + contents(node)).sum::<usize>() + 256
    }
}

#[derive(Clone, Copy)]
struct Header<'a> {
    inode: u32,
    mode: u32,
    size: u32,
    device: (u32, u32),
    name: &'a str,
}

fn header(out: &mut Vec<u8>, header: Header<'_>) {
    let Header { inode, mode, size, device: (major, minor), name } = header;
    let name_bytes = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
    out.extend_from_slice(MAGIC);
    // In order: inode, mode, uid, gid, links, mtime, size, device of the file (2), device it stands for (2), name,
    // check.
    for field in [inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_bytes, 0] {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads what the writer wrote, by the format's own rules.
    fn read(mut rest: &[u8]) -> Vec<(Utf8PathBuf, Node)> {
        let mut found = Vec::new();
        let mut inode_expected = 1;
        loop {
            assert_eq!(&rest[..6], MAGIC);
            let field = |index: usize| {
                let digits = std::str::from_utf8(&rest[6 + index * 8..][..8]).expect("ASCII");
                u32::from_str_radix(digits, 16).expect("hex")
            };
            let (mode, size, name_bytes) = (field(1), field(6) as usize, field(11) as usize);
            assert_eq!([field(2), field(3), field(5), field(12)], [0; 4], "owner, time or check");
            let name = std::str::from_utf8(&rest[110..][..name_bytes - 1]).expect("UTF-8");
            assert_eq!(rest[110 + name_bytes - 1], 0);
            let start = (110 + name_bytes).next_multiple_of(4);
            if name == TRAILER {
                assert_eq!(rest.len(), start);
                return found;
            }
            assert_eq!(field(0), inode_expected);
            inode_expected += 1;
            let bytes = rest[start..][..size].to_vec();
            let permissions = mode & 0o7777;
            let node = match mode & 0o170_000 {
                TYPE_DIRECTORY => Node::Directory { mode: permissions },
                TYPE_FILE => Node::File { mode: permissions, bytes },
                TYPE_SYMLINK => Node::Symlink { target: String::from_utf8(bytes).expect("UTF-8") },
                TYPE_CHARACTER => Node::CharacterDevice { mode: permissions, major: field(9), minor: field(10) },
                other => panic!("type {other:o}"),
            };
            found.push((name.into(), node));
            rest = &rest[(start + size).next_multiple_of(4)..];
        }
    }

    fn node() -> impl Strategy<Value = Node> {
        prop_oneof![
            (0..0o7777_u32).prop_map(|mode| Node::Directory { mode }),
            (0..0o7777_u32, prop::collection::vec(any::<u8>(), 0..70))
                .prop_map(|(mode, bytes)| Node::File { mode, bytes }),
            "[a-z/.]{1,20}".prop_map(|target| Node::Symlink { target }),
            (0..0o777_u32, any::<u32>(), any::<u32>()).prop_map(|(mode, major, minor)| Node::CharacterDevice {
                mode,
                major,
                minor
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_with_every_directory_before_its_contents(
            nodes in prop::collection::vec(("[a-z][a-z.-]{0,5}(/[a-z][a-z.-]{0,5}){0,3}", node()), 0..20),
        ) {
            let mut tree = Tree::default();
            for (path, node) in nodes {
                tree.insert(path, node);
            }
            let found = read(&tree.to_cpio().expect("is small"));
            let mut seen = std::collections::BTreeSet::new();
            for (path, _) in &found {
                let parent = path.parent().expect("is relative");
                prop_assert!(parent.as_str().is_empty() || seen.contains(parent), "`{path}` before its directory");
                seen.insert(path.clone());
            }
            prop_assert_eq!(found.into_iter().collect::<BTreeMap<_, _>>(), tree.0);
        }
    }

    #[test]
    fn the_order_of_insertion_does_not_show() {
        let nodes = [("b/c", "x"), ("a", "y"), ("b/a/z", "")];
        let tree = |order: [usize; 3]| {
            let mut tree = Tree::default();
            for index in order {
                tree.insert(nodes[index].0, Node::File { mode: 0o644, bytes: nodes[index].1.into() });
            }
            tree.to_cpio().expect("is small")
        };
        assert_eq!(tree([0, 1, 2]), tree([2, 1, 0]));
    }

    #[test]
    fn a_console_node_is_these_bytes() {
        let mut tree = Tree::default();
        tree.insert("dev/console", Node::CharacterDevice { mode: 0o600, major: 5, minor: 1 });
        let archive = tree.to_cpio().expect("is small");
        let text = String::from_utf8_lossy(&archive);
        let console = "0707010000000200002180000000000000000000000001000000000000000000000000000000000000000500000001\
                       0000000C00000000dev/console\0";
        assert!(text.contains(console), "{text}");
    }
}

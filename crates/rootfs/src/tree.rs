//! A filesystem in memory: directories, attributes, and where the contents of files are.
//!
//! Nodes are numbered. A directory maps names to numbers, so two names can have the same node: a hard link. Nothing
//! here does I/O. Names are bytes without `/` and NUL, of 1 to 255 bytes, never `.` or `..`; the code that fills the
//! tree checks that.

use std::collections::BTreeMap;

/// The number of a node in its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

/// The names in a directory, in the order of their bytes.
pub type Children = BTreeMap<Box<[u8]>, NodeId>;

/// A moment: seconds since 1970, which may be negative, and nanoseconds after it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds, at most 999,999,999.
    pub nanoseconds: u32,
}

/// What every node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, with set-user-ID, set-group-ID and the sticky bit: at most 0o7777.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the contents.
    pub modified: Time,
    /// Extended attributes by their full names, such as `security.capability`.
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

/// A part of a file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file.
    pub offset: u64,
    /// Length, never 0.
    pub bytes: u64,
    /// Offset of the data in the spool.
    pub spool_offset: u64,
}

/// The contents of a file. All that is between the extents is a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// Length of the file, holes included.
    pub size: u64,
    /// The parts with data, in order, without overlap, all within `size`.
    pub extents: Vec<Extent>,
    /// Digest of the size, and of the place and the bytes of each part with data. Bodies with the same digest are the
    /// same.
    pub digest: [u8; 32],
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory(Children),
    /// A regular file.
    File(Body),
    /// A symlink and its target, which is never empty.
    Symlink(Box<[u8]>),
    /// A character device.
    CharacterDevice {
        /// Number of the driver.
        major: u32,
        /// Number of the device.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Number of the driver.
        major: u32,
        /// Number of the device.
        minor: u32,
    },
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
}

/// A file, directory, link or device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its attributes.
    pub attributes: Attributes,
    /// What it is.
    pub kind: Kind,
}

/// A whole filesystem. Its root is a directory.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(0);

    /// A tree with an empty root directory.
    pub fn new(root: Attributes) -> Self {
        Self { nodes: vec![Node { attributes: root, kind: Kind::Directory(Children::new()) }] }
    }

    /// Adds a node that has no name yet. A tree has at most 2^32 nodes.
    ///
    /// # Panics
    /// If the tree is full. The limit on entries of an image is far below that.
    pub fn add(&mut self, node: Node) -> NodeId {
        let id = NodeId(u32::try_from(self.nodes.len()).expect("an image has fewer entries"));
        self.nodes.push(node);
        id
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// A node, to change it.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    /// The names in a directory; `None` for other nodes.
    pub fn children(&self, id: NodeId) -> Option<&Children> {
        match &self.node(id).kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// The names in a directory, to change them.
    pub fn children_mut(&mut self, id: NodeId) -> Option<&mut Children> {
        match &mut self.node_mut(id).kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// The numbers of all nodes, in the order in which they were added.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        // No overflow: `add` checks it.
        (0..self.nodes.len() as u32).map(NodeId)
    }

    /// Number of nodes, those without a name included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// A tree always has its root.
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl NodeId {
    /// Its number: nodes are numbered from 0 in the order in which they were added.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

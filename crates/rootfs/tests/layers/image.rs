//! An image that was built from layers, and what a tree must be in any case.

use std::collections::HashSet;

use kiln_rootfs::{
    DEPTH_MAX, Kind, LayerError, Layers, Limits, NAME_BYTES_MAX, Node, NodeId, Notes, PATH_BYTES_MAX, Source as _,
    Spool, SpoolLimits, Tree,
};

use crate::builder::Tar;

#[derive(Debug)]
pub struct Image {
    pub tree: Tree,
    pub spool: Spool,
    pub notes: Notes,
}

pub fn spool() -> Spool {
    Spool::new(&std::env::temp_dir(), SpoolLimits { bytes_max: 1 << 30, reserve_bytes: 0 }).expect("a folder")
}

/// Applies layers with an end mark each.
pub fn build(layers: impl IntoIterator<Item = Tar>) -> Result<Image, LayerError> {
    build_raw(layers.into_iter().map(Tar::end), Limits::default())
}

pub fn build_raw(layers: impl IntoIterator<Item = Vec<u8>>, limits: Limits) -> Result<Image, LayerError> {
    let mut stack = Layers::new(spool(), limits);
    for layer in layers {
        let report = stack.apply(layer.as_slice())?;
        assert_eq!(report.bytes, layer.len() as u64, "a layer is read to its end");
    }
    let (tree, spool, notes) = stack.finish();
    let image = Image { tree, spool, notes };
    image.check();
    Ok(image)
}

/// The paths of an image, as [`Image::lines`] has them.
#[track_caller]
pub fn lines(layers: impl IntoIterator<Item = Tar>) -> Vec<String> {
    build(layers).expect("the layers are right").lines()
}

/// The text of the refusal.
#[track_caller]
pub fn refusal(layers: impl IntoIterator<Item = Tar>) -> String {
    build(layers).expect_err("the layers are refused").to_string()
}

impl Image {
    /// One line for each path, in the order of a walk: `d/`, `d/f=content`, `d/l->target`, `c:8:1`, `b:8:1`, `p|`.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        self.walk(|path, id| {
            let path = path.escape_ascii();
            lines.push(match &self.tree.node(id).kind {
                Kind::Directory(_) => format!("{path}/"),
                Kind::File(_) => format!("{path}={}", self.content(id).escape_ascii()),
                Kind::Symlink(target) => format!("{path}->{}", target.escape_ascii()),
                Kind::CharacterDevice { major, minor } => format!("{path} c:{major}:{minor}"),
                Kind::BlockDevice { major, minor } => format!("{path} b:{major}:{minor}"),
                Kind::Fifo => format!("{path}|"),
                Kind::Socket => format!("{path} socket"),
            });
        });
        lines
    }

    /// Calls `each` for every path below the root.
    pub fn walk(&self, mut each: impl FnMut(&[u8], NodeId)) {
        let mut open: Vec<(Vec<u8>, NodeId)> = vec![(Vec::new(), Tree::ROOT)];
        while let Some((path, id)) = open.pop() {
            if id != Tree::ROOT {
                each(&path, id);
            }
            for (name, child) in self.tree.children(id).into_iter().flatten().rev() {
                let path = if path.is_empty() { name.to_vec() } else { [&path, &b"/"[..], name].concat() };
                open.push((path, *child));
            }
        }
    }

    /// The node under a path without symlinks.
    #[track_caller]
    pub fn id(&self, path: &str) -> NodeId {
        path.split('/').fold(Tree::ROOT, |id, name| {
            let children = self.tree.children(id).expect("a directory");
            *children.get(name.as_bytes()).unwrap_or_else(|| panic!("`{path}` is not there"))
        })
    }

    #[track_caller]
    pub fn node(&self, path: &str) -> &Node {
        self.tree.node(self.id(path))
    }

    pub fn content(&self, id: NodeId) -> Vec<u8> {
        let Kind::File(body) = &self.tree.node(id).kind else { panic!("it is not a file") };
        let mut content = vec![0; usize::try_from(body.size).expect("a small file")];
        for extent in &body.extents {
            let range = usize::try_from(extent.offset).expect("small")
                ..usize::try_from(extent.offset + extent.bytes).expect("small");
            self.spool.read_exact_at(&mut content[range], extent.spool_offset).expect("the spool has it");
        }
        content
    }

    #[track_caller]
    pub fn content_of(&self, path: &str) -> Vec<u8> {
        self.content(self.id(path))
    }

    /// What holds for every tree, whatever the layers had.
    pub fn check(&self) {
        let mut directories = HashSet::new();
        self.walk(|path, id| {
            let name = path.rsplit(|byte| *byte == b'/').next().expect("a name");
            assert!(!name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains(&0));
            assert!(name != b"." && name != b"..");
            assert!(path.len() <= PATH_BYTES_MAX && path.split(|byte| *byte == b'/').count() <= DEPTH_MAX);
            let node = self.tree.node(id);
            assert!(node.attributes.permissions <= 0o7777 && node.attributes.modified.nanoseconds < 1_000_000_000);
            assert!(node.attributes.uid != u32::MAX && node.attributes.gid != u32::MAX);
            match &node.kind {
                Kind::Directory(_) => assert!(directories.insert(id), "a directory has one name"),
                Kind::Symlink(target) => assert!(!target.is_empty() && target.len() <= PATH_BYTES_MAX),
                Kind::CharacterDevice { major, minor } => assert!((*major, *minor) != (0, 0)),
                Kind::File(body) => {
                    let mut end = 0;
                    for extent in &body.extents {
                        assert!(extent.bytes > 0 && extent.offset >= end && extent.offset + extent.bytes <= body.size);
                        assert!(extent.spool_offset + extent.bytes <= self.spool.bytes());
                        end = extent.offset + extent.bytes;
                    }
                }
                _ => {}
            }
        });
    }
}

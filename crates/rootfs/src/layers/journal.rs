//! The names of a layer, from its first byte to its last, before they change the tree.

use std::collections::HashSet;

use super::names::split;
use crate::tree::NodeId;

/// Bytes in the journal's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Text {
    start: u32,
    bytes: u16,
}

/// An entry that gives a name to a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// Number in the layer.
    pub(super) number: u32,
    pub(super) parent: Text,
    pub(super) name: Text,
    pub(super) content: Content,
}

/// The node of an entry.
#[derive(Debug, Clone, Copy)]
pub(super) enum Content {
    /// A new one. Without a name it is the root.
    Node(NodeId),
    /// A hard link: the one that this path has.
    Link(Text),
}

/// A mark: a name of lower layers that is gone, or all names of a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    /// Number in the layer.
    pub(super) number: u32,
    pub(super) parent: Text,
    pub(super) name: Option<Text>,
}

/// The entries and marks of a layer, each in the archive's order.
#[derive(Debug, Default)]
pub(super) struct Journal {
    text: Vec<u8>,
    pub(super) entries: Vec<Entry>,
    pub(super) marks: Vec<Mark>,
    /// Parent of the last entry or mark. Archives have the names of a directory one after the other, so most parents
    /// are this one and take no room.
    parent: Option<Text>,
}

impl Journal {
    /// Bytes that a path would add.
    pub(super) fn cost(&self, parent: &[u8], name: &[u8]) -> usize {
        name.len() + if self.is_last_parent(parent) { 0 } else { parent.len() }
    }

    /// Adds the parent of an entry or mark.
    pub(super) fn parent(&mut self, parent: &[u8]) -> Text {
        match self.parent {
            Some(last) if self.is_last_parent(parent) => last,
            _ => {
                let parent = self.add(parent);
                self.parent = Some(parent);
                parent
            }
        }
    }

    /// Adds a name or the target of a link.
    pub(super) fn add(&mut self, text: &[u8]) -> Text {
        let start = u32::try_from(self.text.len()).expect("the budget of text is below 4 GiB");
        let bytes = u16::try_from(text.len()).expect("a path has at most 4095 bytes");
        self.text.extend_from_slice(text);
        Text { start, bytes }
    }

    pub(super) fn text(&self, text: Text) -> &[u8] {
        let start = text.start as usize;
        &self.text[start..start + usize::from(text.bytes)]
    }

    /// The whole path of a parent and a name.
    pub(super) fn path(&self, parent: Text, name: Option<Text>) -> Vec<u8> {
        let parts = [Some(parent), name].into_iter().flatten().map(|text| self.text(text));
        parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(&b'/')
    }

    /// The paths that this layer has entries for.
    pub(super) fn paths(&self) -> Paths<'_> {
        Paths(self.entries.iter().map(|entry| (self.text(entry.parent), self.text(entry.name))).collect())
    }

    fn is_last_parent(&self, parent: &[u8]) -> bool {
        self.parent.is_some_and(|last| self.text(last) == parent)
    }
}

/// The paths of a layer's entries.
#[derive(Debug)]
pub(super) struct Paths<'a>(HashSet<(&'a [u8], &'a [u8])>);

impl Paths<'_> {
    /// Whether the layer has an entry for a plain path.
    pub(super) fn contain(&self, path: &[u8]) -> bool {
        self.0.contains(&split(path))
    }
}

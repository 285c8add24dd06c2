//! Applies the names of a layer to the tree of the layers below it: first its marks, then its entries.

use std::cell::OnceCell;

use super::error::Refusal;
use super::journal::{Content, Entry, Journal, Text};
use super::limits::Budget;
use super::names::{shown, split};
use super::walk::{Place, Way, directory};
use crate::tree::{Kind, NodeId, Tree};

/// Why an entry or mark can't be applied: its number, its path, and the reason.
pub(super) type Fault = (u32, Vec<u8>, Refusal);

/// Applies a whole layer.
pub(super) fn merge(tree: &mut Tree, budget: &mut Budget, journal: &Journal) -> Result<(), Fault> {
    marks(tree, budget, journal)?;
    let mut merge = Merge { tree, budget, journal, last: None };
    for entry in &journal.entries {
        let result = merge.entry(entry);
        result.map_err(|reason| (entry.number, journal.path(entry.parent, Some(entry.name)), reason))?;
    }
    Ok(())
}

/// Removes what lower layers have under the names of the marks. What is not there is ignored.
///
/// A mark may be below a symlink of a lower layer that this layer replaces by a directory of its own. Then it is about
/// that directory, which has nothing of lower layers, and must not empty the place to which the symlink led. Programs
/// that pack a replaced directory write exactly that: the directory and an opaque mark in it.
fn marks(tree: &mut Tree, budget: &mut Budget, journal: &Journal) -> Result<(), Fault> {
    let paths = OnceCell::new();
    let is_replaced = |path: &[u8]| paths.get_or_init(|| journal.paths()).contain(path);
    let mut last: Option<(Text, Option<Place>)> = None;
    for mark in &journal.marks {
        let place = match last {
            Some((parent, place)) if parent == mark.parent => place,
            _ => directory(tree, budget, journal.text(mark.parent), Way::LookUnless(&is_replaced))
                .map_err(|reason| (mark.number, journal.path(mark.parent, mark.name), reason))?,
        };
        last = Some((mark.parent, place));
        let Some(children) = place.and_then(|place| tree.children_mut(place.directory)) else { continue };
        let is_changed = match mark.name {
            Some(name) => children.remove(journal.text(name)).is_some(),
            None => !std::mem::take(children).is_empty(),
        };
        // What was removed may have been on the way to the directory of the next mark.
        if is_changed {
            last = None;
        }
    }
    Ok(())
}

struct Merge<'a> {
    tree: &'a mut Tree,
    budget: &'a mut Budget,
    journal: &'a Journal,
    /// Parent of the last entry, and where it is. Valid as long as no directory and no symlink is replaced.
    last: Option<(Text, Place)>,
}

impl Merge<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<(), Refusal> {
        let name = self.journal.text(entry.name);
        let node = match entry.content {
            Content::Node(node) if name.is_empty() => {
                self.take_attributes(Tree::ROOT, node);
                return Ok(());
            }
            Content::Node(node) => Ok(node),
            Content::Link(target) => Err(self.journal.text(target)),
        };
        let place = self.parent(entry.parent)?;
        place.expect_room(name)?;
        let node = match node {
            Ok(node) => node,
            Err(target) => self.target(target, place, name)?,
        };
        self.bind(place, name, node);
        Ok(())
    }

    /// The directory of an entry. Missing ones on the way are made.
    fn parent(&mut self, parent: Text) -> Result<Place, Refusal> {
        if let Some((last, place)) = self.last
            && last == parent
        {
            return Ok(place);
        }
        let path = self.journal.text(parent);
        let place = directory(self.tree, self.budget, path, Way::Make)?.expect("what was missing was made");
        self.last = Some((parent, place));
        Ok(place)
    }

    /// The node that a hard link is to. It is a node of the tree and never a path, so a later layer that removes or
    /// replaces the target's name leaves the link as it is.
    fn target(&mut self, target: &[u8], place: Place, name: &[u8]) -> Result<NodeId, Refusal> {
        let nothing = || Refusal::LinkToNothing { target: shown(target) };
        let (parent, target_name) = split(target);
        let there = directory(self.tree, self.budget, parent, Way::Look)?.ok_or_else(nothing)?;
        if there.directory == place.directory && target_name == name {
            return Err(Refusal::LinkToItself);
        }
        let node = self.tree.children(there.directory).and_then(|children| children.get(target_name)).copied();
        let node = node.ok_or_else(nothing)?;
        match self.tree.node(node).kind {
            // A directory with two names could contain itself.
            Kind::Directory(_) => Err(Refusal::LinkToDirectory { target: shown(target) }),
            _ => Ok(node),
        }
    }

    /// Gives a node a name. A directory over a directory only changes its attributes; else the new node replaces the
    /// old one, with all that is in it.
    fn bind(&mut self, place: Place, name: &[u8], node: NodeId) {
        let children = self.tree.children_mut(place.directory).expect("a place is a directory");
        let Some(known) = children.get_mut(name) else {
            children.insert(name.into(), node);
            return;
        };
        let old = *known;
        let is_directory = |tree: &Tree, node| matches!(tree.node(node).kind, Kind::Directory(_));
        if is_directory(self.tree, node) && is_directory(self.tree, old) {
            return self.take_attributes(old, node);
        }
        if let Some(known) = self.tree.children_mut(place.directory).and_then(|children| children.get_mut(name)) {
            *known = node;
        }
        if matches!(self.tree.node(old).kind, Kind::Directory(_) | Kind::Symlink(_)) {
            self.last = None;
        }
    }

    fn take_attributes(&mut self, to: NodeId, from: NodeId) {
        let attributes = std::mem::take(&mut self.tree.node_mut(from).attributes);
        self.tree.node_mut(to).attributes = attributes;
    }
}

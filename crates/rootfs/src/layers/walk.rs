//! The way along a path in the tree. Symlinks lead to other places of the tree, never out of it.

use std::borrow::Cow;

use super::error::Refusal;
use super::limits::{Budget, DEPTH_MAX, LINKS_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX};
use super::names::{PathFault, shown};
use crate::tree::{Attributes, Children, Kind, Node, NodeId, Tree};

/// Permissions of directories that have no entry of their own.
const PARENT_PERMISSIONS: u16 = 0o755;

/// A directory, with its real place in the tree: symlinks of the path that led to it are not in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) directory: NodeId,
    depth: usize,
    path_bytes: usize,
}

/// What to do on the way.
#[derive(Clone, Copy)]
pub(super) enum Way<'a> {
    /// Make missing directories, and refuse to pass files.
    Make,
    /// End at a name that is not there, or not a directory.
    Look,
    /// As `Look`, and also end at a symlink if this function is true for its path.
    LookUnless(&'a dyn Fn(&[u8]) -> bool),
}

impl Place {
    const ROOT: Self = Self { directory: Tree::ROOT, depth: 0, path_bytes: 0 };

    /// The place of a directory in this one, or why a node with this name would be too deep.
    fn below(self, name: &[u8], directory: NodeId) -> Result<Self, PathFault> {
        let path_bytes = self.path_bytes + usize::from(self.depth > 0) + name.len();
        let depth = self.depth + 1;
        match () {
            () if name.len() > NAME_BYTES_MAX => Err(PathFault::NameTooLong),
            () if depth > DEPTH_MAX => Err(PathFault::TooDeep),
            () if path_bytes > PATH_BYTES_MAX => Err(PathFault::TooLong),
            () => Ok(Self { directory, depth, path_bytes }),
        }
    }

    /// Refuses a name that would have too long a path here. The path in the archive may be shorter, if it passes symlinks.
    pub(super) fn expect_room(self, name: &[u8]) -> Result<(), Refusal> {
        self.below(name, Tree::ROOT).map(drop).map_err(Refusal::Path)
    }
}

/// A path, or the target of a symlink in it, as far as it is still ahead.
#[derive(Debug)]
struct Ahead<'a> {
    path: Cow<'a, [u8]>,
    at: usize,
}

impl Ahead<'_> {
    /// The next part, which may be empty, and the path up to its end.
    fn next(&mut self) -> Option<(&[u8], &[u8])> {
        let rest = self.path.get(self.at..)?;
        let end = self.at + rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        let part = self.at..end;
        self.at = end + 1;
        Some((&self.path[part], &self.path[..end]))
    }
}

/// Goes along a path to a directory. `None` if it is not there.
///
/// A symlink leads from its own directory, or from the root of the tree if its target is absolute; `..` in it leads to the
/// real parent, and stays at the root. That is what a kernel does whose root is this tree.
pub(super) fn directory(
    tree: &mut Tree,
    budget: &mut Budget,
    path: &[u8],
    way: Way<'_>,
) -> Result<Option<Place>, Refusal> {
    let mut places = vec![Place::ROOT];
    // The path, and above it the target of each symlink that was entered and not left.
    let mut ahead = vec![Ahead { path: Cow::Borrowed(path), at: 0 }];
    let mut links = 0;
    loop {
        let in_link = ahead.len() > 1;
        let Some(last) = ahead.last_mut() else { return Ok(places.last().copied()) };
        let Some((part, so_far)) = last.next() else {
            ahead.pop();
            continue;
        };
        if in_link {
            budget.take_link_name()?;
        }
        let here = *places.last().expect("the root is never left");
        match part {
            b"" | b"." => continue,
            b".." => {
                places.truncate((places.len() - 1).max(1));
                continue;
            }
            _ => {}
        }
        let child = tree.children(here.directory).and_then(|children| children.get(part)).copied();
        let Some(child) = child else {
            let Way::Make = way else { return Ok(None) };
            places.push(make(tree, budget, here, part)?);
            continue;
        };
        match &tree.node(child).kind {
            Kind::Directory(_) => places.push(here.below(part, child).map_err(Refusal::Path)?),
            Kind::Symlink(target) => {
                if let Way::LookUnless(is_replaced) = way
                    && !in_link
                    && is_replaced(so_far)
                {
                    return Ok(None);
                }
                links += 1;
                if links > LINKS_MAX {
                    return Err(Refusal::LinkLoop);
                }
                if target.starts_with(b"/") {
                    places.truncate(1);
                }
                ahead.push(Ahead { path: Cow::Owned(target.to_vec()), at: 0 });
            }
            _ if matches!(way, Way::Make) => return Err(Refusal::NotADirectory { name: shown(part) }),
            _ => return Ok(None),
        }
    }
}

/// Makes a directory that has no entry of its own. It counts as one, since a path of a few bytes can need many.
fn make(tree: &mut Tree, budget: &mut Budget, here: Place, name: &[u8]) -> Result<Place, Refusal> {
    budget.take_entry()?;
    budget.take_text(name.len())?;
    let place = here.below(name, Tree::ROOT).map_err(Refusal::Path)?;
    let attributes = Attributes { permissions: PARENT_PERMISSIONS, ..Attributes::default() };
    let directory = tree.add(Node { attributes, kind: Kind::Directory(Children::new()) });
    let children = tree.children_mut(here.directory).expect("a place is a directory");
    children.insert(name.into(), directory);
    Ok(Place { directory, ..place })
}

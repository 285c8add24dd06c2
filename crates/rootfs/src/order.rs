//! The canonical order of a tree: what is written first, second, … is a function of the names alone.
//!
//! ```text
//!   /        ─▶  /  a  b  z     the children of a directory are next to each other,
//!   ├ a/x        x              then those of its first directory, and so on
//!   ├ b/y        y
//!   └ z
//! ```
//! The rank of a node is its place in this order. A node with several names has the place of the first of them. What
//! has no name is left out. Neither the numbers of nodes nor the order in which they were added play a part.

use crate::tree::{Kind, NodeId, Tree};

/// A rank that no node has: the node has no name.
const ABSENT: u32 = u32::MAX;

/// The nodes of a tree that have a name, in canonical order.
#[derive(Debug)]
pub(crate) struct Order {
    nodes: Vec<NodeId>,
    /// For each node of the tree its rank.
    ranks: Vec<u32>,
    /// For each rank the rank of the directory that has it first.
    parents: Vec<u32>,
    /// For each rank the number of names; for a directory as Linux counts it.
    links: Vec<u32>,
}

/// A directory that has two names, or is in itself. A tree has none, so the rest is not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkedDirectory(pub(crate) NodeId);

impl Order {
    /// The order of a tree.
    pub(crate) fn of(tree: &Tree) -> Result<Self, LinkedDirectory> {
        let mut order =
            Self { nodes: vec![Tree::ROOT], ranks: vec![ABSENT; tree.len()], parents: vec![0], links: vec![2] };
        order.ranks[Tree::ROOT.index()] = 0;
        let mut directories = vec![0];
        while let Some(rank) = directories.pop() {
            let first_new = directories.len();
            for child in tree.children(order.nodes[rank as usize]).into_iter().flatten().map(|(_, child)| *child) {
                let is_directory = matches!(tree.node(child).kind, Kind::Directory(_));
                let known = order.ranks[child.index()];
                if known == ABSENT {
                    let new = order.add(child, rank, is_directory);
                    if is_directory {
                        directories.push(new);
                    }
                } else if is_directory {
                    return Err(LinkedDirectory(child));
                } else {
                    order.links[known as usize] += 1;
                }
                order.links[rank as usize] += u32::from(is_directory);
            }
            // The first of them is the next.
            directories[first_new..].reverse();
        }
        Ok(order)
    }

    fn add(&mut self, node: NodeId, parent: u32, is_directory: bool) -> u32 {
        // No overflow: there are at most as many as the tree has nodes, and those are numbered with 32 bits.
        let rank = self.nodes.len() as u32;
        self.nodes.push(node);
        self.ranks[node.index()] = rank;
        self.parents.push(parent);
        self.links.push(if is_directory { 2 } else { 1 });
        rank
    }

    /// The nodes, from the root on.
    pub(crate) fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// The rank of a node that has a name.
    pub(crate) fn rank(&self, node: NodeId) -> u32 {
        self.ranks[node.index()]
    }

    /// The rank of the directory that has this one. The root has itself.
    pub(crate) fn parent(&self, rank: u32) -> u32 {
        self.parents[rank as usize]
    }

    /// The number of names, for a directory as Linux counts it: its own, `.`, and `..` in each directory in it.
    pub(crate) fn links(&self, rank: u32) -> u32 {
        self.links[rank as usize]
    }

    /// The path of a node, for messages.
    pub(crate) fn path(&self, tree: &Tree, rank: u32) -> String {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut rank = rank;
        while rank != 0 {
            let (node, parent) = (self.nodes[rank as usize], self.parents[rank as usize]);
            let siblings = tree.children(self.nodes[parent as usize]).into_iter().flatten();
            names.extend(siblings.filter(|(_, child)| **child == node).map(|(name, _)| &**name).next());
            rank = parent;
        }
        names.reverse();
        format!("/{}", printable(&names.join(&b'/')))
    }
}

/// Bytes as text for a message: no control characters, no invalid UTF-8.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().flat_map(|one| if one.is_control() { one.escape_default().collect() } else { vec![one] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Attributes, Children, Node};

    fn add(tree: &mut Tree, parent: NodeId, name: &str, kind: Kind) -> NodeId {
        let id = tree.add(Node { attributes: Attributes::default(), kind });
        link(tree, parent, name, id);
        id
    }

    fn link(tree: &mut Tree, parent: NodeId, name: &str, id: NodeId) {
        tree.children_mut(parent).expect("a directory").insert(name.as_bytes().into(), id);
    }

    fn directory() -> Kind {
        Kind::Directory(Children::new())
    }

    #[test]
    fn children_are_next_to_each_other_and_then_those_of_the_first_directory() {
        let mut tree = Tree::new(Attributes::default());
        let z = add(&mut tree, Tree::ROOT, "z", Kind::Fifo);
        let b = add(&mut tree, Tree::ROOT, "b", directory());
        let a = add(&mut tree, Tree::ROOT, "a", directory());
        let y = add(&mut tree, b, "y", Kind::Fifo);
        let x = add(&mut tree, a, "x", directory());
        let w = add(&mut tree, x, "w\n", Kind::Fifo);
        tree.add(Node { attributes: Attributes::default(), kind: Kind::Socket });

        let order = Order::of(&tree).expect("a tree");
        assert_eq!(order.nodes(), [Tree::ROOT, a, b, z, x, w, y]);
        assert_eq!(order.path(&tree, order.rank(w)), r"/a/x/w\n");
        assert_eq!(order.path(&tree, 0), "/");
        assert_eq!([0, 1, 2, 3].map(|rank| order.links(rank)), [4, 3, 2, 1]);
    }

    #[test]
    fn a_node_with_two_names_has_the_place_of_the_first() {
        let mut tree = Tree::new(Attributes::default());
        let late = add(&mut tree, Tree::ROOT, "z", Kind::Fifo);
        let inner = add(&mut tree, Tree::ROOT, "a", directory());
        link(&mut tree, inner, "1", late);
        link(&mut tree, inner, "2", late);
        let order = Order::of(&tree).expect("a tree");
        assert_eq!(order.nodes(), [Tree::ROOT, inner, late]);
        assert_eq!(order.links(order.rank(late)), 3);
    }

    #[test]
    fn a_directory_with_two_names_is_refused_also_if_it_is_in_itself() {
        let mut tree = Tree::new(Attributes::default());
        let inner = add(&mut tree, Tree::ROOT, "a", directory());
        link(&mut tree, inner, "loop", inner);
        assert_eq!(Order::of(&tree).expect_err("a loop"), LinkedDirectory(inner));
        let mut tree = Tree::new(Attributes::default());
        link(&mut tree, Tree::ROOT, "loop", Tree::ROOT);
        assert_eq!(Order::of(&tree).expect_err("a loop"), LinkedDirectory(Tree::ROOT));
    }
}

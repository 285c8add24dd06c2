//! The digest of a whole tree: names, attributes, kinds, and the digests of contents, in canonical order.
//!
//! It does not depend on the numbers of nodes, on the order in which they were added, or on where contents are.

use crate::order::Order;
use crate::tree::{Kind, Node, Tree};

/// Separates these digests from all others.
const DOMAIN: &[u8] = b"kiln tree 1\0";
/// Bytes that are collected before they are hashed.
const BUFFER_LEN: usize = 64 * 1024;

/// The digest of a tree.
pub(crate) fn digest(tree: &Tree, order: &Order) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(DOMAIN);
    let mut buffer = Vec::new();
    for node in order.nodes() {
        append(tree.node(*node), order, &mut buffer);
        if buffer.len() >= BUFFER_LEN {
            hasher.update(&buffer);
            buffer.clear();
        }
    }
    hasher.update(&buffer);
    *hasher.finalize().as_bytes()
}

/// A node as bytes. Each field has a fixed size or its length before it, so two nodes never look alike.
fn append(node: &Node, order: &Order, buffer: &mut Vec<u8>) {
    let attributes = &node.attributes;
    buffer.extend_from_slice(&attributes.permissions.to_le_bytes());
    buffer.extend_from_slice(&attributes.uid.to_le_bytes());
    buffer.extend_from_slice(&attributes.gid.to_le_bytes());
    buffer.extend_from_slice(&attributes.modified.seconds.to_le_bytes());
    buffer.extend_from_slice(&attributes.modified.nanoseconds.to_le_bytes());
    number(attributes.xattrs.len(), buffer);
    for (name, value) in &attributes.xattrs {
        text(name, buffer);
        text(value, buffer);
    }
    match &node.kind {
        Kind::Directory(children) => {
            buffer.push(b'd');
            number(children.len(), buffer);
            for (name, child) in children {
                text(name, buffer);
                buffer.extend_from_slice(&order.rank(*child).to_le_bytes());
            }
        }
        Kind::File(body) => {
            buffer.push(b'f');
            buffer.extend_from_slice(&body.digest);
        }
        Kind::Symlink(target) => {
            buffer.push(b'l');
            text(target, buffer);
        }
        Kind::CharacterDevice { major, minor } => device(b'c', *major, *minor, buffer),
        Kind::BlockDevice { major, minor } => device(b'b', *major, *minor, buffer),
        Kind::Fifo => buffer.push(b'p'),
        Kind::Socket => buffer.push(b's'),
    }
}

fn device(kind: u8, major: u32, minor: u32, buffer: &mut Vec<u8>) {
    buffer.push(kind);
    buffer.extend_from_slice(&major.to_le_bytes());
    buffer.extend_from_slice(&minor.to_le_bytes());
}

fn text(bytes: &[u8], buffer: &mut Vec<u8>) {
    number(bytes.len(), buffer);
    buffer.extend_from_slice(bytes);
}

fn number(number: usize, buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(&(number as u64).to_le_bytes());
}

//! Extended attributes: behind their inode, or in a table that all inodes share.
//!
//! ```text
//!   behind an inode │ header (12) │ ids of shared ones, 4 bytes each │ entries │
//!   an entry        │ length of the name, its prefix as a number, length of the value │ name │ value │ to 4 bytes │
//! ```
//! An attribute that two inodes have alike is in the table once. An id is its offset there, in units of 4 bytes.

use std::collections::BTreeMap;

use super::format::{Problem, u16_at, u32_at};
use crate::tree::Attributes;

/// Size of the header behind an inode.
pub(super) const HEADER_LEN: usize = 12;
/// Size of an entry without name and value.
const ENTRY_LEN: usize = 4;
/// Shared attributes that one inode can have. The rest is behind the inode.
const SHARED_MAX: usize = 255;
/// Bytes that can be behind one inode.
pub(super) const BYTES_MAX: u64 = HEADER_LEN as u64 + (u16::MAX as u64 - 1) * 4;
/// The longest value.
pub(super) const VALUE_LEN_MAX: usize = u16::MAX as usize;
/// The longest name that Linux supports, with its prefix.
const NAME_LEN_MAX: usize = 255;

/// Prefixes of names and their numbers. The two with a whole name have nothing behind it.
const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// A name and a value.
pub(super) type Xattr<'a> = (&'a [u8], &'a [u8]);

/// Whether the format can hold an attribute of this name, and Linux can return it.
pub(super) fn is_name(name: &[u8]) -> bool {
    name.len() <= NAME_LEN_MAX && !name.contains(&0) && split(name).is_some()
}

/// The number of a name's prefix, and the rest of it.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(number, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        (prefix.ends_with(b".") != rest.is_empty()).then_some((*number, rest))
    })
}

/// The table of shared attributes.
#[derive(Debug, Default)]
pub(super) struct Shared<'a> {
    /// Each with its id.
    ids: BTreeMap<Xattr<'a>, u32>,
    bytes: u64,
}

impl<'a> Shared<'a> {
    /// The attributes that more than one of these has, in the order of their names and values. The names are checked
    /// before.
    pub(super) fn of(nodes: impl Iterator<Item = &'a Attributes>) -> Self {
        let mut counts: BTreeMap<Xattr<'a>, u32> = BTreeMap::new();
        for (name, value) in nodes.flat_map(|attributes| &attributes.xattrs) {
            let count = counts.entry((name, value)).or_default();
            *count = count.saturating_add(1);
        }
        let mut shared = Self::default();
        for (xattr, _) in counts.into_iter().filter(|(_, count)| *count > 1) {
            // Ids have 32 bits, so the table ends at 16 GiB. What does not fit is behind each inode.
            let Ok(id) = u32::try_from(shared.bytes / 4) else { break };
            shared.bytes += entry_len(xattr) as u64;
            shared.ids.insert(xattr, id);
        }
        shared
    }

    /// Size of the table.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The entries of the table, one after the other.
    pub(super) fn encode(&self, mut each: impl FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
        let mut entry = Vec::new();
        for xattr in self.ids.keys() {
            entry.clear();
            append(*xattr, &mut entry);
            each(&entry)?;
        }
        Ok(())
    }

    /// Bytes behind an inode with these attributes: 0 if it has none. See [`BYTES_MAX`].
    pub(super) fn bytes_behind(&self, attributes: &'a Attributes) -> u64 {
        if attributes.xattrs.is_empty() {
            return 0;
        }
        let (ids, rest) = self.sorted(attributes);
        let entries: u64 = rest.into_iter().map(|xattr| entry_len(xattr) as u64).sum();
        (HEADER_LEN + 4 * ids.len()) as u64 + entries
    }

    /// Appends what is behind an inode with these attributes.
    pub(super) fn append_behind(&self, attributes: &'a Attributes, output: &mut Vec<u8>) {
        if attributes.xattrs.is_empty() {
            return;
        }
        let (ids, rest) = self.sorted(attributes);
        output.extend_from_slice(&[0; HEADER_LEN]);
        let header = output.len() - HEADER_LEN;
        // No overflow: there are at most 255.
        output[header + 4] = ids.len() as u8;
        for id in ids {
            output.extend_from_slice(&id.to_le_bytes());
        }
        for xattr in rest {
            append(xattr, output);
        }
    }

    /// The ids of shared attributes, and the others.
    fn sorted(&self, attributes: &'a Attributes) -> (Vec<u32>, Vec<Xattr<'a>>) {
        let (mut ids, mut rest) = (Vec::new(), Vec::new());
        for xattr in attributes.xattrs.iter().map(|(name, value)| (&**name, &**value)) {
            match self.ids.get(&xattr) {
                Some(id) if ids.len() < SHARED_MAX => ids.push(*id),
                _ => rest.push(xattr),
            }
        }
        (ids, rest)
    }
}

fn entry_len((name, value): Xattr<'_>) -> usize {
    let rest = split(name).map_or(name, |(_, rest)| rest);
    (ENTRY_LEN + rest.len() + value.len()).next_multiple_of(4)
}

fn append((name, value): Xattr<'_>, output: &mut Vec<u8>) {
    let (prefix, rest) = split(name).expect("the names of a tree are checked before");
    let start = output.len();
    // No overflow: both lengths are checked before.
    output.extend_from_slice(&[rest.len() as u8, prefix]);
    output.extend_from_slice(&(value.len() as u16).to_le_bytes());
    output.extend_from_slice(rest);
    output.extend_from_slice(value);
    output.resize(start + (output.len() - start).next_multiple_of(4), 0);
}

/// The ids of shared attributes, and the bytes of the entries, in what is behind an inode.
pub(super) fn decode_behind(bytes: &[u8]) -> Result<(Vec<u32>, &[u8]), Problem> {
    const BROKEN: Problem = "an inode has a broken list of extended attributes";
    let count = usize::from(*bytes.get(4).ok_or(BROKEN)?);
    let ids = bytes.get(HEADER_LEN..HEADER_LEN + 4 * count).ok_or(BROKEN)?;
    Ok((ids.chunks_exact(4).map(|id| u32_at(id, 0)).collect(), &bytes[HEADER_LEN + 4 * count..]))
}

/// Size of an entry, from its first 4 bytes.
pub(super) fn len_of(start: &[u8; ENTRY_LEN]) -> usize {
    (ENTRY_LEN + usize::from(start[0]) + usize::from(u16_at(start, 2))).next_multiple_of(4)
}

/// The first entry of these bytes as a whole name and its value, and its size.
pub(super) fn decode(bytes: &[u8]) -> Result<(Vec<u8>, &[u8], usize), Problem> {
    const BROKEN: Problem = "an extended attribute is longer than its list";
    let start: &[u8; ENTRY_LEN] = bytes.first_chunk().ok_or(BROKEN)?;
    let name_end = ENTRY_LEN + usize::from(start[0]);
    let value_end = name_end + usize::from(u16_at(start, 2));
    let value = bytes.get(name_end..value_end).ok_or(BROKEN)?;
    let prefix = PREFIXES.iter().find(|(number, _)| *number == start[1]);
    let (_, prefix) = prefix.ok_or("an extended attribute has an unknown prefix")?;
    let name = [prefix, &bytes[ENTRY_LEN..name_end]].concat();
    if !is_name(&name) {
        return Err("an extended attribute has an invalid name");
    }
    // The zeros behind the last entry of a list may be left out.
    Ok((name, value, len_of(start).min(bytes.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(xattrs: &[(&str, &[u8])]) -> Attributes {
        let xattrs = xattrs.iter().map(|(name, value)| (name.as_bytes().into(), (*value).into())).collect();
        Attributes { xattrs, ..Attributes::default() }
    }

    #[test]
    fn an_attribute_of_two_inodes_is_shared_and_one_of_one_is_not() {
        let first = attributes(&[("user.a", b"1"), ("user.b", b"2"), ("security.capability", &[7; 20])]);
        let second = attributes(&[("user.a", b"1"), ("user.b", b"other"), ("security.capability", &[7; 20])]);
        let shared = Shared::of([&first, &second].into_iter());
        assert_eq!(shared.ids.len(), 2);

        let mut behind = Vec::new();
        shared.append_behind(&first, &mut behind);
        assert_eq!(behind.len() as u64, shared.bytes_behind(&first));
        let (ids, entries) = decode_behind(&behind).expect("a list");
        assert_eq!(decode(entries), Ok((b"user.b".to_vec(), &b"2"[..], 8)));

        let mut table = Vec::new();
        let into_table = |entry: &[u8]| std::io::Write::write_all(&mut table, entry);
        shared.encode(into_table).expect("memory takes all");
        assert_eq!(table.len() as u64, shared.bytes());
        let names: Vec<_> = ids.iter().map(|id| decode(&table[*id as usize * 4..]).expect("an entry").0).collect();
        assert_eq!(names, [b"security.capability".to_vec(), b"user.a".to_vec()]);
    }

    #[test]
    fn all_prefixes_survive() {
        let all = ["user.x", "trusted.x", "security.x", "system.posix_acl_access", "system.posix_acl_default"];
        for name in all {
            assert!(is_name(name.as_bytes()), "{name}");
            let mut entry = Vec::new();
            append((name.as_bytes(), b"value"), &mut entry);
            assert_eq!(decode(&entry), Ok((name.as_bytes().to_vec(), &b"value"[..], entry.len())));
        }
    }

    #[test]
    fn names_that_the_format_or_linux_does_not_know_are_found() {
        let long = format!("user.{}", "x".repeat(251));
        for name in ["user.", "system.x", "system.posix_acl_access2", "lustre.x", "", "user.a\0", &long] {
            assert!(!is_name(name.as_bytes()), "{name:?}");
        }
        assert!(is_name(&long.as_bytes()[..255]));
    }

    #[test]
    fn an_inode_with_more_than_255_shared_attributes_has_the_rest_behind_it() {
        let names: Vec<String> = (0..300).map(|n| format!("user.{n:03}")).collect();
        let many: Vec<(&str, &[u8])> = names.iter().map(|name| (&**name, &b"v"[..])).collect();
        let both = [attributes(&many), attributes(&many)];
        let shared = Shared::of(both.iter());
        let mut behind = Vec::new();
        shared.append_behind(&both[0], &mut behind);
        let (ids, mut entries) = decode_behind(&behind).expect("a list");
        assert_eq!(ids.len(), 255);
        let mut rest = 0;
        while !entries.is_empty() {
            entries = &entries[decode(entries).expect("an entry").2..];
            rest += 1;
        }
        assert_eq!(rest, 45);
    }

    #[test]
    fn broken_lists_and_entries_are_refused() {
        decode_behind(&[0; 4]).expect_err("no header");
        decode_behind(&[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).expect_err("no room for an id");
        decode(&[1, 1, 0]).expect_err("no entry");
        decode(&[1, 1, 9, 0, b'x', 0, 0, 0]).expect_err("a value behind the end");
        decode(&[1, 0x81, 0, 0, b'x', 0, 0, 0]).expect_err("a long prefix");
        decode(&[0, 1, 0, 0]).expect_err("no name behind the prefix");
        decode(&[1, 1, 0, 0, 0, 0, 0, 0]).expect_err("NUL in a name");
    }
}

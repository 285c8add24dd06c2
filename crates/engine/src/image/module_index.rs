//! kmod's binary tables: a trie that maps keys to values, which `modprobe` walks in the file.
//!
//! ```text
//!   magic, version, root ──▶ node: [prefix 0] [first last child …] [count (priority value 0) …]
//! ```
//! All numbers have 32 bits, the highest byte first. The offset of a node has flags in its high bits: which of the
//! three parts the node has. Nodes are written after their children. The format is described in kmod's
//! libkmod/libkmod-index.h and made by its `depmod`.

use std::collections::BTreeMap;

const MAGIC: u32 = 0xb007_f457;
const VERSION: u32 = 0x0002_0001;
const FLAG_PREFIX: u32 = 0x8000_0000;
const FLAG_VALUES: u32 = 0x4000_0000;
const FLAG_CHILDREN: u32 = 0x2000_0000;
/// Magic, version and root.
const HEADER_BYTES: usize = 12;

/// A table that is being made.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Each value with its priority; the lowest comes first.
    keys: BTreeMap<Vec<u8>, Vec<(u32, String)>>,
}

impl Index {
    /// An empty table.
    pub(super) const fn new() -> Self {
        Self { keys: BTreeMap::new() }
    }

    /// Adds a value of a key. kmod's keys are ASCII; others are left out, because no reader could ask for them.
    pub(super) fn add(&mut self, key: &str, value: &str, priority: u32) {
        let is_key = key.bytes().all(|byte| (1..0x80).contains(&byte)) && !value.contains('\0');
        if is_key {
            self.keys.entry(key.as_bytes().to_vec()).or_default().push((priority, value.to_owned()));
        }
    }

    /// The file.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        let entries: Vec<_> = self.keys.iter().map(|(key, values)| (key.as_slice(), values.as_slice())).collect();
        let root = write_node(&mut out, &entries, 0);
        for (at, word) in [MAGIC, VERSION, root].into_iter().enumerate() {
            out[at * 4..][..4].copy_from_slice(&word.to_be_bytes());
        }
        out
    }
}

type Entry<'a> = (&'a [u8], &'a [(u32, String)]);

/// Writes the node of the keys that have the same first `depth` bytes, and returns its offset with its flags.
fn write_node(out: &mut Vec<u8>, entries: &[Entry<'_>], depth: usize) -> u32 {
    // Sorted, so the first and the last key have in common what all have.
    let prefix = match (entries.first(), entries.last()) {
        (Some((first, _)), Some((last, _))) => {
            let common = first[depth..].iter().zip(&last[depth..]).take_while(|(left, right)| left == right).count();
            &first[depth..depth + common]
        }
        _ => &[],
    };
    let depth = depth + prefix.len();
    let (values, below) = match entries.split_first() {
        Some(((key, values), rest)) if key.len() == depth => (*values, rest),
        _ => (&[][..], entries),
    };
    let mut children = Vec::new();
    let mut rest = below;
    while let Some((key, _)) = rest.first() {
        let letter = key[depth];
        let count = rest.partition_point(|(key, _)| key[depth] == letter);
        children.push((letter, write_node(out, &rest[..count], depth + 1)));
        rest = &rest[count..];
    }

    let mut offset = u32::try_from(out.len()).expect("the modules of a kernel have some 100,000 aliases");
    if !prefix.is_empty() {
        out.extend(prefix);
        out.push(0);
        offset |= FLAG_PREFIX;
    }
    if let (Some((first, _)), Some((last, _))) = (children.first(), children.last()) {
        out.extend([*first, *last]);
        let mut next = children.iter().peekable();
        for letter in *first..=*last {
            let child = next.next_if(|(found, _)| *found == letter).map_or(0, |(_, child)| *child);
            out.extend(child.to_be_bytes());
        }
        offset |= FLAG_CHILDREN;
    }
    if !values.is_empty() {
        let mut values: Vec<_> = values.iter().collect();
        values.sort_by_key(|(priority, _)| *priority);
        out.extend((values.len() as u32).to_be_bytes());
        for (priority, value) in values {
            out.extend(priority.to_be_bytes());
            out.extend(value.as_bytes());
            out.push(0);
        }
        offset |= FLAG_VALUES;
    }
    offset
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(*bytes[at..].first_chunk().expect("is there"))
    }

    fn text(bytes: &[u8], at: usize) -> &str {
        let end = bytes[at..].iter().position(|byte| *byte == 0).expect("ends");
        std::str::from_utf8(&bytes[at..at + end]).expect("ASCII")
    }

    /// Looks a key up as kmod does.
    fn find(bytes: &[u8], key: &str) -> Vec<(u32, String)> {
        assert_eq!((word(bytes, 0), word(bytes, 4)), (MAGIC, VERSION));
        let (mut node, mut rest) = (word(bytes, 8), key.as_bytes());
        loop {
            let mut at = (node & 0x0fff_ffff) as usize;
            if node & FLAG_PREFIX != 0 {
                let prefix = text(bytes, at);
                let Some(after) = rest.strip_prefix(prefix.as_bytes()) else { return Vec::new() };
                (rest, at) = (after, at + prefix.len() + 1);
            }
            let mut child = 0;
            if node & FLAG_CHILDREN != 0 {
                let (first, last) = (bytes[at], bytes[at + 1]);
                if let Some(letter) = rest.first().filter(|letter| (first..=last).contains(letter)) {
                    child = word(bytes, at + 2 + usize::from(letter - first) * 4);
                }
                at += 2 + (usize::from(last - first) + 1) * 4;
            }
            if rest.is_empty() {
                let mut found = Vec::new();
                if node & FLAG_VALUES != 0 {
                    let count = word(bytes, at);
                    at += 4;
                    for _ in 0..count {
                        let value = text(bytes, at + 4);
                        found.push((word(bytes, at), value.to_owned()));
                        at += 5 + value.len();
                    }
                }
                return found;
            }
            if child == 0 {
                return Vec::new();
            }
            (node, rest) = (child, &rest[1..]);
        }
    }

    proptest! {
        #[test]
        fn each_key_is_found_with_all_its_values_and_no_other_key(
            keys in prop::collection::btree_map("[a-c:*_]{0,6}", prop::collection::vec("[a-z/. ]{0,9}", 1..3), 0..20),
            other in "[a-c:*_]{0,6}",
        ) {
            let mut index = Index::new();
            for (key, values) in &keys {
                // The last is added first, and has the highest priority.
                for (number, value) in values.iter().enumerate().rev() {
                    index.add(key, value, number as u32);
                }
            }
            let bytes = index.to_bytes();
            for (key, values) in &keys {
                let expected: Vec<_> = (0..).zip(values.iter().cloned()).collect();
                prop_assert_eq!(find(&bytes, key), expected);
            }
            prop_assert_eq!(find(&bytes, &other).is_empty(), !keys.contains_key(&other));
        }
    }

    #[test]
    fn two_modules_are_these_bytes() {
        let mut index = Index::new();
        index.add("ab", "x", 1);
        index.add("ac", "y", 2);
        let expected = b"\xb0\x07\xf4\x57\x00\x02\x00\x01\xa0\0\0\x20\
                         \0\0\0\x01\0\0\0\x01x\0\
                         \0\0\0\x01\0\0\0\x02y\0\
                         a\0bc\x40\0\0\x0c\x40\0\0\x16";
        assert_eq!(index.to_bytes(), expected);
    }

    #[test]
    fn a_key_that_no_reader_asks_for_is_left_out() {
        let mut index = Index::new();
        for key in ["\u{e9}", "a\0b"] {
            index.add(key, "x", 0);
        }
        assert_eq!(index.to_bytes(), Index::new().to_bytes());
    }
}

//! Paths of entries: made plain, checked, and told apart from marks.

use std::fmt::Write as _;

use super::error::Refusal;
use super::limits::{DEPTH_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX};

/// The start of each mark's name.
const MARK: &[u8] = b".wh.";
/// The start of marks about a whole directory, and of files that a union filesystem (aufs) keeps for itself.
const OWN_MARK: &[u8] = b".wh..wh.";
/// The mark that removes all that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Characters of a path in an error.
const SHOWN_CHARACTERS_MAX: usize = 300;

/// What is wrong with a path, as the end of a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// It leads upwards.
    #[error("has a part `..`")]
    Upwards,
    /// It has a byte that ends a path.
    #[error("has a NUL byte")]
    Nul,
    /// A name is too long.
    #[error("has a name of more than {NAME_BYTES_MAX} bytes")]
    NameTooLong,
    /// It is too long.
    #[error("has more than {PATH_BYTES_MAX} bytes")]
    TooLong,
    /// It has too many directories.
    #[error("is more than {DEPTH_MAX} directories deep")]
    TooDeep,
}

/// What a path of a layer stands for. A parent is a plain path; the root is empty.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// The root directory.
    Root,
    /// An entry with this name.
    Entry { parent: &'a [u8], name: &'a [u8] },
    /// A mark that this name is not there any more.
    Whiteout { parent: &'a [u8], name: &'a [u8] },
    /// A mark that the directory has only what this layer has in it.
    Opaque { parent: &'a [u8] },
    /// A file of a union filesystem, which means nothing here.
    Ignored,
}

/// Puts a path into `plain`, without a slash at the start or the end, empty parts and `.`.
pub(super) fn make_plain(path: &[u8], plain: &mut Vec<u8>) -> Result<(), PathFault> {
    plain.clear();
    let mut depth = 0;
    for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
        depth += 1;
        match part {
            b".." => return Err(PathFault::Upwards),
            part if part.len() > NAME_BYTES_MAX => return Err(PathFault::NameTooLong),
            part if part.contains(&0) => return Err(PathFault::Nul),
            part if plain.len() + part.len() >= PATH_BYTES_MAX + usize::from(plain.is_empty()) => {
                return Err(PathFault::TooLong);
            }
            _ if depth > DEPTH_MAX => return Err(PathFault::TooDeep),
            part => {
                if !plain.is_empty() {
                    plain.push(b'/');
                }
                plain.extend_from_slice(part);
            }
        }
    }
    Ok(())
}

/// The parent and the name of a plain path.
pub(super) fn split(plain: &[u8]) -> (&[u8], &[u8]) {
    match plain.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&plain[..slash], &plain[slash + 1..]),
        None => (b"", plain),
    }
}

/// What a plain path stands for.
pub(super) fn meaning(plain: &[u8]) -> Result<Meaning<'_>, Refusal> {
    if plain.is_empty() {
        return Ok(Meaning::Root);
    }
    let (parent, name) = split(plain);
    for directory in parent.split(|byte| *byte == b'/') {
        if directory.starts_with(OWN_MARK) {
            return Ok(Meaning::Ignored);
        }
        if directory.starts_with(MARK) {
            return Err(Refusal::MarkAsDirectory);
        }
    }
    match name.strip_prefix(MARK) {
        None => Ok(Meaning::Entry { parent, name }),
        Some(b"" | b"." | b"..") => Err(Refusal::MarkOfNothing),
        Some(_) if name == OPAQUE => Ok(Meaning::Opaque { parent }),
        Some(_) if name.starts_with(OWN_MARK) => Ok(Meaning::Ignored),
        Some(name) => Ok(Meaning::Whiteout { parent, name }),
    }
}

/// A path for people: control characters and bytes that are not text are escaped, and it has a bounded length.
pub(super) fn shown(path: &[u8]) -> String {
    let mut shown = String::new();
    let mut left = SHOWN_CHARACTERS_MAX;
    for chunk in path.utf8_chunks() {
        for character in chunk.valid().chars().take(left) {
            // Quotes are nothing special here.
            match character {
                '\'' | '"' => shown.push(character),
                character => shown.extend(character.escape_debug()),
            }
            left -= 1;
        }
        for byte in chunk.invalid().iter().take(left) {
            write!(shown, "\\x{byte:02x}").expect("a string takes everything");
            left -= 1;
        }
        if left == 0 {
            shown.push('…');
            break;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(path: &[u8]) -> Result<Vec<u8>, PathFault> {
        let mut plain = vec![b'?'];
        make_plain(path, &mut plain).map(|()| plain)
    }

    #[test]
    fn paths_become_plain() {
        for (path, expected) in [
            (&b"a/b"[..], &b"a/b"[..]),
            (b"/a//b/", b"a/b"),
            (b"./a/./b/.", b"a/b"),
            (b"//a", b"a"),
            (b"", b""),
            (b".", b""),
            (b"./", b""),
            (b"/", b""),
            (b"...", b"..."),
        ] {
            assert_eq!(plain(path).as_deref(), Ok(expected), "{}", path.escape_ascii());
        }
    }

    #[test]
    fn paths_that_linux_does_not_take_are_refused() {
        for path in [&b".."[..], b"a/..", b"a/../b", b"/../a", b"./.."] {
            assert_eq!(plain(path), Err(PathFault::Upwards), "{}", path.escape_ascii());
        }
        assert_eq!(plain(b"a\0b"), Err(PathFault::Nul));
        let name = |bytes: usize| vec![b'n'; bytes];
        assert_eq!(plain(&name(255)), Ok(name(255)));
        assert_eq!(plain(&name(256)), Err(PathFault::NameTooLong));
        // 16 names of 255 bytes with a slash after each are 4096 bytes: the last name may have one less.
        let names = |last: usize| [vec![name(255); 15], vec![name(last)]].concat().join(&b'/');
        assert_eq!(plain(&names(255)).map(|path| path.len()), Ok(4095));
        assert_eq!(plain(&[names(255), b"/x".to_vec()].concat()), Err(PathFault::TooLong));
        assert_eq!(plain(&[b"./".to_vec(), names(255)].concat()).map(|path| path.len()), Ok(4095));
        let deep = |depth: usize| vec![b"d".to_vec(); depth].join(&b'/');
        assert_eq!(plain(&deep(255)), Ok(deep(255)));
        assert_eq!(plain(&deep(256)), Err(PathFault::TooDeep));
        assert_eq!(plain(&deep(10_000)), Err(PathFault::TooDeep));
    }

    #[test]
    fn marks_are_told_apart_from_entries() {
        for (path, expected) in [
            (&b""[..], Meaning::Root),
            (b"a", Meaning::Entry { parent: b"", name: b"a" }),
            (b"a/b/c", Meaning::Entry { parent: b"a/b", name: b"c" }),
            (b"a/.wh", Meaning::Entry { parent: b"a", name: b".wh" }),
            (b"a/.wh.b", Meaning::Whiteout { parent: b"a", name: b"b" }),
            (b".wh....", Meaning::Whiteout { parent: b"", name: b"..." }),
            (b".wh..wh..opq", Meaning::Opaque { parent: b"" }),
            (b"a/.wh..wh..opq", Meaning::Opaque { parent: b"a" }),
            (b".wh..wh.plnk/17.4", Meaning::Ignored),
            (b"a/.wh..wh.aufs", Meaning::Ignored),
        ] {
            assert_eq!(meaning(path).expect("it has a meaning"), expected, "{}", path.escape_ascii());
        }
        for path in [&b".wh."[..], b".wh..", b".wh...", b"a/.wh..."] {
            assert!(matches!(meaning(path), Err(Refusal::MarkOfNothing)), "{}", path.escape_ascii());
        }
        assert!(matches!(meaning(b".wh.a/b"), Err(Refusal::MarkAsDirectory)));
    }

    #[test]
    fn a_shown_path_can_not_move_the_cursor() {
        assert_eq!(shown("caf\u{e9}/it's".as_bytes()), "caf\u{e9}/it's");
        assert_eq!(shown(b"a\x1b[2J\n\xff\xfe\\"), "a\\u{1b}[2J\\n\\xff\\xfe\\\\");
        assert!(shown("\u{202e}".as_bytes()).is_ascii(), "a mark that turns the direction of text");
        assert!(shown(&[b'x'; 1 << 20]).len() < 400 && shown(&[0xff; 1 << 20]).len() < 5000);
    }
}

//! Finds snapshots by the name that `kiln snapshot create` gave, or by the first digits of an id.
//!
//! A name is the label in a snapshot's manifest. The label of ready-made snapshots is the name of their image, which
//! many of them share. So they are found by their ids alone.

use std::collections::BTreeSet;

use kiln_engine::snapshot::{Listed, SnapshotId};

use crate::failure::{Failure, USAGE};
use crate::output::plain;

/// So many first digits of an id are enough, if no other id begins with them.
const PREFIX_DIGITS_MIN: usize = 6;
/// Most characters of a name.
const NAME_CHARS_MAX: usize = 64;

/// The snapshots with these names, each once.
pub fn resolve_all(listed: &[Listed], given: &[String]) -> Result<Vec<SnapshotId>, Failure> {
    let mut ids = given.iter().map(|one| resolve(listed, one)).collect::<Result<Vec<_>, _>>()?;
    // A snapshot that is given twice would be removed before its second turn.
    let mut seen = BTreeSet::new();
    ids.retain(|id| seen.insert(id.clone()));
    Ok(ids)
}

/// The snapshot with this name.
pub fn resolve(listed: &[Listed], given: &str) -> Result<SnapshotId, Failure> {
    let known: Vec<Known<'_>> = listed.iter().map(Known::from).collect();
    match choose(&known, given) {
        Choice::One(id) => Ok(id.clone()),
        Choice::None => {
            let words = format!("there is no snapshot `{}`", plain(given));
            Err(Failure::words(1, words).hint("kiln snapshot ls lists the snapshots"))
        }
        Choice::NoName => {
            let words = format!(
                "`{}` is not a name, a snapshot id, or at least {PREFIX_DIGITS_MIN} of its first digits",
                plain(given)
            );
            Err(Failure::words(USAGE, words).hint("kiln snapshot ls lists the snapshots"))
        }
        Choice::Many(ids) => {
            let ids = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let words = format!("`{}` names more than one snapshot: {ids}", plain(given));
            Err(Failure::words(USAGE, words).hint("give more digits of the id"))
        }
    }
}

/// Refuses a name that looks like an id, and a name that a snapshot has already.
pub fn check_new(listed: &[Listed], name: &str) -> Result<(), Failure> {
    check_name(name).map_err(|problem| Failure::words(USAGE, format!("the name `{}` {problem}", plain(name))))?;
    let known: Vec<Known<'_>> = listed.iter().map(Known::from).collect();
    match known.iter().find(|one| one.name == Some(name)) {
        None => Ok(()),
        Some(Known { id, .. }) => Err(Failure::words(1, format!("the snapshot `{name}` exists already, as `{id}`"))
            .hint(format!("choose another name, or remove the snapshot: kiln snapshot rm {name}"))),
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if name.is_empty() || name.len() > NAME_CHARS_MAX {
        Err("must have 1 to 64 characters")
    } else if !name.bytes().all(|byte| plain(byte) || b"._-".contains(&byte)) || !name.bytes().next().is_some_and(plain)
    {
        Err("must have only lower case letters, digits, `.`, `_` and `-`, and a letter or digit first")
    } else if has_digits_alone(name) {
        Err("must not look like the first digits of an id")
    } else {
        Ok(())
    }
}

/// Whether it has only digits of an id. Such a text is never a name, however short it is.
fn has_digits_alone(given: &str) -> bool {
    given.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A snapshot's id and name.
#[derive(Debug, Clone, Copy)]
struct Known<'a> {
    id: &'a SnapshotId,
    name: Option<&'a str>,
}

impl<'a> From<&'a Listed> for Known<'a> {
    fn from(one: &'a Listed) -> Self {
        let label = one.manifest.as_ref().map(|manifest| manifest.label.as_str());
        Self { id: &one.id, name: label.filter(|_| one.ready_for.is_none()) }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Choice<'a> {
    One(&'a SnapshotId),
    None,
    Many(Vec<&'a SnapshotId>),
    NoName,
}

fn choose<'a>(known: &[Known<'a>], given: &str) -> Choice<'a> {
    let is_fitting = |one: &&Known<'_>| match has_digits_alone(given) {
        true => one.id.as_str().starts_with(given),
        false => one.name == Some(given),
    };
    let is_name = if has_digits_alone(given) { given.len() >= PREFIX_DIGITS_MIN } else { check_name(given).is_ok() };
    if !is_name {
        return Choice::NoName;
    }
    let fitting: Vec<_> = known.iter().filter(is_fitting).map(|one| one.id).collect();
    match fitting[..] {
        [] => Choice::None,
        [only] => Choice::One(only),
        _ => Choice::Many(fitting),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_or_the_first_digits_of_an_id_choose_a_snapshot() {
        let ids = ["0123456789abcdef", "0123459999999999", "ffffffffffffffff"].map(|id| id.parse().expect("an id"));
        let names = [Some("web"), Some("twice"), Some("twice")];
        let known: Vec<_> = ids.iter().zip(names).map(|(id, name)| Known { id, name }).collect();
        assert_eq!(choose(&known, "web"), Choice::One(&ids[0]));
        assert_eq!(choose(&known, "twice"), Choice::Many(vec![&ids[1], &ids[2]]));
        assert_eq!(choose(&known, "ffffff"), Choice::One(&ids[2]));
        assert_eq!(choose(&known, "0123459"), Choice::One(&ids[1]));
        assert_eq!(choose(&known, ids[0].as_str()), Choice::One(&ids[0]));
        assert_eq!(choose(&known, "012345"), Choice::Many(vec![&ids[0], &ids[1]]));
        for unknown in ["aaaaaa", "we"] {
            assert_eq!(choose(&known, unknown), Choice::None, "{unknown:?}");
        }
        for bad in ["", "fffff", "FFFFFF", "../../", "\x1b[2Jffff"] {
            assert_eq!(choose(&known, bad), Choice::NoName, "{bad:?}");
        }
    }

    #[test]
    fn a_name_is_not_an_id_a_path_or_a_flag() {
        for good in ["web", "x", "db-1.2_x", "0x", "cafe-babe", "deadbeefs"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "abcdef", "012345", "cafe", "0", "-x", ".x", "a/b", "Web", "a b", "ü", &"a".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn refusals_of_names_read_like_this() {
        let mut lines = Vec::new();
        for name in ["web", "-x", "\u{1b}[2J"] {
            lines.push(resolve(&[], name).expect_err("no snapshot has this name"));
        }
        for name in ["", "Web", "cafe"] {
            lines.push(check_new(&[], name).expect_err("not a name"));
        }
        let lines = lines.iter().map(|failure| {
            let hint = failure.hint_text().unwrap_or("-");
            format!("exit code {}: {}\n  hint: {hint}\n", failure.code, failure.message())
        });
        insta::assert_snapshot!(lines.collect::<String>());
    }
}

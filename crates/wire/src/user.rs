//! The user that a command runs as, as people write it: `USER`, `USER:GROUP` or `:GROUP`, each a name or a number.
//!
//! The host checks it before a VM starts, and the agent checks it again before it looks the names up. Both use this.

use std::fmt;
use std::str::FromStr;

/// The highest id of a user or group. The next one is `(uid_t)-1`, which the kernel reads as "unchanged": a
/// process of root that changes to it stays root.
pub const ID_MAX: u32 = u32::MAX - 1;
/// Longest name of a user or group. Linux itself takes 32 characters, LDAP directories longer ones.
const NAME_BYTES_MAX: usize = 256;

/// A user, a group, or both.
///
/// ```
/// # use kiln_wire::{NameOrId, UserRef};
/// let wanted: UserRef = "www-data:50".parse().unwrap();
/// assert_eq!(wanted.user, Some(NameOrId::Name("www-data".into())));
/// assert_eq!(wanted.group, Some(NameOrId::Id(50)));
/// assert!("4294967295".parse::<UserRef>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRef {
    /// The user; the agent's own if absent.
    pub user: Option<NameOrId>,
    /// The group; the user's own groups if absent.
    pub group: Option<NameOrId>,
}

/// A user or a group by name or by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameOrId {
    /// Only digits; at most [`ID_MAX`].
    Id(u32),
    /// Anything else.
    Name(String),
}

/// Text that is not a user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserRefError {
    /// The form is wrong.
    #[error("`{0}` is not USER, USER:GROUP or :GROUP")]
    Form(String),
    /// A number that is not an id.
    #[error("`{0}` is not an id: the highest is {ID_MAX}")]
    Id(String),
}

/// The id of these digits, or `None` if they are not an id. Never the one that the kernel reads as "unchanged".
#[must_use]
pub fn parse_id(digits: &str) -> Option<u32> {
    // The standard library would also accept a sign.
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|id| plain && *id <= ID_MAX)
}

impl FromStr for UserRef {
    type Err = UserRefError;

    fn from_str(text: &str) -> Result<Self, UserRefError> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let part = |part: &str| NameOrId::parse(part, text);
        let user = if user.is_empty() && group.is_some() { None } else { Some(part(user)?) };
        Ok(Self { user, group: group.map(part).transpose()? })
    }
}

impl NameOrId {
    fn parse(part: &str, whole: &str) -> Result<Self, UserRefError> {
        if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
            return parse_id(part).map(Self::Id).ok_or_else(|| UserRefError::Id(part.to_owned()));
        }
        let odd = |char: char| char == ':' || char.is_control();
        let is_name = !part.is_empty() && part.len() <= NAME_BYTES_MAX && !part.contains(odd);
        // A name can't start with a sign, and people write `-1` for the id that is refused.
        if !is_name || part.starts_with(['-', '+']) {
            return Err(UserRefError::Form(whole.to_owned()));
        }
        Ok(Self::Name(part.to_owned()))
    }
}

impl fmt::Display for UserRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            user.fmt(f)?;
        }
        if let Some(group) = &self.group {
            write!(f, ":{group}")?;
        }
        Ok(())
    }
}

impl fmt::Display for NameOrId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<UserRef, UserRefError> {
        text.parse()
    }

    #[test]
    fn each_side_is_a_name_or_a_number() {
        let (id, name) = (NameOrId::Id, |name: &str| NameOrId::Name(name.into()));
        let wanted = [
            ("0", Some(id(0)), None),
            ("job", Some(name("job")), None),
            ("1000:5", Some(id(1000)), Some(id(5))),
            ("job:disk", Some(name("job")), Some(name("disk"))),
            ("1000:disk", Some(id(1000)), Some(name("disk"))),
            (":5", None, Some(id(5))),
            ("4294967294", Some(id(ID_MAX)), None),
            ("7zip", Some(name("7zip")), None),
        ];
        for (text, user, group) in wanted {
            assert_eq!(parse(text), Ok(UserRef { user, group }), "{text}");
        }
    }

    #[test]
    fn minus_one_in_any_spelling_is_refused() {
        for text in [
            "4294967295",
            "0:4294967295",
            ":4294967295",
            "4294967295:0",
            "004294967295",
            "4294967296",
            "9".repeat(40).as_str(),
        ] {
            assert!(matches!(parse(text), Err(UserRefError::Id(_))), "{text}");
        }
        for text in ["-1", "+1", "0:-1", ":+0"] {
            assert!(matches!(parse(text), Err(UserRefError::Form(_))), "{text}");
        }
    }

    #[test]
    fn text_without_a_user_or_group_is_refused() {
        for text in ["", ":", "1:", "job:", "a:b:c", ":a:", "a\nb", "a\0", "x".repeat(NAME_BYTES_MAX + 1).as_str()] {
            assert!(matches!(parse(text), Err(UserRefError::Form(_))), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_parsed_user_round_trips(text in "[a-z0-9:_+-]{0,12}|\\PC{0,12}|[0-9]{9,11}(:[0-9]{9,11})?") {
            if let Ok(wanted) = parse(&text) {
                prop_assert_eq!(parse(&wanted.to_string()), Ok(wanted));
            }
        }
    }
}

//! As whom an image's program runs: `name|uid[:name|gid]`. Names are resolved in the guest, against the image's own
//! files.

use std::fmt;
use std::str::FromStr;

/// The largest id of a user or group: larger ones became root in programs that read them as a signed number
/// (CVE-2024-40635).
pub const ID_MAX: u32 = i32::MAX.unsigned_abs();
const NAME_BYTES_MAX: usize = 256;

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// Its number, at most [`ID_MAX`].
    Id(u32),
    /// Its name in the image's `/etc/passwd` or `/etc/group`.
    Name(String),
}

/// A user, and a group if the image names one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub user: Account,
    /// The group; without one it is the user's own.
    pub group: Option<Account>,
}

/// Why a text names no user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// It is not a name or number, with an optional one after a colon.
    #[error("`{}` is not a user and an optional group", .text.escape_debug())]
    Malformed {
        /// The text.
        text: String,
    },
    /// A number is too large.
    #[error("the id `{id}` is over {ID_MAX}")]
    TooLarge {
        /// The number.
        id: String,
    },
}

impl FromStr for User {
    type Err = UserError;

    fn from_str(text: &str) -> Result<Self, UserError> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let account = |part: &str| account(part, text);
        Ok(Self { user: account(user)?, group: group.map(account).transpose()? })
    }
}

fn account(part: &str, text: &str) -> Result<Account, UserError> {
    if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
        let id = part.parse().ok().filter(|id| *id <= ID_MAX);
        let shown = || part.chars().take(NAME_BYTES_MAX).collect();
        return id.map(Account::Id).ok_or_else(|| UserError::TooLarge { id: shown() });
    }
    // A sign in front would make it a number in some programs. The other characters have a meaning in the files in
    // which the name is looked up, or on a terminal.
    let is_bad = |letter: char| letter.is_control() || matches!(letter, ':' | '/' | ',');
    if part.is_empty() || part.len() > NAME_BYTES_MAX || part.starts_with(['-', '+']) || part.contains(is_bad) {
        return Err(UserError::Malformed { text: text.chars().take(NAME_BYTES_MAX).collect() });
    }
    Ok(Account::Name(part.to_owned()))
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.group {
            Some(group) => write!(f, "{}:{group}", self.user),
            None => write!(f, "{}", self.user),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_read_back_as_they_were_written() {
        for text in ["root", "0", "www-data:www-data", "1000:1000", "2147483647", "app:0", "a b", "DOMAIN\\user"] {
            assert_eq!(text.parse::<User>().expect("is a user").to_string(), text);
        }
        assert_eq!("007".parse::<User>().expect("is a user").user, Account::Id(7));
    }

    #[test]
    fn users_that_could_become_root_are_refused() {
        let long = "9".repeat(100_000);
        let texts =
            ["4294967296", "2147483648", "-1", "+0", "0:99999999999", "0:-1", ":0", "a:", "a:b:c", "a\0", &long];
        for text in texts {
            let error = text.parse::<User>().expect_err(text);
            assert!(error.to_string().len() < 400);
        }
    }
}

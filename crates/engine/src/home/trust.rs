//! Checks that a home can be trusted. Kiln starts, kills, overwrites and removes things that files of the home name, so
//! no other user may be able to write such a file.
//!
//! ```text
//!   /  ─▶ each directory and link on the way ─▶ the home ─▶ images, vms, snapshots, cache
//!         owned by root or this user, and           owned by this user, and
//!         not writable by others, unless            not writable by others
//!         it is sticky, like /tmp
//! ```
//! The directories above the home count too. A user who can write to a directory can rename its entries, and so replace
//! the next directory of the path with one of their own. In a sticky directory, users can rename only their own
//! entries. So a sticky directory is accepted, and the owner of the next entry is checked anyway. Links are followed
//! step by step like the kernel does, because a link leads through other directories than its path shows.
//!
//! The check and the later use of the home are two steps, but no other user can change anything between them: every
//! directory that would allow it was refused. Directories that do not exist yet are created by Kiln, for this user
//! only. sshd has the same rules for a user's keys.

use std::collections::VecDeque;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::HomeError;

/// Most links on the way to a home. The kernel follows as many.
const LINKS_MAX: usize = 40;
const OTHERS_WRITE: u32 = 0o002;
const GROUP_WRITES: u32 = 0o020;
const STICKY: u32 = 0o1000;
/// The number that a user namespace shows for every user that it does not map.
const OVERFLOW_UID: u32 = 65534;
const ROOT: u32 = 0;

/// The accounts of `/etc/passwd` and `/etc/group`. Users of another source, such as LDAP, have no name and no private
/// group here.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    passwd: String,
    group: String,
    /// Whether this user namespace does not map [`OVERFLOW_UID`], so it is no user's number.
    overflow_is_outside: bool,
}

/// Checks every directory on the way to `home`, the home, and its own directories `below`.
pub(super) fn check(home: &Utf8Path, below: &[Utf8PathBuf], user: u32, accounts: &Accounts) -> Result<(), HomeError> {
    let judge = Judge { home, user, accounts };
    if judge.walk(home)? {
        for directory in below {
            match judge.walk(directory) {
                // A file in the place of a directory holds nothing that Kiln would use. A command that needs the
                // directory fails with its own error. Others work: a run that can't keep a snapshot still boots.
                Err(HomeError::NotADirectory { .. }) => {}
                judged => _ = judged?,
            }
        }
    }
    Ok(())
}

struct Judge<'a> {
    home: &'a Utf8Path,
    user: u32,
    accounts: &'a Accounts,
}

impl Judge<'_> {
    /// Follows a path like the kernel does, and judges each step. `false` if the path does not exist yet.
    fn walk(&self, path: &Utf8Path) -> Result<bool, HomeError> {
        let mut links_left = LINKS_MAX;
        let mut steps: VecDeque<String> = steps_of(path).collect();
        let mut here = Utf8PathBuf::from("/");
        self.judge(&here, &metadata(&here)?, steps.is_empty())?;
        while let Some(step) = steps.pop_front() {
            if step == ".." {
                here.pop();
                continue;
            }
            let next = here.join(&step);
            let found = match fs::symlink_metadata(&next) {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(source) => return Err(HomeError::Io { path: next, source }),
            };
            if !found.is_symlink() {
                self.judge(&next, &found, steps.is_empty())?;
                here = next;
                continue;
            }
            self.judge_owner(&next, &found, false)?;
            links_left = links_left.checked_sub(1).ok_or_else(|| HomeError::NotADirectory { path: path.into() })?;
            let target = next.read_link_utf8().map_err(|source| HomeError::Io { path: next.clone(), source })?;
            if target.is_absolute() {
                here = "/".into();
            }
            for step in steps_of(&target).collect::<Vec<_>>().into_iter().rev() {
                steps.push_front(step);
            }
        }
        Ok(true)
    }

    /// `own` is set for the home and the directories below it, which this user must own.
    fn judge(&self, path: &Utf8Path, found: &Metadata, own: bool) -> Result<(), HomeError> {
        if !found.is_dir() {
            return Err(HomeError::NotADirectory { path: path.into() });
        }
        self.judge_owner(path, found, own)?;
        let mode = found.mode();
        let group_writes = mode & GROUP_WRITES != 0 && !self.accounts.is_private(found.gid(), self.user);
        if (mode & OTHERS_WRITE != 0 || group_writes) && (own || mode & STICKY == 0) {
            let (mode, owner) = (mode & 0o7777, self.accounts.describe(found.uid()));
            return Err(HomeError::WritableByOthers { path: path.into(), home: self.home.into(), mode, owner });
        }
        Ok(())
    }

    fn judge_owner(&self, path: &Utf8Path, found: &Metadata, own: bool) -> Result<(), HomeError> {
        let owner = found.uid();
        // The owner of a directory outside of this user namespace is unknown. Only its mode shows who can write to it.
        let outside = owner == OVERFLOW_UID && self.accounts.overflow_is_outside;
        if owner == self.user || (!own && (owner == ROOT || outside)) {
            return Ok(());
        }
        let (owner, user) = (self.accounts.describe(owner), self.accounts.describe(self.user));
        Err(HomeError::Foreign { path: path.into(), home: self.home.into(), owner, user })
    }
}

fn steps_of(path: &Utf8Path) -> impl Iterator<Item = String> {
    path.as_str().split('/').filter(|step| !step.is_empty() && *step != ".").map(str::to_owned)
}

fn metadata(path: &Utf8Path) -> Result<Metadata, HomeError> {
    fs::symlink_metadata(path).map_err(|source| HomeError::Io { path: path.into(), source })
}

impl Accounts {
    /// The accounts of this host. A file that can't be read counts as empty.
    pub(super) fn read() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let numbers = read("/proc/self/uid_map");
        Self {
            passwd: read("/etc/passwd"),
            group: read("/etc/group"),
            overflow_is_outside: !numbers.is_empty() && !maps(&numbers, OVERFLOW_UID),
        }
    }

    /// A user as text for users.
    fn describe(&self, uid: u32) -> String {
        let name = self.users().find(|user| user.uid == uid).map(|user| user.name);
        name.map_or_else(|| format!("uid {uid}"), |name| format!("`{name}` (uid {uid})"))
    }

    /// Whether this user is the only member of a group. Many systems give each user such a group, and then make files
    /// writable by the group. No other user gains access by that.
    fn is_private(&self, gid: u32, uid: u32) -> bool {
        let Some(user) = self.users().find(|user| user.uid == uid) else { return false };
        let others = self.users().any(|other| other.gid == gid && other.uid != uid);
        let group = self
            .group
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.get(2).and_then(|number| number.parse::<u32>().ok()) == Some(gid));
        let Some(members) = group.and_then(|fields| fields.get(3).copied()) else { return false };
        !others && members.split(',').all(|member| member.is_empty() || member == user.name)
    }

    fn users(&self) -> impl Iterator<Item = User<'_>> {
        self.passwd.lines().filter_map(|line| {
            let fields: Vec<_> = line.split(':').collect();
            let number = |index: usize| fields.get(index)?.parse().ok();
            Some(User { name: fields.first()?, uid: number(2)?, gid: number(3)? })
        })
    }
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

/// Whether `/proc/self/uid_map` maps a number. Each of its lines has the first number inside, the first number outside,
/// and the count.
fn maps(uid_map: &str, uid: u32) -> bool {
    uid_map.lines().any(|line| {
        let mut words = line.split_ascii_whitespace().map(str::parse::<u32>);
        match (words.next(), words.nth(1)) {
            (Some(Ok(first)), Some(Ok(count))) => uid >= first && uid - first < count,
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests;

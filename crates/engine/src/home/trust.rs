//! Whether a home can be trusted: Kiln starts, kills, overwrites and removes what its files name, so no other user may have
//! put them there.
//!
//! ```text
//!   /  ─▶ each directory and link on the way ─▶ the home ─▶ images, vms, snapshots, cache
//!         root's or this user's, and others         this user's own, and others
//!         may not write there, unless it is         may not write there
//!         sticky, like /tmp
//! ```
//! A directory that others may write to lets them put another directory in the place of the next one. In a sticky one
//! they can do so only with entries of their own, and no entry on the way may be of another user. What does not exist yet
//! is made by Kiln, for this user alone. The rules are those that sshd has for a user's keys.

use std::collections::VecDeque;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::HomeError;

/// Links that are followed on the way to a home; the kernel follows as many.
const LINKS_MAX: usize = 40;
const OTHERS_WRITE: u32 = 0o002;
const GROUP_WRITES: u32 = 0o020;
const STICKY: u32 = 0o1000;
/// The owner that a user namespace shows for every user it has no number for.
const OVERFLOW_UID: u32 = 65534;
const ROOT: u32 = 0;

/// What a user's account files say. A user of another source has no name and no private group here.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    passwd: String,
    group: String,
    /// Whether [`OVERFLOW_UID`] can't be the number of a user, because this user namespace does not have it.
    overflow_is_outside: bool,
}

/// Checks every directory on the way to `home`, the home, and its own directories `below`.
pub(super) fn check(home: &Utf8Path, below: &[Utf8PathBuf], user: u32, accounts: &Accounts) -> Result<(), HomeError> {
    let judge = Judge { home, user, accounts };
    if judge.walk(home)? {
        for directory in below {
            match judge.walk(directory) {
                // It holds nothing that could be trusted, and who needs the directory gets an error of its own: a run
                // that can keep no snapshot still boots.
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
    /// Follows a path as the kernel does and judges each step. False if it leads to nothing yet.
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

    /// `own` for the home and what is below it, which must be this user's.
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
        // For a directory outside of this user namespace, only its mode shows who may write to it.
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
    /// Those of this host. What can't be read is empty.
    pub(super) fn read() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let numbers = read("/proc/self/uid_map");
        Self {
            passwd: read("/etc/passwd"),
            group: read("/etc/group"),
            overflow_is_outside: !numbers.is_empty() && !maps(&numbers, OVERFLOW_UID),
        }
    }

    /// A user for people.
    fn describe(&self, uid: u32) -> String {
        let name = self.users().find(|user| user.uid == uid).map(|user| user.name);
        name.map_or_else(|| format!("uid {uid}"), |name| format!("`{name}` (uid {uid})"))
    }

    /// Whether a group has only this user, for example because each user has a group of their own: what that group may
    /// write, no other user may.
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

/// Whether `/proc/self/uid_map` has a number: lines of the first inside, the first outside, and how many.
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

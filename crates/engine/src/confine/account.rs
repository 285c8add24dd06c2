//! A user for each VMM that root starts: a number that no other program uses, without an entry in any list of users.
//!
//! The VMM's own files become this user's: the guest's memory, and the files that it writes its device state to. Its
//! directory stays root's; the user may only pass through it. Everything else that the VMM uses it inherits open,
//! because the user can reach neither `$KILN_HOME` nor the user's disks by name.

use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};

use camino::Utf8Path;
use rustix::fs::Mode;

/// The range of these users. systemd gives lower numbers to containers. With numbers above, programs that use signed
/// numbers fail.
const FIRST: u32 = 0x7000_0000;
/// Users are chosen at random, so in 1 of 500 cases two of a thousand VMs have the same one. All other measures still
/// confine these.
const COUNT: u32 = 0x0ffd_0000;
/// The device of KVM.
const KVM: &str = "/dev/kvm";

/// A user with its supplementary groups. Its own group has the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) user: u32,
    pub(crate) groups: Vec<u32>,
}

impl Account {
    /// A new user.
    pub(crate) fn random() -> Self {
        let mut bytes = [0; 4];
        // Once the kernel has booted, a small request is always filled whole.
        rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
            .expect("getrandom can't fail for four bytes");
        Self { user: FIRST + u32::from_ne_bytes(bytes) % COUNT, groups: Vec::new() }
    }

    /// Lets the user open KVM.
    ///
    /// # Errors
    /// Returns why only root may.
    pub(crate) fn join_kvm(&mut self) -> Result<(), String> {
        let meta = fs_err::metadata(KVM).map_err(|error| error.to_string())?;
        match meta.mode() {
            mode if mode & 0o006 == 0o006 => Ok(()),
            mode if mode & 0o060 == 0o060 && meta.gid() != 0 => {
                self.groups.push(meta.gid());
                Ok(())
            }
            _ => Err(format!("only root may open `{KVM}`")),
        }
    }

    /// Makes a file the user's.
    pub(crate) fn give(&self, path: &Utf8Path) -> io::Result<()> {
        chown(path, Some(self.user), Some(self.user))
    }

    /// Lets the user pass through a directory, and do nothing else with it.
    pub(crate) fn let_pass(&self, directory: &Utf8Path) -> io::Result<()> {
        chown(directory, None, Some(self.user))?;
        Ok(rustix::fs::chmod(directory.as_std_path(), Mode::RWXU | Mode::XGRP)?)
    }
}

/// The first directory on the path of a file, or the file itself, that other users can't use.
pub(crate) fn barred(path: &Utf8Path, wanted: u32) -> Option<&Utf8Path> {
    let may = |path: &Utf8Path, wanted| fs_err::metadata(path).is_ok_and(|meta| meta.mode() & wanted == wanted);
    let mut ancestors = path.ancestors().skip(1).collect::<Vec<_>>();
    ancestors.reverse();
    ancestors.into_iter().find(|path| !may(path, 0o001)).or_else(|| (!may(path, wanted)).then_some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_in_range_and_differ() {
        let users =
            std::iter::repeat_with(|| Account::random().user).take(100).collect::<std::collections::BTreeSet<_>>();
        assert!(users.len() > 90 && users.into_iter().all(|user| (FIRST..FIRST + COUNT).contains(&user)));
    }

    #[test]
    fn the_directory_that_bars_the_path_is_named() {
        assert_eq!(barred("/usr/bin/env".into(), 0o005), None);
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8Path::from_path(directory.path()).expect("UTF-8");
        let file = path.join("file");
        fs_err::write(&file, "").expect("written");
        rustix::fs::chmod(path.as_std_path(), Mode::RWXU).expect("is ours");
        assert_eq!(barred(&file, 0o004), Some(path));
        rustix::fs::chmod(path.as_std_path(), Mode::from_raw_mode(0o755)).expect("is ours");
        rustix::fs::chmod(file.as_std_path(), Mode::from_raw_mode(0o640)).expect("is ours");
        assert_eq!(barred(&file, 0o004), Some(file.as_path()));
    }
}

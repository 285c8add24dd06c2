//! `$KILN_HOME`: the directory of images, snapshots, volumes, VMs and downloads.
//!
//! A home is used only if [`Home::check`] has found that no other user could have changed it.

mod trust;

use std::env;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};

use crate::files::{FileFacts, partials, sweep};

/// The directory in which Kiln keeps images, snapshots, volumes, VMs and downloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(Utf8PathBuf);

/// Why there is no home.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Neither variable is set.
    #[error("neither `KILN_HOME` nor `HOME` is set")]
    Unset,
    /// A relative path would mean another directory in each working directory.
    #[error("`{variable}` must be an absolute path, not `{value}`")]
    NotAbsolute {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// Another user owns the home, or a directory or link on the way to it.
    #[error(
        "`{path}` is owned by {owner}, not by {user}{}: Kiln uses only a home that no other user can change",
        way_words(path, home)
    )]
    Foreign {
        /// The directory or link with another owner.
        path: Utf8PathBuf,
        /// The home.
        home: Utf8PathBuf,
        /// The owner of `path`, as text for users.
        owner: String,
        /// This user, as text for users.
        user: String,
    },
    /// Other users can change the home, or replace it with another directory.
    #[error(
        "other users may write to `{path}` (mode {mode:04o}, owned by {owner}){}: Kiln uses only a home that no other user can change",
        way_words(path, home)
    )]
    WritableByOthers {
        /// The directory to which they can write.
        path: Utf8PathBuf,
        /// The home.
        home: Utf8PathBuf,
        /// The mode of `path`.
        mode: u32,
        /// The owner of `path`, as text for users.
        owner: String,
    },
    /// The home, or a step on the way to it, is not a directory.
    #[error("`{path}` is not a directory")]
    NotADirectory {
        /// The file.
        path: Utf8PathBuf,
    },
    /// A directory can't be inspected.
    #[error("failed to inspect `{path}`")]
    Io {
        /// The directory.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn way_words(path: &Utf8Path, home: &Utf8Path) -> String {
    if path == home { String::new() } else { format!(", and the home is `{home}`") }
}

impl HomeError {
    /// Whether the cause is the value of a variable, not the files of the home.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Unset | Self::NotAbsolute { .. })
    }

    /// What the user can do about it.
    pub fn hint(&self) -> String {
        let another = "export KILN_HOME=/a/directory/of/yours";
        match self {
            Self::WritableByOthers { path, .. } => {
                format!("chmod go-w {path}, if you trust everything in it, or: {another}")
            }
            Self::Unset | Self::NotAbsolute { .. } | Self::Foreign { .. } | Self::NotADirectory { .. } => {
                another.into()
            }
            Self::Io { .. } => format!("kiln doctor shows details, or: {another}"),
        }
    }
}

impl Home {
    /// `$KILN_HOME`, else `/var/lib/kiln` for root and `~/.local/share/kiln` for others. Creates nothing.
    ///
    /// # Errors
    /// [`HomeError`]
    pub fn from_env() -> Result<Self, HomeError> {
        Self::choose(variable("KILN_HOME"), variable("HOME"), rustix::process::geteuid().is_root())
    }

    fn choose(kiln_home: Option<String>, user_home: Option<String>, root: bool) -> Result<Self, HomeError> {
        let absolute = |variable, value: String| match Utf8Path::new(&value).is_absolute() {
            true => Ok(Utf8PathBuf::from(value)),
            false => Err(HomeError::NotAbsolute { variable, value }),
        };
        match (kiln_home, user_home) {
            (Some(path), _) => absolute("KILN_HOME", path).map(Self),
            (None, _) if root => Ok(Self("/var/lib/kiln".into())),
            (None, Some(path)) => absolute("HOME", path).map(|path| Self(path.join(".local/share/kiln"))),
            (None, None) => Err(HomeError::Unset),
        }
    }

    /// The home at a given path.
    pub fn at(path: impl Into<Utf8PathBuf>) -> Self {
        Self(path.into())
    }

    /// Checks that only this user and root can change or replace the home. If the home does not exist yet, Kiln will
    /// create it that way. Changes nothing.
    ///
    /// # Errors
    /// [`HomeError`] names the first directory that others own or can write to.
    pub fn check(&self) -> Result<(), HomeError> {
        let user = rustix::process::geteuid().as_raw();
        trust::check(&self.0, &self.parts(), user, &trust::Accounts::read())
    }

    fn parts(&self) -> [Utf8PathBuf; 7] {
        [self.images(), self.kernels(), self.vms(), self.snapshots(), self.volumes(), self.lab(), self.cache()]
    }

    /// The directory itself.
    pub fn path(&self) -> &Utf8Path {
        &self.0
    }

    /// Guest images, by digest.
    pub fn images(&self) -> Utf8PathBuf {
        self.0.join("images")
    }

    /// Kernels, by digest.
    pub fn kernels(&self) -> Utf8PathBuf {
        self.0.join("kernels")
    }

    /// Running and stopped VMs, by id.
    pub fn vms(&self) -> Utf8PathBuf {
        self.0.join("vms")
    }

    /// Snapshots, by id.
    pub fn snapshots(&self) -> Utf8PathBuf {
        self.0.join("snapshots")
    }

    /// Volumes, by name.
    pub fn volumes(&self) -> Utf8PathBuf {
        self.0.join("volumes")
    }

    /// Networks of running VMs: sockets, and the journal of what was made for them.
    pub fn networks(&self) -> Utf8PathBuf {
        self.0.join("networks")
    }

    /// Runs of the lab, by id.
    pub fn lab(&self) -> Utf8PathBuf {
        self.0.join("lab")
    }

    /// Downloads and remembered facts. All of it can be removed at any time.
    pub fn cache(&self) -> Utf8PathBuf {
        self.0.join("cache")
    }

    /// Removes unfinished files of processes that crashed, and returns their paths. Files of running processes stay.
    ///
    /// # Errors
    /// The first directory that can't be read or removed.
    pub fn sweep_partials(&self) -> io::Result<Vec<Utf8PathBuf>> {
        let mut removed = Vec::new();
        for parent in self.parts() {
            for path in partials(&parent)? {
                if sweep(&path)? {
                    removed.push(path);
                }
            }
        }
        Ok(removed)
    }
}

/// The BLAKE3 digest of a file, in hex digits. It is computed once, and remembered as long as the file does not change.
///
/// # Errors
/// The file can't be read.
pub fn remembered_digest(home: &Home, file: &Utf8Path) -> io::Result<String> {
    FileFacts::new(home.path()).digest(file)
}

/// The value of a variable. An empty variable counts as unset.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;
    use crate::every_variant::{chains, every_variant};
    use crate::files::Partial;

    fn scratch() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let home = Home::at(Utf8PathBuf::from_path_buf(dir.path().into()).expect("UTF-8"));
        (dir, home)
    }

    fn chosen(kiln_home: Option<&str>, user_home: Option<&str>, root: bool) -> Result<String, HomeError> {
        Home::choose(kiln_home.map(Into::into), user_home.map(Into::into), root).map(|home| home.0.into_string())
    }

    #[test]
    fn the_variable_wins_over_the_default_of_root_and_of_users() {
        assert_eq!(chosen(Some("/k"), Some("/home/u"), true).expect("is set"), "/k");
        assert_eq!(chosen(None, Some("/root"), true).expect("root has one"), "/var/lib/kiln");
        assert_eq!(chosen(None, Some("/home/u"), false).expect("HOME is set"), "/home/u/.local/share/kiln");
    }

    #[test]
    fn a_relative_home_and_none_at_all_are_refused() {
        assert!(matches!(chosen(Some("k"), None, true), Err(HomeError::NotAbsolute { variable: "KILN_HOME", .. })));
        assert!(matches!(chosen(None, Some("u"), false), Err(HomeError::NotAbsolute { variable: "HOME", .. })));
        assert!(matches!(chosen(None, None, false), Err(HomeError::Unset)));
    }

    #[test]
    fn a_sweep_removes_partial_files_of_a_crash_and_keeps_locked_ones() {
        let (_dir, home) = scratch();
        let held = Partial::create(&home.images(), "mini").expect("is made");
        let dead = home.snapshots().join("dead.partial");
        fs::create_dir_all(dead.join("below")).expect("is made");
        fs::create_dir_all(home.cache()).expect("is made");
        let file = home.cache().join("kernel.deb.partial");
        fs::write(&file, "half").expect("is written");
        fs::write(home.cache().join("kernel.deb"), "whole").expect("is written");

        let mut removed = home.sweep_partials().expect("sweeps");
        removed.sort();
        assert_eq!(removed, [file, dead]);
        assert!(held.path().is_dir() && home.cache().join("kernel.deb").is_file());
    }

    #[test]
    fn a_sweep_does_not_follow_a_link_out_of_the_home() {
        let (_dir, home) = scratch();
        let outside = home.path().join("outside");
        fs::create_dir_all(&outside).expect("is made");
        fs::create_dir_all(home.vms()).expect("is made");
        std::os::unix::fs::symlink(&outside, home.vms().join("x.partial")).expect("is made");
        assert_eq!(home.sweep_partials().expect("sweeps").len(), 1);
        assert!(outside.is_dir());
    }

    #[test]
    fn a_partial_that_is_dropped_is_gone_and_one_that_is_published_stays() {
        let (_dir, home) = scratch();
        let dropped = Partial::create(&home.images(), "a").expect("is made").path().to_owned();
        assert!(!dropped.exists());

        let partial = Partial::create(&home.images(), "b").expect("is made");
        fs::write(partial.path().join("kernel"), "x").expect("is written");
        let target = home.images().join("b");
        partial.publish(&target).expect("publishes");
        assert_eq!(fs::read_to_string(target.join("kernel")).expect("is there"), "x");
        assert_eq!(home.sweep_partials().expect("sweeps"), [] as [Utf8PathBuf; 0]);
    }

    #[test]
    fn a_published_directory_is_not_overwritten() {
        let (_dir, home) = scratch();
        let target = home.images().join("b");
        fs::create_dir_all(&target).expect("is made");
        fs::write(target.join("kernel"), "old").expect("is written");
        let partial = Partial::create(&home.images(), "b").expect("is made");
        let path = partial.path().to_owned();
        partial.publish(&target).expect_err("is there already");
        assert_eq!(fs::read_to_string(target.join("kernel")).expect("is there"), "old");
        assert!(!path.exists());
    }

    #[test]
    fn each_error_has_its_text_and_a_hint() {
        let (home, above) = (|| Utf8PathBuf::from("/home/me/kiln"), || Utf8PathBuf::from("/home/me"));
        let (owner, user) = (|| "root".to_owned(), || "me".to_owned());
        let errors = every_variant!(HomeError {
            Unset: [HomeError::Unset],
            NotAbsolute: [HomeError::NotAbsolute { variable: "KILN_HOME", value: "kiln".into() }],
            Foreign: [
                HomeError::Foreign { path: home(), home: home(), owner: owner(), user: user() },
                HomeError::Foreign { path: above(), home: home(), owner: owner(), user: user() },
            ],
            WritableByOthers: [
                HomeError::WritableByOthers { path: home(), home: home(), mode: 0o777, owner: owner() },
                HomeError::WritableByOthers { path: above(), home: home(), mode: 0o775, owner: owner() },
            ],
            NotADirectory: [HomeError::NotADirectory { path: home() }],
            Io: [HomeError::Io { path: home(), source: io::ErrorKind::PermissionDenied.into() }],
        });
        insta::assert_snapshot!(chains(&errors, |error| vec![format!("hint: {}", error.hint())]));
    }
}

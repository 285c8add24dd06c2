//! Downloaded packages. They are used again only if they match apt's signed lists.
//!
//! ```text
//!   newest ─▶ cache/<package>.deb ── SHA-256 compared with the stored one, or with apt's ── equal ─▶ used
//!                                                  ├── not equal ─▶ removed, named, fetched again
//!                                                  └── apt has no digest ─▶ not used, named
//!   fetch ──▶ apt ─▶ a partial directory ── SHA-256 compared with apt's ─▶ cache/, with the digest in a file beside it
//! ```
//! The digest is stored because apt's lists have only the newest version of a package.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use sha2::{Digest as _, Sha256};

use super::apt::{self, Apt, Candidate};
use super::build::BuildStep;
use super::packages::SourceError;
use super::space;
use super::version::version_key;
use crate::files::{Partial, plain_file, private_file};

/// The suffix of a package's name in the name of the file with its digest.
const DIGEST_SUFFIX: &str = ".sha256";
/// 64 digits and a line break.
const DIGEST_FILE_BYTES_MAX: u64 = 80;

/// The packages in a home's cache.
pub(super) struct PackageCache<'a> {
    directory: &'a Utf8Path,
    progress: &'a mut dyn FnMut(BuildStep),
    refused: Vec<String>,
}

impl<'a> PackageCache<'a> {
    /// Packages in a directory. `progress` is called with downloads and with packages that can't be used.
    pub(super) fn new(directory: &'a Utf8Path, progress: &'a mut dyn FnMut(BuildStep)) -> Self {
        Self { directory, progress, refused: Vec::new() }
    }

    /// The directory.
    pub(super) fn directory(&self) -> &Utf8Path {
        self.directory
    }

    /// The newest package with a wanted name that matches apt's lists.
    pub(super) fn newest(&mut self, wanted: impl Fn(&str) -> bool) -> Result<Option<Utf8PathBuf>, SourceError> {
        for path in self.packages(wanted)? {
            let file = path.file_name().unwrap_or_default();
            let Some(sha256) = self.kept(file).or_else(|| Apt::of_host().sha256_of(file)) else {
                self.refuse(file, "is not in apt's lists, so it can't be checked");
                continue;
            };
            if self.is_whole(&path, &sha256)? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Downloads a package if the cache does not have it.
    pub(super) fn fetch(&mut self, apt: &Apt, package: &str) -> Result<Utf8PathBuf, SourceError> {
        let Candidate { file, bytes, sha256 } = apt.candidate(package)?;
        let path = self.directory.join(&file);
        if self.is_whole(&path, &sha256)? {
            return Ok(path);
        }
        private_file::create_dir_all(self.directory).map_err(self.failed())?;
        space::check(self.directory, bytes)?;
        (self.progress)(BuildStep::Downloading { file: file.clone() });
        let partial = Partial::create(self.directory, "download").map_err(self.failed())?;
        apt.download(package, partial.path())?;
        let new = partial.path().join(&file);
        if sha256_of(&new).map_err(self.failed())? != sha256 {
            let problem = "was downloaded, but does not match apt's lists";
            return Err(SourceError::Unusable { path: file.into(), problem });
        }
        self.keep(&file, &sha256)?;
        fs::rename(new, &path).map_err(self.failed())?;
        Ok(path)
    }

    /// Packages in the cache that could not be used, as text for users; empty if there was none.
    pub(super) fn refused(&self) -> String {
        if self.refused.is_empty() { String::new() } else { format!(" ({})", self.refused.join(", ")) }
    }

    /// The newest first.
    fn packages(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Utf8PathBuf>, SourceError> {
        let entries = match self.directory.read_dir_utf8() {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.failed()(error)),
        };
        let is_wanted = |path: &Utf8PathBuf| {
            let package = path.file_name().and_then(|file| file.split_once('_'));
            path.extension() == Some("deb") && package.is_some_and(|(package, _)| wanted(package))
        };
        let mut found: Vec<_> =
            entries.filter_map(Result::ok).map(camino::Utf8DirEntry::into_path).filter(is_wanted).collect();
        found.sort_by_key(|path| version_key(path.file_name().unwrap_or_default()));
        found.reverse();
        Ok(found)
    }

    /// Whether a package exists and has this digest. A package with another digest is removed, because it has no use.
    fn is_whole(&mut self, path: &Utf8Path, sha256: &str) -> Result<bool, SourceError> {
        let file = path.file_name().unwrap_or_default();
        let found = match sha256_of(path) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            // A path that is not a file is not a package.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => None,
            Err(error) => return Err(self.failed()(error)),
        };
        if found.as_deref() == Some(sha256) {
            self.keep(file, sha256)?;
            return Ok(true);
        }
        self.refuse(file, "is damaged: its SHA-256 is not the one in apt's lists");
        fs::remove_file(path).map_err(self.failed())?;
        Ok(false)
    }

    fn refuse(&mut self, file: &str, problem: &'static str) {
        self.refused.push(format!("`{file}` {problem}"));
        (self.progress)(BuildStep::Refused { file: file.into(), problem });
    }

    fn kept(&self, file: &str) -> Option<String> {
        let text = plain_file::read(&self.digest_path(file), DIGEST_FILE_BYTES_MAX).ok()?;
        apt::sha256(std::str::from_utf8(&text).ok()?.trim_end())
    }

    fn keep(&self, file: &str, sha256: &str) -> Result<(), SourceError> {
        if self.kept(file).as_deref() == Some(sha256) {
            return Ok(());
        }
        let text = format!("{sha256}\n");
        private_file::replace(&self.digest_path(file), self.directory, text.as_bytes()).map_err(self.failed())
    }

    fn digest_path(&self, file: &str) -> Utf8PathBuf {
        self.directory.join(format!("{file}{DIGEST_SUFFIX}"))
    }

    fn failed(&self) -> impl Fn(io::Error) -> SourceError + use<> {
        let path = self.directory.to_owned();
        move |source| SourceError::Io { path: path.clone(), source }
    }
}

/// The SHA-256 of an ordinary file, as hex digits.
fn sha256_of(path: &Utf8Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut plain_file::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "kiln-no-such-package_1_amd64.deb";
    const TEXT: &[u8] = b"a package";

    fn scratch() -> (tempfile::TempDir, Utf8PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8Path::from_path(directory.path()).expect("UTF-8").to_owned();
        (directory, path)
    }

    fn newest(directory: &Utf8Path) -> (Option<Utf8PathBuf>, Vec<BuildStep>) {
        let mut steps = Vec::new();
        let mut progress = |step| steps.push(step);
        let found = PackageCache::new(directory, &mut progress).newest(|name| name == "kiln-no-such-package");
        (found.expect("reads"), steps)
    }

    fn keep(directory: &Utf8Path) {
        let sha256 = sha256_of(&directory.join(NAME)).expect("reads");
        fs::write(directory.join(format!("{NAME}{DIGEST_SUFFIX}")), format!("{sha256}\n")).expect("written");
    }

    #[test]
    fn a_package_is_used_as_long_as_it_has_the_digest_that_was_kept() {
        let (_directory, path) = scratch();
        fs::write(path.join(NAME), TEXT).expect("written");
        keep(&path);
        assert_eq!(newest(&path), (Some(path.join(NAME)), vec![]));

        fs::write(path.join(NAME), &TEXT[..4]).expect("cut short");
        let (found, steps) = newest(&path);
        assert_eq!(found, None);
        let words = steps[0].to_string();
        assert!(steps.len() == 1 && words.contains(NAME) && words.contains("damaged"), "{steps:?}");
        assert!(!path.join(NAME).exists(), "it is removed");
    }

    #[test]
    fn a_package_without_a_digest_is_named_and_not_used() {
        let (_directory, path) = scratch();
        fs::write(path.join(NAME), TEXT).expect("written");
        let (found, steps) = newest(&path);
        assert_eq!(found, None);
        assert!(steps[0].to_string().contains("is not in apt's lists"), "{steps:?}");
        assert!(path.join(NAME).exists());
    }

    #[test]
    fn a_link_is_not_a_package() {
        let (_directory, path) = scratch();
        fs::write(path.join("elsewhere"), TEXT).expect("written");
        std::os::unix::fs::symlink(path.join("elsewhere"), path.join(NAME)).expect("made");
        let sha256 = sha256_of(&path.join("elsewhere")).expect("reads");
        fs::write(path.join(format!("{NAME}{DIGEST_SUFFIX}")), sha256).expect("written");
        assert_eq!(newest(&path).0, None);
        assert!(path.join("elsewhere").exists(), "only the link goes");
    }
}

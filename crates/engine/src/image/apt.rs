//! Reads apt's lists of packages, and downloads packages. The distribution signs the lists and apt checks that, so a
//! digest from them proves the bytes of a package. The lists are those of this host, or those of the backports, which
//! are kept apart.

use std::io;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use kiln_programs::APT;
use rustix::fs::FlockOperation;

use super::command::{self, CommandError};
use super::packages::{SourceError, is_kernel_package};
use super::version::version_key;
use crate::files::private_file;

/// Depends on the newest kernel package of the release.
const KERNEL_META_PACKAGE: &str = "linux-image-cloud-amd64";
/// For reading apt's own files.
const QUERY_DEADLINE: Duration = Duration::from_secs(60);
/// For a download. apt gives up on a silent server much sooner.
const DOWNLOAD_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// For downloading lists.
const UPDATE_DEADLINE: Duration = Duration::from_secs(5 * 60);
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The keys that Debian signs its lists with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const QUERY_BYTES_MAX: u64 = 1 << 20;
const SHA256_DIGITS: usize = 64;

/// A package file that apt can download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) file: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// apt, with the lists of packages that it reads.
#[derive(Debug, Clone, Default)]
pub(super) struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// With the lists of this host, as the last `apt-get update` left them.
    pub(super) fn of_host() -> Self {
        Self::default()
    }

    /// With lists of its own, of the backports for this host's Debian, from this host's mirror. They are below
    /// `directory`, and are renewed now. Neither the system's lists nor its settings change, so this needs no root.
    pub(super) fn of_backports(directory: &Utf8Path) -> Result<Self, SourceError> {
        let (codename, mirror) = debian_of_host()?;
        let pocket = format!("{codename}-backports");
        let root = directory.join("apt").join(&pocket);
        let failed = |source| SourceError::Io { path: root.clone(), source };
        for below in ["lists/partial", "cache/archives/partial"] {
            private_file::create_dir_all(&root.join(below)).map_err(failed)?;
        }
        let _lock = wait_for_lock(&root.join("lock")).map_err(failed)?;
        let sources = root.join("sources.list");
        let line = format!("deb [signed-by={KEYRING}] {mirror} {pocket} main\n");
        private_file::replace(&sources, &root, line.as_bytes()).map_err(failed)?;
        let set = |name: &str, value: &str| ["-o".to_owned(), format!("{name}={value}")];
        let options = [
            set("Dir::Etc::SourceList", sources.as_str()),
            set("Dir::Etc::SourceParts", "-"),
            set("Dir::State::Lists", root.join("lists").as_str()),
            set("Dir::Cache", root.join("cache").as_str()),
            // The lock above is this one's. apt's own would be in a directory of the system.
            set("Debug::NoLocking", "1"),
            // apt's user could not write below the home of this one.
            set("APT::Sandbox::User", ""),
        ];
        let apt = Self { options: options.into_iter().flatten().collect() };
        let mut update = kiln_programs::command("apt-get", APT);
        // Without the option, apt exits with 0 although a list could not be downloaded, and uses the old ones.
        update.args(&apt.options).args(["update", "-q", "-o", "APT::Update::Error-Mode=any"]);
        command::output(&mut update, UPDATE_DEADLINE, QUERY_BYTES_MAX)?;
        Ok(apt)
    }

    /// The name of the newest kernel package.
    pub(super) fn newest_kernel(&self) -> Result<String, SourceError> {
        let text = self.ask("apt-cache", &["depends", KERNEL_META_PACKAGE])?;
        let depends = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).map(str::trim);
        let kernels = depends.filter(|name| is_kernel_package(name));
        kernels.max_by_key(|name| version_key(name)).map(str::to_owned).ok_or(SourceError::Unusable {
            path: KERNEL_META_PACKAGE.into(),
            problem: "depends on no kernel package; run `apt-get update` to renew apt's lists",
        })
    }

    /// The newest of the packages whose names begin so, if apt has one that is wanted.
    pub(super) fn newest_of(&self, start: &str, wanted: impl Fn(&str) -> bool) -> Result<Option<String>, SourceError> {
        let text = self.ask("apt-cache", &["pkgnames", start])?;
        let names = text.lines().map(str::trim).filter(|name| wanted(name));
        Ok(names.max_by_key(|name| version_key(name)).map(str::to_owned))
    }

    /// The file that a download of the package would fetch.
    pub(super) fn candidate(&self, package: &str) -> Result<Candidate, SourceError> {
        let uris = self.ask("apt-get", &["download", "--print-uris", package])?;
        let unusable = |problem| SourceError::Unusable { path: package.into(), problem };
        let line = uris.lines().find_map(download_line);
        let (file, bytes, digest) = line.ok_or_else(|| unusable("can't be downloaded: apt has no file for it"))?;
        let sha256 = match digest {
            Some(digest) => digest,
            None => self.sha256_of(file).ok_or_else(|| unusable("has no SHA-256 in apt's lists"))?,
        };
        Ok(Candidate { file: file.into(), bytes, sha256 })
    }

    /// The SHA-256 of a package file, by its name. `None` if apt does not have it or is not installed.
    pub(super) fn sha256_of(&self, file: &str) -> Option<String> {
        let mut words = file.strip_suffix(".deb")?.split('_');
        let (package, version, arch) = (words.next()?, words.next()?, words.next()?);
        // In file names apt replaces the colon of an epoch, because not every filesystem allows it.
        let asked = format!("{package}:{arch}={}", version.replace("%3a", ":"));
        if asked.starts_with('-') {
            return None;
        }
        let text = self.ask("apt-cache", &["show", &asked]).ok()?;
        text.lines().find_map(|line| sha256(line.strip_prefix("SHA256: ")?.trim()))
    }

    /// Downloads a package's file into a directory.
    pub(super) fn download(&self, package: &str, directory: &Utf8Path) -> Result<(), CommandError> {
        // apt reads the files that it writes, and some umasks of callers prevent that.
        let script = "umask 077 && exec apt-get \"$@\"";
        let mut command = kiln_programs::command("sh", APT);
        command.args(["-c", script, "sh"]).args(&self.options).args(["download", "-q", package]);
        command::stream(command.current_dir(directory), DOWNLOAD_DEADLINE, |_| Ok(()))
    }

    fn ask(&self, program: &str, arguments: &[&str]) -> Result<String, CommandError> {
        let mut command = kiln_programs::command(program, APT);
        command::output(command.args(&self.options).args(arguments), QUERY_DEADLINE, QUERY_BYTES_MAX)
    }
}

/// The code name of this host's Debian and its mirror, as apt has them.
fn debian_of_host() -> Result<(String, String), SourceError> {
    let text = Apt::of_host().ask(
        "apt-get",
        &["indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages", "Origin: Debian"],
    )?;
    codename_and_mirror(&text).ok_or(SourceError::Unusable {
        path: "apt".into(),
        problem: "has no mirror of Debian, so it has no backports; a package file can be named instead",
    })
}

fn codename_and_mirror(text: &str) -> Option<(String, String)> {
    let lines = text.lines().filter_map(|line| line.trim().split_once(' '));
    // Others are `bookworm-updates` and the like, of which there are no backports.
    let mut plain = lines.filter(|(name, url)| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
            && url.contains("://")
            && !url.contains(|c: char| c.is_whitespace() || c.is_control())
    });
    plain.next().map(|(name, url)| (name.to_owned(), url.to_owned()))
}

/// Locks a file until it is closed. Another process that renews the same lists has it for some seconds.
fn wait_for_lock(path: &Utf8PathBuf) -> io::Result<fs::File> {
    let file = private_file::lock_file(path)?;
    let deadline = Instant::now() + UPDATE_DEADLINE;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOCK_POLL_INTERVAL),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Parses a line of `--print-uris`: 'address' file bytes digest.
fn download_line(line: &str) -> Option<(&str, u64, Option<String>)> {
    let mut words = line.strip_prefix('\'')?.split(' ').skip(1);
    let (file, bytes) = (words.next()?, words.next()?.parse().ok()?);
    let digest = words.next().and_then(|word| sha256(word.strip_prefix("SHA256:")?));
    (file.ends_with(".deb") && !file.contains('/')).then_some((file, bytes, digest))
}

pub(super) fn sha256(text: &str) -> Option<String> {
    let good = text.len() == SHA256_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    good.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_uris_gives_a_file_its_size_and_its_digest() {
        let digest = "0123456789abcdef".repeat(4);
        let line = format!("'http://mirror/pool/x_1.2_amd64.deb' x_1.2_amd64.deb 26424228 SHA256:{digest}");
        assert_eq!(download_line(&line), Some(("x_1.2_amd64.deb", 26_424_228, Some(digest))));
        assert_eq!(download_line("'http://m/x.deb' x.deb 7 MD5Sum:00"), Some(("x.deb", 7, None)));
        for other in ["", "E: no package", "'http://m/x' ../x.deb 7 SHA256:00", "'http://m/x' x.txt 7"] {
            assert_eq!(download_line(other), None, "{other}");
        }
    }

    #[test]
    fn only_a_whole_digest_is_one() {
        assert!(sha256(&"0".repeat(64)).is_some());
        for wrong in ["", &"0".repeat(63), &"0".repeat(65), &"G".repeat(64), &"A".repeat(64)] {
            assert_eq!(sha256(wrong), None, "{wrong}");
        }
        assert_eq!(Apt::of_host().sha256_of("no-package.deb"), None);
        assert_eq!(Apt::of_host().sha256_of("-o=x_1_amd64.deb"), None);
    }

    #[test]
    fn backports_are_those_of_the_release_and_not_of_its_updates() {
        let text = "bookworm-updates https://mirror.example/debian/\nbookworm https://mirror.example/debian/\n";
        let found = codename_and_mirror(text);
        assert_eq!(found, Some(("bookworm".to_owned(), "https://mirror.example/debian/".to_owned())));
        for none in ["", "bookworm\n", "bookworm /srv/mirror\n", "book worm https://mirror.example/\n"] {
            assert_eq!(codename_and_mirror(none), None, "{none}");
        }
    }
}

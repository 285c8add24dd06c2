//! Reads apt's lists of packages, and downloads packages. The distribution signs the lists and apt checks that, so a
//! digest from them proves the bytes of a package.

use std::time::Duration;

use camino::Utf8Path;
use kiln_programs::APT;

use super::command::{self, CommandError};
use super::packages::{SourceError, is_kernel_package};
use super::version::version_key;

/// Depends on the newest kernel package of the release.
const KERNEL_META_PACKAGE: &str = "linux-image-cloud-amd64";
/// For reading apt's own files.
const QUERY_DEADLINE: Duration = Duration::from_secs(60);
/// For a download. apt gives up on a silent server much sooner.
const DOWNLOAD_DEADLINE: Duration = Duration::from_secs(15 * 60);
const QUERY_BYTES_MAX: u64 = 1 << 20;
const SHA256_DIGITS: usize = 64;

/// A package file that apt can download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) file: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// The name of the newest kernel package.
pub(super) fn newest_kernel() -> Result<String, SourceError> {
    let text = ask("apt-cache", &["depends", KERNEL_META_PACKAGE])?;
    let depends = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).map(str::trim);
    let kernels = depends.filter(|name| is_kernel_package(name));
    kernels.max_by_key(|name| version_key(name)).map(str::to_owned).ok_or(SourceError::Unusable {
        path: KERNEL_META_PACKAGE.into(),
        problem: "depends on no kernel package; run `apt-get update` to renew apt's lists",
    })
}

/// The file that a download of the package would fetch.
pub(super) fn candidate(package: &str) -> Result<Candidate, SourceError> {
    let uris = ask("apt-get", &["download", "--print-uris", package])?;
    let unusable = |problem| SourceError::Unusable { path: package.into(), problem };
    let line = uris.lines().find_map(download_line);
    let (file, bytes, digest) = line.ok_or_else(|| unusable("can't be downloaded: apt has no file for it"))?;
    let sha256 = match digest {
        Some(digest) => digest,
        None => sha256_of(file).ok_or_else(|| unusable("has no SHA-256 in apt's lists"))?,
    };
    Ok(Candidate { file: file.into(), bytes, sha256 })
}

/// The SHA-256 of a package file, by its name. `None` if apt does not have it or is not installed.
pub(super) fn sha256_of(file: &str) -> Option<String> {
    let mut words = file.strip_suffix(".deb")?.split('_');
    let (package, version, arch) = (words.next()?, words.next()?, words.next()?);
    // In file names apt replaces the colon of an epoch, because not every filesystem allows it.
    let asked = format!("{package}:{arch}={}", version.replace("%3a", ":"));
    if asked.starts_with('-') {
        return None;
    }
    let text = ask("apt-cache", &["show", &asked]).ok()?;
    text.lines().find_map(|line| sha256(line.strip_prefix("SHA256: ")?.trim()))
}

/// Downloads a package's file into a directory.
pub(super) fn download(package: &str, directory: &Utf8Path) -> Result<(), CommandError> {
    // apt reads the files that it writes, and some umasks of callers prevent that.
    let script = "umask 077 && exec apt-get download -q \"$0\"";
    let mut command = kiln_programs::command("sh", APT);
    command::stream(command.args(["-c", script, package]).current_dir(directory), DOWNLOAD_DEADLINE, |_| Ok(()))
}

fn ask(program: &str, arguments: &[&str]) -> Result<String, CommandError> {
    command::output(kiln_programs::command(program, APT).args(arguments), QUERY_DEADLINE, QUERY_BYTES_MAX)
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
        assert_eq!(sha256_of("no-package.deb"), None);
        assert_eq!(sha256_of("-o=x_1_amd64.deb"), None);
    }
}

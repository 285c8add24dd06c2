//! e2fsprogs: makes, checks and grows filesystems in files, without mounting them.
//!
//! Each program gets the file of one volume, the lock of its directory and nothing else: see
//! [`confined`](super::confined). A guest may have written the filesystem, so what a program prints is kept within bounds,
//! and reaches a terminal only with its control characters escaped.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use super::confined::{Confined, Ran};
use super::error::VolumeError;
use crate::image::CommandError;

/// Writes some MiB, whatever the size of the disk.
const MAKE_DEADLINE: Duration = Duration::from_secs(60);
/// Reads all metadata of a filesystem.
const CHECK_DEADLINE: Duration = Duration::from_secs(600);
/// Writes the metadata of the new part, and may have to move some.
const RESIZE_DEADLINE: Duration = Duration::from_secs(600);
/// Lines of it that are shown.
const LINES_SHOWN: usize = 6;
/// Exit codes with which e2fsck has checked. Bits: 1 corrected, 2 corrected and the host should restart if it has it
/// mounted, 4 not corrected, 8 it could not check.
const CHECK_CODES: [i32; 9] = [1, 2, 3, 4, 5, 6, 7, 8, 12];
/// Where distributions have e2fsprogs. It is not in the `PATH` of ordinary users.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/run/current-system/sw/bin"];
/// Bytes of a block. The kernel's pages have as many, so no request is split.
const BLOCK_BYTES: &str = "4096";
/// Features that kernels before 6.5 or so do not have, but newer tools turn on. Quotas stay off too: their mount fails
/// without the modules `quota_v2` and `quota_tree`, and the file's size is the quota.
const FEATURES: &str = "^orphan_file,^metadata_csum_seed";
/// The file is a hole, so it reads as zeros, and the tables need no writing: neither now nor by the guest's kernel
/// later. Otherwise the guest would write all of them in the background after its first mount, into the file and into
/// its snapshots.
const EXTENDED: &str = "assume_storage_prezeroed=1,root_owner=0:0";

/// The end of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Checked {
    /// Nothing was wrong. Replaying the journal counts as that.
    Clean,
    /// It was wrong, and is right now. What e2fsck printed.
    Corrected(String),
    /// It is wrong. What e2fsck printed.
    Wrong(String),
}

/// Whether a filesystem can be replayed after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Journal {
    Own,
    None,
}

/// Makes an empty ext4 filesystem in a file of zeros.
pub(super) fn make(data: &Utf8Path, journal: Journal) -> Result<(), VolumeError> {
    let features = match journal {
        Journal::Own => FEATURES.to_owned(),
        Journal::None => format!("{FEATURES},^has_journal"),
    };
    // No reserved blocks: they keep a machine's root filesystem usable, and a volume is not one.
    let arguments =
        ["-q", "-F", "-t", "ext4", "-b", BLOCK_BYTES, "-I", "256", "-m", "0", "-O", &features, "-E", EXTENDED];
    run("mke2fs", &arguments, data, None, MAKE_DEADLINE, &[]).map(drop)
}

/// Replays the journal and repairs what is safe to repair. A whole check if `whole`, otherwise only if the filesystem
/// needs one.
pub(super) fn repair(data: &Utf8Path, whole: bool, lock: BorrowedFd<'_>) -> Result<Checked, VolumeError> {
    check(if whole { &["-f", "-p"] } else { &["-p"] }, data, lock)
}

/// Checks a filesystem without changing it.
pub(super) fn examine(data: &Utf8Path, lock: BorrowedFd<'_>) -> Result<Checked, VolumeError> {
    check(&["-f", "-n"], data, lock)
}

/// Grows a filesystem to the size of its file.
pub(super) fn grow(data: &Utf8Path, lock: BorrowedFd<'_>) -> Result<(), VolumeError> {
    run("resize2fs", &[], data, Some(lock), RESIZE_DEADLINE, &[]).map(drop)
}

fn check(arguments: &[&str], data: &Utf8Path, lock: BorrowedFd<'_>) -> Result<Checked, VolumeError> {
    let (code, printed) = run("e2fsck", arguments, data, Some(lock), CHECK_DEADLINE, &CHECK_CODES)?;
    Ok(match code {
        0 => Checked::Clean,
        1..=3 => Checked::Corrected(printed),
        _ => Checked::Wrong(printed),
    })
}

/// Where a program is.
fn find(name: &str) -> Result<Utf8PathBuf, VolumeError> {
    let path = std::env::var("PATH").unwrap_or_default();
    let directories = DIRECTORIES.into_iter().chain(path.split(':').filter(|directory| directory.starts_with('/')));
    let mut programs = directories.map(|directory| Utf8Path::new(directory).join(name));
    programs.find(|path| path.is_file()).ok_or_else(|| VolumeError::NoTools { program: name.into() })
}

/// Runs a program on a file, to its end. Exit codes other than 0 and those in `also` are errors. Returns the code, and
/// the end of what it printed.
fn run(
    name: &str,
    arguments: &[&str],
    data: &Utf8Path,
    lock: Option<BorrowedFd<'_>>,
    deadline: Duration,
    also: &[i32],
) -> Result<(i32, String), VolumeError> {
    let failed = |source| VolumeError::io("lock", data, source);
    let keep = lock.map(|lock| lock.try_clone_to_owned()).transpose().map_err(failed)?.into_iter().collect();
    // Landlock's rules and the new mounts are for whole paths.
    let path = data.canonicalize_utf8().map_err(|source| VolumeError::io("find", data, source))?;
    let arguments = arguments.iter().copied().chain(["--", path.as_str()]).collect();
    let command = Confined { program: find(name)?, arguments, data: &path, keep, deadline };
    let Ran { status, stdout, stderr } = command.run().map_err(VolumeError::Tool)?;
    let (printed, stderr) = (last_lines(&stdout), last_lines(&stderr));
    match status.code() {
        Some(code) if code == 0 || also.contains(&code) => {
            Ok((code, if printed.is_empty() && code != 0 { stderr } else { printed }))
        }
        _ => {
            let stderr = if stderr.is_empty() { printed } else { stderr };
            Err(VolumeError::Tool(CommandError::Failed { command: command.line(), status, stderr }))
        }
    }
}

/// The last lines of a text that are not empty.
fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES_SHOWN)..].join("; ")
}

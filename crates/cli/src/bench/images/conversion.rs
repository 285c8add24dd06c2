//! From a tar archive to an image, against mkfs.erofs, which reads the same tree from a directory.
//!
//! Both write about 200 MiB. All that was written before is on the disk when a sample starts, and the archive and the
//! directory are in the page cache.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use kiln_engine::home::Home;
use kiln_engine::{Engine as _, blocking, host};
use kiln_programs::{PATH_ONLY, command};
use tempfile::TempDir;

use super::debian::import;
use crate::bench::guests::ms_since;
use crate::bench::results::Results;
use crate::bench::samples::{Promise, Sense, Series, Unit};
use crate::bench::suite::Bench;
use crate::output::say;

const PEER: &str = "mkfs.erofs";
const MIB: f64 = 1048576.0;
/// 150 MB.
const MIB_PER_S_MIN: f64 = 150e6 / MIB;

/// The tree as a directory, for the peer.
struct Peer {
    program: Utf8PathBuf,
    tree: TempDir,
}

/// Measures conversions.
pub async fn measure(bench: &Bench, tar: &Utf8Path, results: &mut Results) -> anyhow::Result<()> {
    let mut rate = Series::new("image from a tar of Debian", Unit::MibPerS);
    let mut ours = Series::new("image from a tar of Debian", Unit::Ms);
    let mut theirs = Series::new("mkfs.erofs of the same tree", Unit::Ms);
    let mut synced = Series::new("mkfs.erofs of the same tree, and a sync of its file", Unit::Ms);
    let (tar, beside) = (tar.to_owned(), bench.engine.home().to_owned());
    let mib = fs_err::metadata(&tar)?.len() as f64 / MIB;
    let peer = {
        let (tar, beside) = (tar.clone(), beside.clone());
        blocking(move || Peer::prepare(&tar, &beside)).await?.map(std::sync::Arc::new)
    };
    // The first of each reads its input into the page cache, and is not counted.
    for sample in 0..=bench.samples.div_ceil(3) {
        // The order alternates, so that a busy moment of the host affects both of a pair equally.
        for is_ours in if sample % 2 == 0 { [true, false] } else { [false, true] } {
            let (tar, beside) = (tar.clone(), beside.clone());
            if is_ours {
                let ms = blocking(move || kiln_ms(&tar, &beside)).await?;
                if sample > 0 {
                    ours.samples.push(ms);
                    rate.samples.push(mib / ms * 1e3);
                }
            } else if let Some(peer) = peer.clone() {
                let (wrote, safe) = blocking(move || peer.ms(&beside)).await?;
                if sample > 0 {
                    theirs.samples.push(wrote);
                    synced.samples.push(safe);
                }
            }
        }
    }
    results.promises.push(Promise {
        claim: "image from a tar of Debian ≥ 150 MB/s (143 MiB/s) of the tar (p50)",
        seen: rate.p50(),
        bound: MIB_PER_S_MIN,
        sense: Sense::AtLeast,
    });
    let has_peer = peer.is_some();
    if has_peer {
        results.promises.push(Promise {
            claim: "image from a tar of Debian, safe on the disk ≤ 1.5 × mkfs.erofs of the same tree (p50)",
            seen: ours.p50() / theirs.p50(),
            bound: 1.5,
            sense: Sense::AtMost,
        });
    }
    results.series.extend([rate, ours]);
    results.series.extend([theirs, synced].into_iter().filter(|_| has_peer));
    Ok(())
}

/// Makes an image in a home of its own, so that no earlier one is found.
fn kiln_ms(tar: &Utf8PathBuf, beside: &Utf8Path) -> anyhow::Result<f64> {
    let (_scratch, path) = scratch(beside)?;
    let home = Home::at(path);
    rustix::fs::sync();
    let start = Instant::now();
    import(&home, "debian", tar)?;
    Ok(ms_since(start))
}

impl Peer {
    /// Unpacks the archive. `None` if the peer is not installed, or if this user can't make the files of others.
    fn prepare(tar: &Utf8Path, beside: &Utf8Path) -> anyhow::Result<Option<Self>> {
        let found = host::find_program(Utf8Path::new(PEER)).filter(|_| rustix::process::geteuid().is_root());
        let Some(program) = found else {
            say("mkfs.erofs is not installed, or this is not root: no peer for images in this run");
            return Ok(None);
        };
        let (tree, _) = scratch(beside)?;
        let mut unpack = command("tar", PATH_ONLY);
        unpack.args(["--extract", "--preserve-permissions", "--numeric-owner", "--xattrs", "--xattrs-include=*"]);
        unpack.arg("--file").arg(tar).arg("--directory").arg(tree.path()).stdin(Stdio::null());
        let status = unpack.status().context("failed to start `tar`")?;
        ensure!(status.success(), "`tar` failed with {status}");
        Ok(Some(Self { program, tree }))
    }

    /// The time until it has written its image, and until that is on the disk.
    fn ms(&self, beside: &Utf8Path) -> anyhow::Result<(f64, f64)> {
        let (_scratch, path) = scratch(beside)?;
        let path = path.join("image");
        let mut make = command(&self.program, PATH_ONLY);
        make.arg("--quiet").arg(&path).arg(self.tree.path());
        make.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        rustix::fs::sync();
        let start = Instant::now();
        let status = make.status().with_context(|| format!("failed to start `{PEER}`"))?;
        ensure!(status.success(), "`{PEER}` failed with {status}");
        let wrote = ms_since(start);
        fs_err::File::open(&path)?.sync_all()?;
        Ok((wrote, ms_since(start)))
    }
}

/// A new directory on the disk of the home. It is removed when the first value is dropped.
fn scratch(beside: &Utf8Path) -> anyhow::Result<(TempDir, Utf8PathBuf)> {
    let directory = tempfile::Builder::new().prefix("bench-").tempdir_in(beside)?;
    let path = Utf8PathBuf::from_path_buf(directory.path().into());
    let path = path.ok().context("the home's path is UTF-8, so those below it are")?;
    Ok((directory, path))
}

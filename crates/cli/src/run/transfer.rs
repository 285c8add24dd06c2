//! `--in` and `--out`: copies files as a tar archive over one stream, with bounds on both ends.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bytes::Bytes;
use kiln_engine::deadlines::{Pace, TooSlow};
use kiln_engine::link::{Event, GuestLink, StreamError};
use kiln_wire::{Done, ErrorCode, FileRequest, Text};
use owo_colors::OwoColorize as _;
use tokio::sync::mpsc;

use super::out::{self, Budget, Piece, Target};
use super::pack::{LeftOut, pack};
use super::request::Copy;
use crate::failure::{Failure, VM};
use crate::output::{plain, say};

/// Most pieces of an archive between the link and the thread that packs or unpacks.
const PIECES: usize = 8;
const PIECE_BYTES: usize = 64 << 10;
/// Most names of left out files that are printed for a guest.
const LEFT_OUT_NAMES_MAX: usize = 256;

/// Copies a file or directory into the guest. A directory's content goes into the guest's path; a file becomes that
/// path.
pub async fn copy_in(link: &GuestLink, copy: &Copy) -> anyhow::Result<()> {
    let (folder, name) = split_target(&copy.guest, &copy.host);
    let (pieces, mut packed) = mpsc::channel::<Bytes>(PIECES);
    let host = copy.host.clone();
    let packing = tokio::task::spawn_blocking(move || {
        let mut output = io::BufWriter::with_capacity(PIECE_BYTES, Pieces(pieces));
        pack(&host, name.as_deref(), &mut output)
    });
    let (sender, mut receiver) = link.files(FileRequest::TarIn { path: folder })?;
    let feed = async move {
        let mut pace = Pace::default();
        while let Some(piece) = packed.recv().await {
            match pace.wait(sender.send(&piece)).await? {
                Ok(()) => pace.moved(piece.len()),
                // The reply has the reason.
                Err(_) => break,
            }
        }
        pace.finish();
        let _ = pace.wait(sender.eof()).await?;
        Ok::<_, TooSlow>(pace)
    };
    let answered = async {
        let answer = receiver.done();
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => Ok(answer?),
            fed = feed => Ok::<_, anyhow::Error>(fed?.wait(answer).await??),
        }
    };
    let answered = answered.await;
    // If the guest stopped reading, packing fails at once, because the other end of its channel is closed.
    let packed = packing.await.expect("packing does not panic");
    let left_out = match packed {
        Ok(left_out) => left_out,
        Err(error) if answered.is_err() && error.kind() == io::ErrorKind::BrokenPipe => LeftOut::default(),
        Err(error) => return Err(error).with_context(|| format!("failed to pack `{}`", copy.host.display())),
    };
    answered.map(drop).with_context(|| format!("failed to unpack into `{}` in the guest", copy.guest))?;
    warn(&left_out.special);
    whole(&copy.host.display(), &left_out.unreadable)
}

/// Copies all `--out`, which together may write `limit_bytes`. Tries each of them. The failure names all that failed.
pub async fn copy_all_out(link: &GuestLink, copies: &[Copy], limit_bytes: u64) -> Result<(), Failure> {
    let mut budget = Budget::new(limit_bytes);
    let mut failures = Vec::new();
    for copy in copies {
        if let Err(error) = copy_out(link, copy, &mut budget).await {
            failures.push(format!("{error:#}"));
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::words(VM, failures.join("\n"))) }
}

/// Copies a file or directory out of the guest, within the budget. If some files of a directory can't be copied, copies
/// the others and returns an error.
async fn copy_out(link: &GuestLink, copy: &Copy, budget: &mut Budget) -> anyhow::Result<()> {
    // Checked again: the command may have run for hours since the arguments were checked.
    let target = Target::find(&copy.host).map_err(anyhow::Error::msg)?;
    let (_sender, mut receiver) = link.files(FileRequest::TarOut { path: copy.guest.clone() })?;
    let (pieces, arriving) = mpsc::channel(PIECES);
    let mut spent = budget.clone();
    let taking = tokio::task::spawn_blocking(move || (out::take(arriving, &target, &mut spent), spent));
    let arrived: anyhow::Result<Option<Done>> = async {
        let mut pace = Pace::default();
        loop {
            let (piece, done) = match pace.wait(receiver.next()).await?? {
                Event::Data(_, bytes) => {
                    pace.moved(bytes.len());
                    (Piece::Bytes(bytes), None)
                }
                Event::Reply(_) | Event::Eof => continue,
                Event::Done(done) => (Piece::End, Some(done)),
                other => return Err(StreamError::unexpected(&other).into()),
            };
            // Fails only if the unpacking thread has stopped. Its result has the reason.
            if pieces.send(piece).await.is_err() || done.is_some() {
                return Ok(done);
            }
        }
    }
    .await;
    drop(pieces);
    let (taken, spent) = taking.await.expect("unpacking does not panic");
    *budget = spent;
    let done = arrived.with_context(|| format!("failed to read `{}` in the guest", copy.guest))?;
    let taken = taken.with_context(|| format!("failed to write `{}`", copy.host.display()))?;
    let Done { left_out, left_out_more, .. } = done.unwrap_or_default();
    let (special, unreadable): (Vec<_>, Vec<_>) =
        left_out.into_iter().take(LEFT_OUT_NAMES_MAX).partition(|fault| fault.code == ErrorCode::NotAFile);
    let mut special: Vec<_> = special.into_iter().map(|fault| fault.message).collect();
    if left_out_more > 0 {
        special.push(format!("{left_out_more} more files of `{}` were not copied", copy.guest));
    }
    warn(&special);
    let mut failed: Vec<_> = unreadable.into_iter().map(|fault| fault.message).chain(taken.words).collect();
    if taken.more > 0 {
        failed.push(format!("{} more symlinks point outside the copied directory", taken.more));
    }
    whole(&copy.guest, &failed)
}

/// Prints the names of files without content to copy, such as sockets. They are not a failure.
fn warn(special: &[String]) {
    for line in special {
        say(format_args!("{} {}", "kiln:".yellow().bold(), plain(line)));
    }
}

/// An error that names the files that are missing in a copy, if there are any.
fn whole(copied: &dyn Display, missing: &[String]) -> anyhow::Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    Err(anyhow::anyhow!("some files of `{copied}` were not copied:\n{}", missing.join("\n")))
}

/// The directory in the guest to unpack into, and a single file's name there.
fn split_target(guest: &Text, host: &Path) -> (Text, Option<PathBuf>) {
    if host.is_dir() {
        return (guest.clone(), None);
    }
    let own_name = host.file_name().map(PathBuf::from);
    if guest.as_bytes().ends_with(b"/") {
        return (guest.clone(), own_name);
    }
    let path = guest.as_path();
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("/"));
    (folder.into(), path.file_name().map(PathBuf::from).or(own_name))
}

/// A writer whose bytes go to the link.
struct Pieces(mpsc::Sender<Bytes>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.blocking_send(Bytes::copy_from_slice(bytes)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders_go_to_their_target() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("f");
        let target = |guest: &str, host: &Path| split_target(&guest.into(), host);
        assert_eq!(target("/job", folder.path()), ("/job".into(), None));
        assert_eq!(target("/job/x", &file), ("/job".into(), Some("x".into())));
        assert_eq!(target("/job/", &file), ("/job/".into(), Some("f".into())));
        assert_eq!(target("x", &file), ("/".into(), Some("x".into())));
    }
}

//! `--in` and `--out`: files as a tar archive over one stream. Both ends are bounded.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use kiln_engine::link::{Event, GuestLink, StreamError};
use kiln_wire::{FileRequest, Text};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::request::Copy;
use super::unpack::{Piece, unpack};
use crate::failure::{Failure, VM};

/// Pieces of an archive between the thread that packs or unpacks and the link.
const PIECES: usize = 8;
const PIECE_BYTES: usize = 64 << 10;
/// A guest that takes or gives nothing for this long has stopped.
const STALL_DEADLINE: Duration = Duration::from_secs(120);

/// Copies a file or directory into the guest. A directory's content lands in the guest's path, a file lands as it.
pub async fn copy_in(link: &GuestLink, copy: &Copy) -> anyhow::Result<()> {
    let (folder, name) = split_target(&copy.guest, &copy.host);
    let (pieces, mut packed) = mpsc::channel::<Bytes>(PIECES);
    let host = copy.host.clone();
    let packing = tokio::task::spawn_blocking(move || pack(&host, name.as_deref(), pieces));
    let (sender, mut receiver) = link.files(FileRequest::TarIn { path: folder })?;
    let feed = async move {
        while let Some(piece) = packed.recv().await {
            match timeout(STALL_DEADLINE, sender.send(&piece)).await {
                Ok(Ok(())) => {}
                // Why it ended is in the answer.
                Ok(Err(_)) => break,
                Err(_) => return Err(stalled()),
            }
        }
        let _ = sender.eof().await;
        Ok(())
    };
    let answered = async {
        let answer = receiver.done();
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            fed = feed => {
                fed?;
                timeout(STALL_DEADLINE, answer).await.unwrap_or_else(|_| Err(stalled()))
            }
        }
    };
    let answered = answered.await;
    // It ends at once where the guest takes no more: the other end of its channel is gone.
    let packed = packing.await.expect("packing does not panic");
    let packed = packed.with_context(|| format!("failed to pack `{}`", copy.host.display()));
    if let Err(error) = packed
        && (answered.is_ok() || !is_broken_pipe(&error))
    {
        return Err(error);
    }
    answered.map(drop).with_context(|| format!("failed to unpack into `{}` in the guest", copy.guest))
}

/// Copies everything of `--out`, which together may take `limit_bytes`. One that fails loses no other: the failure names
/// all that did.
pub async fn copy_all_out(link: &GuestLink, copies: &[Copy], limit_bytes: u64) -> Result<(), Failure> {
    let mut left = limit_bytes;
    let mut failures = Vec::new();
    for copy in copies {
        match copy_out(link, copy, left).await {
            Ok(taken) => left = left.saturating_sub(taken),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::words(VM, failures.join("\n"))) }
}

/// Copies a file or directory out of the guest; at most `limit_bytes` of archive are taken. Says how many were.
async fn copy_out(link: &GuestLink, copy: &Copy, limit_bytes: u64) -> anyhow::Result<u64> {
    let (_sender, mut receiver) = link.files(FileRequest::TarOut { path: copy.guest.clone() })?;
    let (pieces, arriving) = mpsc::channel(PIECES);
    let host = copy.host.clone();
    let unpacking = tokio::task::spawn_blocking(move || unpack(arriving, &host, limit_bytes));
    let arrived: Result<(), StreamError> = async {
        loop {
            let piece = match timeout(STALL_DEADLINE, receiver.next()).await.unwrap_or_else(|_| Err(stalled()))? {
                Event::Data(_, bytes) => Piece::Bytes(bytes),
                Event::Reply(_) | Event::Eof => continue,
                Event::Done(_) => Piece::End,
                other => return Err(StreamError::Unexpected(format!("{other:?}"))),
            };
            let ended = matches!(piece, Piece::End);
            // The unpacking thread has stopped where this fails, and says why.
            if pieces.send(piece).await.is_err() || ended {
                return Ok(());
            }
        }
    }
    .await;
    drop(pieces);
    let unpacked = unpacking.await.expect("unpacking does not panic");
    arrived.with_context(|| format!("failed to read `{}` in the guest", copy.guest))?;
    unpacked.with_context(|| format!("failed to write `{}`", copy.host.display()))
}

fn stalled() -> StreamError {
    StreamError::LinkLost(format!("nothing moved for {STALL_DEADLINE:?}"))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The guest's folder to unpack into, and the name that a single file gets there.
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

fn pack(host: &Path, name: Option<&Path>, pieces: mpsc::Sender<Bytes>) -> io::Result<()> {
    let sink = io::BufWriter::with_capacity(PIECE_BYTES, Pieces(pieces));
    let mut archive = tar::Builder::new(sink);
    archive.follow_symlinks(false);
    match name {
        // The one file that was named may be a symlink to it.
        Some(name) => archive.append_file(name, &mut fs_err::File::open(host)?.into_parts().0)?,
        None => archive.append_dir_all("", host)?,
    }
    archive.into_inner()?.flush()
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
    fn files_and_folders_land_where_they_were_asked_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("f");
        let target = |guest: &str, host: &Path| split_target(&guest.into(), host);
        assert_eq!(target("/job", folder.path()), ("/job".into(), None));
        assert_eq!(target("/job/x", &file), ("/job".into(), Some("x".into())));
        assert_eq!(target("/job/", &file), ("/job/".into(), Some("f".into())));
        assert_eq!(target("x", &file), ("/".into(), Some("x".into())));
    }
}

//! `--in` and `--out`: files as a tar archive over one stream. Both ends are bounded, and what comes out of a guest is
//! never trusted with a path.

use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;
use bytes::Bytes;
use kiln_engine::link::{Event, GuestLink, StreamError};
use kiln_wire::{FileRequest, Text};
use tokio::sync::mpsc;

use super::request::Copy;

/// Pieces of an archive between the thread that packs or unpacks and the link.
const PIECES: usize = 8;
const PIECE_BYTES: usize = 64 << 10;

/// Copies a file or directory into the guest. A directory's content lands in the guest's path, a file lands as it.
pub async fn copy_in(link: &GuestLink, copy: &Copy) -> anyhow::Result<()> {
    let (folder, name) = split_target(&copy.guest, &copy.host);
    let (pieces, mut packed) = mpsc::channel(PIECES);
    let host = copy.host.clone();
    let packing = tokio::task::spawn_blocking(move || pack(&host, name.as_deref(), pieces));
    let (sender, mut receiver) = link.files(FileRequest::TarIn { path: folder })?;
    let feed = async {
        while let Some(piece) = packed.recv().await {
            if sender.send(&piece).await.is_err() {
                break;
            }
        }
        // Lets the packing thread stop where the guest refused.
        packed.close();
        let _ = sender.eof().await;
    };
    let (_, done) = tokio::join!(feed, receiver.done());
    let packed = packing.await.expect("packing does not panic");
    done.with_context(|| format!("failed to unpack into `{}` in the guest", copy.guest))?;
    packed.with_context(|| format!("failed to pack `{}`", copy.host.display()))
}

/// Copies a file or directory out of the guest; at most `limit_bytes` are written. Says how many were.
pub async fn copy_out(link: &GuestLink, copy: &Copy, limit_bytes: u64) -> anyhow::Result<u64> {
    let (_sender, mut receiver) = link.files(FileRequest::TarOut { path: copy.guest.clone() })?;
    let (pieces, arriving) = mpsc::channel(PIECES);
    let host = copy.host.clone();
    let unpacking = tokio::task::spawn_blocking(move || unpack(arriving, &host, limit_bytes));
    let arrived: Result<(), StreamError> = async {
        loop {
            match receiver.next().await? {
                // The unpacking thread has stopped where this fails, and says why.
                Event::Data(_, bytes) => {
                    if pieces.send(bytes).await.is_err() {
                        return Ok(());
                    }
                }
                Event::Reply(_) | Event::Eof => {}
                Event::Done(_) => return Ok(()),
                other => return Err(StreamError::Unexpected(format!("{other:?}"))),
            }
        }
    }
    .await;
    drop(pieces);
    let unpacked = unpacking.await.expect("unpacking does not panic");
    arrived.with_context(|| format!("failed to read `{}` in the guest", copy.guest))?;
    unpacked.with_context(|| format!("failed to write `{}`", copy.host.display()))
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

/// Unpacks an archive whose names all start with one part, which is replaced by `host`.
fn unpack(pieces: mpsc::Receiver<Bytes>, host: &Path, limit_bytes: u64) -> io::Result<u64> {
    let folder = match host.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Unpacked beside its place and moved there once it is whole.
    let staging = tempfile::Builder::new().prefix(".kiln-out-").tempdir_in(folder)?;
    let mut archive = tar::Archive::new(Arriving { pieces, rest: Bytes::new(), left: limit_bytes, limit_bytes });
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    let (mut written, mut is_folder) = (0, false);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        let path = entry.path()?.into_owned();
        if !(kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link()) {
            return Err(io::Error::other(format!("`{}` is a {kind:?}, which is not copied out", path.display())));
        }
        let inner: PathBuf = path.components().filter(|part| *part != Component::CurDir).skip(1).collect();
        is_folder |= kind.is_dir() || inner.components().next().is_some();
        written += if kind.is_file() { entry.size() } else { 0 };
        unpack_entry(&mut entry, kind, &staging.path().join("whole"), &inner)?;
    }
    place(&staging.path().join("whole"), host, is_folder)?;
    Ok(written)
}

fn unpack_entry<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    kind: tar::EntryType,
    whole: &Path,
    inner: &Path,
) -> io::Result<()> {
    if inner.as_os_str().is_empty() {
        if kind.is_dir() {
            return fs_err::create_dir(whole);
        }
        return entry.unpack(whole).map(drop);
    }
    if kind.is_hard_link() {
        return Err(io::Error::other(format!("`{}` is a hard link, which is not copied out", inner.display())));
    }
    let target = safe_join(whole, inner)?;
    if kind.is_dir() {
        fs_err::create_dir_all(&target)
    } else {
        if let Some(parent) = target.parent() {
            fs_err::create_dir_all(parent)?;
        }
        entry.unpack(&target).map(drop)
    }
}

/// Joins only plain parts, and refuses to pass through a symlink that the guest put there before.
fn safe_join(folder: &Path, inner: &Path) -> io::Result<PathBuf> {
    let mut path = folder.to_path_buf();
    let mut parts = inner.components().peekable();
    while let Some(part) = parts.next() {
        let Component::Normal(name) = part else {
            return Err(io::Error::other(format!("`{}` leaves its folder", inner.display())));
        };
        path.push(name);
        if parts.peek().is_some() && path.is_symlink() {
            return Err(io::Error::other(format!("`{}` goes through a symlink", inner.display())));
        }
    }
    if path.is_symlink() {
        return Err(io::Error::other(format!("`{}` is there twice", inner.display())));
    }
    Ok(path)
}

/// Moves what was unpacked to its place: an existing folder is merged into, anything else is replaced.
fn place(whole: &Path, host: &Path, is_folder: bool) -> io::Result<()> {
    if whole.symlink_metadata().is_err() {
        return Err(io::Error::other("the archive from the guest is empty"));
    }
    if !host.is_dir() {
        return fs_err::rename(whole, host);
    }
    if !is_folder {
        return Err(io::Error::other("a folder is there, and a file came out"));
    }
    merge(whole, host)
}

fn merge(from: &Path, into: &Path) -> io::Result<()> {
    for entry in fs_err::read_dir(from)? {
        let entry = entry?;
        let target = into.join(entry.file_name());
        let both_folders = entry.file_type()?.is_dir() && target.symlink_metadata().is_ok_and(|meta| meta.is_dir());
        if both_folders {
            merge(&entry.path(), &target)?;
        } else {
            fs_err::rename(entry.path(), target)?;
        }
    }
    Ok(())
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

/// A reader of bytes from the link, up to a limit.
struct Arriving {
    pieces: mpsc::Receiver<Bytes>,
    rest: Bytes,
    left: u64,
    limit_bytes: u64,
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.rest = piece,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.rest.len());
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::other(format!("more than the limit of {} bytes came out (--out-limit)", self.limit_bytes))
        })?;
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unpacks an archive made by `fill` into `out` of a fresh folder.
    fn unpacked(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> (tempfile::TempDir, io::Result<u64>) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut archive = tar::Builder::new(Vec::new());
        fill(&mut archive);
        let bytes = archive.into_inner().expect("in memory");
        let (pieces, arriving) = mpsc::channel(PIECES + bytes.len() / 100);
        for piece in bytes.chunks(100) {
            pieces.try_send(Bytes::copy_from_slice(piece)).expect("there is room");
        }
        drop(pieces);
        let outcome = unpack(arriving, &folder.path().join("out"), 1 << 20);
        (folder, outcome)
    }

    fn add(archive: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, link: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // Written directly, because the safe setter refuses hostile names.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        archive.append(&header, content).expect("in memory");
    }

    #[test]
    fn a_folder_comes_out_under_its_new_name() {
        let (folder, outcome) = unpacked(|archive| {
            add(archive, tar::EntryType::Directory, "result/", "", b"");
            add(archive, tar::EntryType::Regular, "result/a/b", "", b"text");
            add(archive, tar::EntryType::Symlink, "result/l", "a/b", b"");
        });
        assert_eq!(outcome.expect("a good archive"), 4);
        assert_eq!(fs_err::read(folder.path().join("out/l")).expect("it is there"), b"text");
        assert_eq!(fs_err::read_dir(folder.path()).expect("readable").count(), 1, "nothing else is left");
    }

    #[test]
    fn a_single_file_comes_out_as_a_file() {
        let (folder, outcome) = unpacked(|archive| add(archive, tar::EntryType::Regular, "x", "", b"1"));
        assert_eq!(outcome.expect("a good archive"), 1);
        assert_eq!(fs_err::read(folder.path().join("out")).expect("it is there"), b"1");
    }

    #[test]
    fn hostile_archives_are_refused_and_leave_nothing() {
        type Fill = fn(&mut tar::Builder<Vec<u8>>);
        let hostile: [(&str, Fill); 6] = [
            ("leaves", |archive| add(archive, tar::EntryType::Regular, "r/../../evil", "", b"x")),
            ("symlink", |archive| {
                add(archive, tar::EntryType::Directory, "r/", "", b"");
                add(archive, tar::EntryType::Symlink, "r/l", "/tmp", b"");
                add(archive, tar::EntryType::Regular, "r/l/evil", "", b"x");
            }),
            ("twice", |archive| {
                add(archive, tar::EntryType::Directory, "r/", "", b"");
                add(archive, tar::EntryType::Symlink, "r/l", "/etc/passwd", b"");
                add(archive, tar::EntryType::Regular, "r/l", "", b"x");
            }),
            ("hard link", |archive| add(archive, tar::EntryType::Link, "r/h", "/etc/passwd", b"")),
            ("not copied out", |archive| add(archive, tar::EntryType::Char, "r/d", "", b"")),
            ("limit", |archive| add(archive, tar::EntryType::Regular, "r", "", &vec![0; 2 << 20])),
        ];
        for (word, fill) in hostile {
            let (folder, outcome) = unpacked(fill);
            let words = outcome.expect_err(word).to_string();
            assert!(words.contains(word), "{word}: {words}");
            assert_eq!(fs_err::read_dir(folder.path()).expect("readable").count(), 0, "{word}");
        }
    }

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

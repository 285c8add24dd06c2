//! The host's end of `--out`: an archive from a guest, which is never trusted with a path, a size or a mode.
//!
//! ```text
//!   pieces ──▶ Arriving (counts) ──▶ tar ──▶ .kiln-out-…/whole ──whole, and the agent said so──▶ its place
//! ```

use std::cell::Cell;
use std::fs::Permissions;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::mpsc;

/// Between two files an archive has names alone, at most a path and what it links to; the library keeps them in memory.
const NAMES_BYTES_MAX: u64 = 64 << 10;
/// Folders in folders. Removing a tree takes an open descriptor for each level.
const DEPTH_MAX: usize = 128;
/// What becomes of a mode: no set-user-ID, set-group-ID or sticky bit comes out of a guest.
const MODE_MASK: u32 = 0o777;
/// Folders stay the user's to fill and to remove.
const FOLDER_MODE_MIN: u32 = 0o700;

/// A piece of an archive, or its end: a stream that only stops was cut off.
#[derive(Debug)]
pub enum Piece {
    /// Its next bytes.
    Bytes(Bytes),
    /// The agent says that this was all.
    End,
}

/// Unpacks an archive, whose first entry becomes `host` and whose others are below it. At most `limit_bytes` of archive
/// are taken; says how many were.
pub fn unpack(pieces: mpsc::Receiver<Piece>, host: &Path, limit_bytes: u64) -> io::Result<u64> {
    // Unpacked beside its place, or in the folder that it is merged into, and moved once it is whole.
    let staging = tempfile::Builder::new().prefix(".kiln-out-").tempdir_in(folder_of(host))?;
    let whole = staging.path().join("whole");
    let names_left = Rc::new(Cell::new(u64::MAX));
    let arriving = Arriving {
        pieces,
        rest: Bytes::new(),
        ended: false,
        left: limit_bytes,
        limit_bytes,
        names_left: names_left.clone(),
    };
    let mut archive = tar::Archive::new(arriving);
    archive.set_preserve_permissions(false);
    archive.set_preserve_mtime(true);
    let mut base: Option<PathBuf> = None;
    let mut entries = archive.entries()?;
    loop {
        names_left.set(NAMES_BYTES_MAX);
        let Some(entry) = entries.next() else { break };
        names_left.set(u64::MAX);
        let mut entry = entry?;
        let path = plain_parts(&entry.path()?);
        let base = base.get_or_insert_with(|| path.clone());
        let Ok(inner) = path.strip_prefix(&*base) else {
            return Err(refused(&path, &format!("is not in `{}`", base.display())));
        };
        put(&mut entry, &path, &whole, inner)?;
    }
    // Whether it is whole is known only at the very end.
    names_left.set(u64::MAX);
    let mut arriving = archive.into_inner();
    io::copy(&mut arriving, &mut io::sink())?;
    place(&whole, host)?;
    Ok(limit_bytes - arriving.left)
}

/// The folder in which something for `host` can be made and moved to its place.
pub fn folder_of(host: &Path) -> &Path {
    if host.is_dir() {
        return host;
    }
    host.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Without the parts that say nothing.
fn plain_parts(path: &Path) -> PathBuf {
    path.components().filter(|part| !matches!(part, Component::CurDir | Component::RootDir)).collect()
}

fn refused(path: &Path, why: &str) -> io::Error {
    io::Error::other(format!("`{}` {why}", path.display()))
}

fn put<R: Read>(entry: &mut tar::Entry<'_, R>, path: &Path, whole: &Path, inner: &Path) -> io::Result<()> {
    let kind = entry.header().entry_type();
    let target = safe_join(whole, inner)?;
    if kind.is_hard_link() {
        return Err(refused(path, "is a hard link, which is not copied out"));
    }
    if kind.is_symlink() {
        let link = entry.link_name()?.unwrap_or_default().into_owned();
        let depth = inner.components().count();
        if depth == 0 {
            return Err(refused(path, "is a symlink: a `/` after its name copies what it leads to"));
        }
        if !stays_inside(&link, depth - 1) {
            return Err(refused(path, &format!("leads out of what is copied, to `{}`", link.display())));
        }
    } else if !kind.is_file() && !kind.is_dir() {
        return Err(refused(path, &format!("is a {kind:?}, which is not copied out")));
    }
    if inner.as_os_str().is_empty() {
        // There is nothing above it to be made.
    } else if let Some(parent) = target.parent() {
        fs_err::create_dir_all(parent)?;
    }
    if !kind.is_dir() {
        return entry.unpack(&target).map(drop);
    }
    fs_err::create_dir_all(&target)?;
    let mode = entry.header().mode()? & MODE_MASK | FOLDER_MODE_MIN;
    fs_err::set_permissions(&target, Permissions::from_mode(mode))
}

/// Joins only plain parts, and refuses to pass through a symlink that the guest put there before.
fn safe_join(whole: &Path, inner: &Path) -> io::Result<PathBuf> {
    if inner.components().count() > DEPTH_MAX {
        return Err(refused(inner, &format!("is more than {DEPTH_MAX} folders deep")));
    }
    let mut path = whole.to_path_buf();
    for part in inner.components() {
        let Component::Normal(name) = part else {
            return Err(refused(inner, "leaves its folder"));
        };
        if path.is_symlink() {
            return Err(refused(inner, "goes through a symlink"));
        }
        path.push(name);
    }
    if path.is_symlink() {
        return Err(refused(inner, "is there twice"));
    }
    Ok(path)
}

/// Whether a symlink that is `depth` folders below the top stays below it, whatever other links it passes through: all
/// of them stay below too, so `..` can lead out only where it stands at the start, and then there are too many.
fn stays_inside(link: &Path, depth: usize) -> bool {
    let (mut ups, mut named) = (0, false);
    for part in link.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if !named => ups += 1,
            Component::Normal(_) => named = true,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    ups <= depth
}

/// Moves what was unpacked to its place: an existing folder is merged into, an existing file is replaced.
fn place(whole: &Path, host: &Path) -> io::Result<()> {
    let Ok(metadata) = whole.symlink_metadata() else {
        return Err(io::Error::other("the archive from the guest is empty"));
    };
    match (metadata.is_dir(), host.is_dir()) {
        (true, true) => merge(whole, host),
        (false, true) => Err(io::Error::other("a folder is there, and a file came out")),
        (true, false) if host.exists() => Err(io::Error::other("a file is there, and a folder came out")),
        _ => fs_err::rename(whole, host),
    }
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

/// A reader of bytes from the link, up to a limit.
struct Arriving {
    pieces: mpsc::Receiver<Piece>,
    rest: Bytes,
    ended: bool,
    left: u64,
    limit_bytes: u64,
    /// Of what may come before the next entry's own bytes.
    names_left: Rc<Cell<u64>>,
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.rest = bytes,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive was cut off")),
            }
        }
        let count = buffer.len().min(self.rest.len());
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::other(format!("more than the limit of {} bytes came out (--out-limit)", self.limit_bytes))
        })?;
        let names_left = self.names_left.get().checked_sub(count as u64);
        self.names_left.set(names_left.ok_or_else(|| io::Error::other("the archive has too long a name"))?);
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::EntryType;

    /// Pieces of an archive made by `fill`, without its end.
    fn pieces(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> (mpsc::Sender<Piece>, mpsc::Receiver<Piece>) {
        let mut archive = tar::Builder::new(Vec::new());
        fill(&mut archive);
        let bytes = archive.into_inner().expect("in memory");
        let (sender, arriving) = mpsc::channel(2 + bytes.len() / 100);
        for piece in bytes.chunks(100) {
            sender.try_send(Piece::Bytes(Bytes::copy_from_slice(piece))).expect("there is room");
        }
        (sender, arriving)
    }

    /// Unpacks an archive made by `fill` into `out` of a folder.
    fn unpack_into(folder: &Path, fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> io::Result<u64> {
        let (sender, arriving) = pieces(fill);
        sender.try_send(Piece::End).expect("there is room");
        unpack(arriving, &folder.join("out"), 1 << 20)
    }

    fn unpacked(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> (tempfile::TempDir, io::Result<u64>) {
        let folder = tempfile::tempdir().expect("a folder");
        let outcome = unpack_into(folder.path(), fill);
        (folder, outcome)
    }

    fn add_mode(archive: &mut tar::Builder<Vec<u8>>, kind: EntryType, name: &str, mode: u32) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(0);
        header.set_path(name).expect("a plain name");
        header.set_cksum();
        archive.append(&header, io::empty()).expect("in memory");
    }

    fn add(archive: &mut tar::Builder<Vec<u8>>, kind: EntryType, name: &str, link: &str, content: &[u8]) {
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

    fn mode(path: &Path) -> u32 {
        path.metadata().expect("it is there").permissions().mode() & 0o7777
    }

    #[test]
    fn a_folder_comes_out_under_its_new_name() {
        let (folder, outcome) = unpacked(|archive| {
            add(archive, EntryType::Directory, "result/", "", b"");
            add(archive, EntryType::Regular, "result/a/b", "", b"text");
            add(archive, EntryType::Symlink, "result/a/l", "../a/b", b"");
        });
        outcome.expect("a good archive");
        assert_eq!(fs_err::read(folder.path().join("out/a/l")).expect("it is there"), b"text");
        assert_eq!(fs_err::read_dir(folder.path()).expect("readable").count(), 1, "nothing else is left");
    }

    #[test]
    fn a_folder_without_a_name_of_its_own_comes_out_too() {
        for base in ["./", "/", ".."] {
            let (folder, outcome) = unpacked(|archive| {
                add(archive, EntryType::Directory, base, "", b"");
                add(archive, EntryType::Regular, &format!("{base}/etc/x"), "", b"1");
            });
            outcome.expect("a good archive");
            assert!(folder.path().join("out/etc/x").is_file(), "{base}");
        }
    }

    #[test]
    fn a_single_file_comes_out_as_a_file() {
        let (folder, outcome) = unpacked(|archive| add(archive, EntryType::Regular, "x", "", b"1"));
        outcome.expect("a good archive");
        assert_eq!(fs_err::read(folder.path().join("out")).expect("it is there"), b"1");
    }

    #[test]
    fn bits_that_lend_rights_do_not_come_out() {
        let (folder, outcome) = unpacked(|archive| {
            add_mode(archive, EntryType::Directory, "r/", 0o7000);
            add_mode(archive, EntryType::Regular, "r/su", 0o6755);
        });
        outcome.expect("a good archive");
        assert_eq!(mode(&folder.path().join("out/su")), 0o755);
        assert_eq!(mode(&folder.path().join("out")), 0o700);
    }

    #[test]
    fn an_archive_that_was_cut_off_between_files_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let (sender, arriving) = pieces(|archive| add(archive, EntryType::Regular, "r", "", b"1"));
        drop(sender);
        let error = unpack(arriving, &folder.path().join("out"), 1 << 20).expect_err("cut off");
        assert!(error.to_string().contains("cut off"), "{error}");
        assert_eq!(fs_err::read_dir(folder.path()).expect("readable").count(), 0);
    }

    #[test]
    fn an_existing_folder_is_merged_into_and_kinds_are_not_mixed() {
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("out");
        fs_err::create_dir(&out).expect("a folder");
        fs_err::write(out.join("old"), "old").expect("a file");
        unpack_into(folder.path(), |archive| {
            add(archive, EntryType::Directory, "r/", "", b"");
            add(archive, EntryType::Regular, "r/new", "", b"new");
        })
        .expect("merged");
        assert_eq!(fs_err::read_dir(&out).expect("readable").count(), 2);
        unpack_into(folder.path(), |archive| add(archive, EntryType::Regular, "r", "", b"")).expect_err("a file");
        fs_err::remove_dir_all(&out).expect("removed");
        fs_err::write(&out, "old").expect("a file");
        unpack_into(folder.path(), |archive| add(archive, EntryType::Directory, "r/", "", b"")).expect_err("a folder");
        assert_eq!(fs_err::read(&out).expect("it is there"), b"old");
    }

    #[test]
    fn links_stay_inside_whatever_they_pass_through() {
        for (link, depth, inside) in [
            ("x", 0, true),
            ("../x", 1, true),
            (".././../x", 2, true),
            ("..", 0, false),
            ("../../x", 1, false),
            ("/x", 5, false),
            // `a` may be a link to a place that is less deep.
            ("a/../x", 5, false),
        ] {
            assert_eq!(stays_inside(Path::new(link), depth), inside, "{link} at {depth}");
        }
    }

    #[test]
    fn hostile_archives_are_refused_and_leave_nothing() {
        type Fill = fn(&mut tar::Builder<Vec<u8>>);
        let top = |archive: &mut tar::Builder<Vec<u8>>| add(archive, EntryType::Directory, "r/", "", b"");
        let hostile: [(&str, Fill); 14] = [
            ("leaves", |archive| add(archive, EntryType::Regular, "r/../../evil", "", b"x")),
            ("not in", |archive| add(archive, EntryType::Regular, "s/x", "", b"x")),
            ("symlink", |archive| {
                add(archive, EntryType::Symlink, "r/l", "d", b"");
                add(archive, EntryType::Regular, "r/l/evil", "", b"x");
            }),
            ("twice", |archive| {
                add(archive, EntryType::Symlink, "r/l", "d", b"");
                add(archive, EntryType::Regular, "r/l", "", b"x");
            }),
            ("leads out", |archive| add(archive, EntryType::Symlink, "r/l", "/etc/passwd", b"")),
            ("leads out", |archive| add(archive, EntryType::Symlink, "r/l", "../x", b"")),
            ("is a symlink", |archive| add(archive, EntryType::Symlink, "r", "/tmp", b"")),
            ("hard link", |archive| add(archive, EntryType::Link, "r/h", "/etc/passwd", b"")),
            ("hard link", |archive| add(archive, EntryType::Link, "r", "/etc/passwd", b"")),
            ("not copied out", |archive| add(archive, EntryType::Char, "r/d", "", b"")),
            ("not copied out", |archive| add(archive, EntryType::Fifo, "r/d", "", b"")),
            ("limit", |archive| add(archive, EntryType::Regular, "r/f", "", &vec![0; 2 << 20])),
            ("too long", |archive| add(archive, EntryType::GNULongName, "././@LongLink", "", &[b'x'; 100_000])),
            ("deep", |archive| {
                let mut header = tar::Header::new_gnu();
                header.set_size(0);
                let deep = format!("r{}", "/d".repeat(200));
                archive.append_data(&mut header, deep, io::empty()).expect("in memory");
            }),
        ];
        for (word, fill) in hostile {
            let (folder, outcome) = unpacked(|archive| {
                top(archive);
                fill(archive);
            });
            let words = format!("{:#}", anyhow::Error::new(outcome.expect_err(word)));
            assert!(words.contains(word), "{word}: {words}");
            assert_eq!(fs_err::read_dir(folder.path()).expect("readable").count(), 0, "{word}");
        }
    }

    #[test]
    fn a_symlink_at_the_top_is_refused_before_anything_goes_through_it() {
        let outside = tempfile::tempdir().expect("a folder");
        let link = outside.path().to_str().expect("UTF-8").to_owned();
        let (folder, outcome) = unpacked(|archive| {
            add(archive, EntryType::Symlink, "r", &link, b"");
            add(archive, EntryType::Regular, "r/evil", "", b"x");
        });
        assert!(outcome.expect_err("refused").to_string().contains("symlink"));
        for path in [outside.path(), folder.path()] {
            assert_eq!(fs_err::read_dir(path).expect("readable").count(), 0);
        }
    }
}

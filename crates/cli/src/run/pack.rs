//! The host's side of `--in`: packs a file or folder into an archive.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use kiln_archive::{Attributes, KERNEL_FILE_SYSTEMS, WriteError, Writer};
use rustix::fs::{OFlags, statfs};
use walkdir::WalkDir;

/// What was left out of an archive, one line each.
#[derive(Debug, Default)]
pub struct LeftOut {
    /// Devices, FIFOs, sockets and mounts of the kernel's file systems, which have no content to copy.
    pub special: Vec<String>,
    /// Files and folders that could not be read.
    pub unreadable: Vec<String>,
}

/// Packs a file under a name, or the content of a folder if `name` is `None`. Symlinks in a folder stay symlinks. Files
/// that can't be packed are left out and returned.
///
/// # Errors
/// If the output can't be written, or if the one file can't be read.
pub fn pack(host: &Path, name: Option<&Path>, output: &mut dyn Write) -> io::Result<LeftOut> {
    let mut packing = Packing { writer: Writer::new(output), left_out: LeftOut::default() };
    match name {
        // The user named this file, so a symlink is followed.
        Some(name) => packing.file(host, name, OFlags::empty())?,
        None => packing.folder(host)?,
    }
    let Packing { writer, mut left_out } = packing;
    writer.finish()?;
    match name {
        Some(_) if !left_out.unreadable.is_empty() => Err(io::Error::other(left_out.unreadable.remove(0))),
        _ => Ok(left_out),
    }
}

struct Packing<'a> {
    writer: Writer<&'a mut dyn Write>,
    left_out: LeftOut,
}

impl Packing<'_> {
    fn folder(&mut self, host: &Path) -> io::Result<()> {
        let mut device = vec![host.metadata()?.dev()];
        let mut entries = WalkDir::new(host).min_depth(1).into_iter();
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // It was removed after its folder was read.
                Err(error) if error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound) => continue,
                Err(error) => {
                    self.left_out.unreadable.push(format!("failed to read {error}"));
                    continue;
                }
            };
            let path = entry.path();
            let name = path.strip_prefix(host).unwrap_or(path);
            let kind = entry.file_type();
            if kind.is_file() {
                self.file(path, name, OFlags::NOFOLLOW)?;
                continue;
            }
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) => {
                    self.left_out.unreadable.push(format!("failed to read {error}"));
                    continue;
                }
            };
            if kind.is_dir() {
                self.writer.directory(name.as_os_str().as_bytes(), &attributes(&metadata))?;
                device.truncate(entry.depth());
                let is_mount = device.last() != Some(&metadata.dev());
                device.push(metadata.dev());
                if is_mount && statfs(path).is_ok_and(|system| KERNEL_FILE_SYSTEMS.contains(&system.f_type)) {
                    let problem = "is a file system of the kernel: only its folder is copied";
                    self.left_out.special.push(format!("`{}` {problem}", path.display()));
                    entries.skip_current_dir();
                }
            } else if kind.is_symlink() {
                match path.read_link() {
                    Ok(target) => {
                        let (name, target) = (name.as_os_str().as_bytes(), target.as_os_str().as_bytes());
                        self.writer.symlink(name, target, &attributes(&metadata))?;
                    }
                    Err(error) => self.unreadable(path, &error),
                }
            } else {
                self.special(path, kind);
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, name: &Path, flags: OFlags) -> io::Result<()> {
        // A FIFO that replaced the file meanwhile must not block the open.
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
        let opened = opened.and_then(|file: File| file.metadata().map(|metadata| (file, metadata)));
        let (mut file, metadata) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.unreadable(path, &error);
                return Ok(());
            }
        };
        if !metadata.is_file() {
            self.special(path, metadata.file_type());
            return Ok(());
        }
        match self.writer.file(name.as_os_str().as_bytes(), &attributes(&metadata), &mut file) {
            Ok(()) => Ok(()),
            Err(WriteError::File(error)) => {
                self.unreadable(path, &error);
                Ok(())
            }
            Err(WriteError::Output(error)) => Err(error),
        }
    }

    fn unreadable(&mut self, path: &Path, error: &io::Error) {
        self.left_out.unreadable.push(format!("failed to read `{}`: {error}", path.display()));
    }

    fn special(&mut self, path: &Path, kind: std::fs::FileType) {
        let noun = if kind.is_fifo() {
            "a FIFO"
        } else if kind.is_socket() {
            "a socket"
        } else {
            "a device"
        };
        self.left_out.special.push(format!("`{}` is {noun}, which is not copied", path.display()));
    }
}

fn attributes(metadata: &Metadata) -> Attributes {
    Attributes {
        permissions: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        modified: metadata.mtime(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_archive::Members;

    fn packed(host: &Path, name: Option<&Path>) -> (Vec<String>, LeftOut) {
        let mut archive = Vec::new();
        let left_out = pack(host, name, &mut archive).expect("it is packed");
        let mut members = Members::new(archive.as_slice());
        let mut names = Vec::new();
        while let Some(member) = members.next().expect("an archive") {
            names.push(String::from_utf8(member.path).expect("text"));
        }
        names.sort();
        (names, left_out)
    }

    #[test]
    fn special_and_unreadable_files_are_reported() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("d")).expect("ours");
        std::fs::write(folder.path().join("d/f"), "x").expect("ours");
        std::os::unix::fs::symlink("nowhere", folder.path().join("l")).expect("ours");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.path().join("p"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .expect("ours");
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("s")).expect("a socket");
        let (names, left_out) = packed(folder.path(), None);
        assert_eq!(names, ["d/", "d/f", "l"]);
        let special = left_out.special.join("\n");
        assert!(special.contains("/p` is a FIFO") && special.contains("/s` is a socket"), "{special}");
        assert!(left_out.unreadable.is_empty());
        let (names, left_out) = packed(Path::new("/proc/self/task"), None);
        assert!(names.iter().any(|name| name.ends_with("/limits")));
        assert!(left_out.unreadable.iter().any(|words| words.contains("/mem`")), "{left_out:?}");
    }

    #[test]
    fn a_single_unreadable_file_is_an_error() {
        let error =
            pack(Path::new("/proc/self/mem"), Some(Path::new("x")), &mut io::sink()).expect_err("it is refused");
        assert!(error.to_string().contains("/proc/self/mem"), "{error}");
    }
}

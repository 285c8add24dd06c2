//! FIFOs from a VMM to its owner. They have names, so the next owner can open them.
//!
//! ```text
//!   VMM: stdout, stderr ──write end──▶ vms/<id>/console.fifo, stderr.fifo ──read end──▶ owner, or the next owner
//! ```
//! Kiln keeps no write end, so the reader gets the end of the stream when the VMM exits.
//!
//! A guest must not block because its VM has no owner. So the write end is opened with `O_WRONLY`. Without an owner,
//! the FIFO has no reader, and a write fails at once with `EPIPE`: the bytes are lost and the guest continues. (A VMM
//! that may lose its owner is started with `SIGPIPE` ignored.) `O_RDWR` would be wrong, because the VMM would then be a
//! reader itself. The pipe of a VM without an owner would not fail but fill up, and the guest's serial line would wait
//! until the VM is adopted: a kernel that logs would hardly run. `O_NONBLOCK` keeps the VMM's own threads from blocking
//! in a write while the owner is stopped and the pipe is full.
//!
//! Bytes that were written and not read stay in the pipe as long as the VMM has its write end open. The next reader
//! gets them first.

use std::io;
use std::os::fd::OwnedFd;

use camino::Utf8Path;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use tokio::net::unix::pipe;

use crate::files::private_file::FILE_MODE;

/// Name of the console's FIFO in a VM's directory.
pub(crate) const CONSOLE_FIFO: &str = "console.fifo";
/// Name of the FIFO of the VMM's standard error.
pub(crate) const STDERR_FIFO: &str = "stderr.fifo";

/// Both ends of a new FIFO.
#[derive(Debug)]
pub(crate) struct Fifo {
    pub(crate) reader: pipe::Receiver,
    /// For the VMM only.
    pub(crate) writer: OwnedFd,
}

impl Fifo {
    /// Creates a FIFO. Replaces the FIFO of an earlier VMM, which may still hold bytes of that VMM.
    pub(crate) fn create(path: &Utf8Path) -> io::Result<Self> {
        match rustix::fs::unlink(path.as_std_path()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        rustix::fs::mknodat(CWD, path.as_std_path(), FileType::Fifo, FILE_MODE, 0)?;
        // The umask may have removed permissions that the owner needs to open it.
        rustix::fs::chmod(path.as_std_path(), FILE_MODE)?;
        // The reader first: with `O_NONBLOCK`, the open of a write end fails if the FIFO has no reader.
        let reader = open_reader(path)?;
        let writer = open(path, OFlags::WRONLY)?;
        Ok(Self { reader, writer })
    }
}

/// Opens the read end, also after an earlier reader is gone.
pub(crate) fn open_reader(path: &Utf8Path) -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(open(path, OFlags::RDONLY)?)
}

fn open(path: &Utf8Path, access: OFlags) -> io::Result<OwnedFd> {
    let flags = access | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path.as_std_path(), flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use camino::Utf8PathBuf;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn scratch() -> (tempfile::TempDir, Utf8PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8PathBuf::try_from(directory.path().join(CONSOLE_FIFO)).expect("UTF-8");
        (directory, path)
    }

    /// A writer that ignores SIGPIPE, like QEMU, and copies each line of its input.
    fn shell(writer: OwnedFd) -> Child {
        let script = "trap '' PIPE; while read -r line; do echo \"$line\" 2>&-; echo done >&2; done";
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stderr(Stdio::piped());
        command.stdout(writer).spawn().expect("starts")
    }

    /// Makes the shell write a line, and returns after the attempt.
    fn say(shell: &mut Child, line: &str) {
        use std::io::{Read as _, Write as _};
        writeln!(shell.stdin.as_mut().expect("piped"), "{line}").expect("it lives");
        let mut answer = [0; 5];
        shell.stderr.as_mut().expect("piped").read_exact(&mut answer).expect("it lives");
        assert_eq!(&answer, b"done\n");
    }

    async fn read_line(reader: &mut pipe::Receiver) -> String {
        let mut line = String::new();
        let read = async {
            while !line.ends_with('\n') {
                line.push(char::from(reader.read_u8().await.expect("more to come")));
            }
        };
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("in time");
        line
    }

    async fn rest(mut reader: pipe::Receiver) -> Vec<u8> {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(10), reader.read_to_end(&mut bytes)).await;
        read.expect("in time").expect("reads");
        bytes
    }

    #[tokio::test]
    async fn the_stream_ends_when_the_writer_exits() {
        let (_scratch, path) = scratch();
        let Fifo { mut reader, writer } = Fifo::create(&path).expect("made");
        let mut shell = shell(writer);
        say(&mut shell, "one");
        assert_eq!(read_line(&mut reader).await, "one\n");
        say(&mut shell, "last");
        shell.kill().expect("killed");
        shell.wait().expect("ends");
        assert_eq!(rest(reader).await, b"last\n");
    }

    #[tokio::test]
    async fn a_writer_outlives_its_reader_and_a_new_reader_continues() {
        let (_scratch, path) = scratch();
        let Fifo { mut reader, writer } = Fifo::create(&path).expect("made");
        let mut shell = shell(writer);
        say(&mut shell, "heard");
        assert_eq!(read_line(&mut reader).await, "heard\n");
        say(&mut shell, "not yet read");
        drop(reader);
        for _ in 0..100 {
            say(&mut shell, &"lost".repeat(1000));
        }
        let mut reader = open_reader(&path).expect("opens");
        say(&mut shell, "heard again");
        assert_eq!(read_line(&mut reader).await, "not yet read\n");
        assert_eq!(read_line(&mut reader).await, "heard again\n");
        shell.kill().expect("killed");
        shell.wait().expect("ends");
        assert_eq!(rest(reader).await, b"");
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_does_not_block_the_writer() {
        let (_scratch, path) = scratch();
        let Fifo { reader, writer } = Fifo::create(&path).expect("made");
        let mut shell = shell(writer);
        for _ in 0..100 {
            say(&mut shell, &"much".repeat(1000));
        }
        shell.kill().expect("killed");
        shell.wait().expect("ends");
        assert!(rest(reader).await.len() >= 60_000);
    }

    #[tokio::test]
    async fn a_new_fifo_replaces_an_old_one() {
        let (_scratch, path) = scratch();
        let old = Fifo::create(&path).expect("made");
        rustix::io::write(&old.writer, b"old").expect("fits");
        let Fifo { reader, writer } = Fifo::create(&path).expect("made");
        rustix::io::write(&writer, b"new").expect("fits");
        drop(writer);
        assert_eq!(rest(reader).await, b"new");
    }
}

//! Network namespaces: made, named by a file, and entered by a thread.
//!
//! ```text
//!   a new thread: unshare ─▶ bind its /proc/…/ns/net to our file ─▶ work inside ─▶ the thread ends
//! ```
//! The file is below Kiln's own directory, not in `/run/netns`, so `ip netns` never lists it. The bind mount keeps the
//! namespace alive without a process, so a VM outlives a restart of its owner. `setns` moves one thread. A new thread
//! does it and ends afterwards, because a thread that has to move back can fail to.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Longer than the deadlines of all work that is done inside, such as those of `nft` and netlink.
const WORK_DEADLINE: Duration = Duration::from_secs(120);
/// Another program that lists mounts can hold the file for a moment.
const BUSY_DEADLINE: Duration = Duration::from_secs(5);
const BUSY_PAUSE: Duration = Duration::from_millis(5);
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace that has a file.
#[derive(Debug, Clone)]
pub(super) struct Namespace {
    file: Utf8PathBuf,
}

impl Namespace {
    /// Makes a namespace and its file. The directory of the file exists. Returns the namespace and a descriptor of it.
    pub(super) fn create(file: &Utf8Path) -> io::Result<(Self, OwnedFd)> {
        File::options().write(true).create_new(true).mode(0o600).open(file)?;
        let target = file.to_owned();
        let descriptor = start_thread(move || {
            #[expect(unsafe_code, reason = "rustix marks every unshare as unsafe, because some share memory no more")]
            // SAFETY: only the network namespace of this thread changes. It shares all memory and descriptors still.
            unsafe {
                unshare_unsafe(UnshareFlags::NEWNET)?;
            }
            mount_bind(OWN, target.as_str())?;
            Ok(OwnedFd::from(File::open(OWN)?))
        })?
        .wait()?;
        Ok((Self { file: file.to_owned() }, descriptor))
    }

    /// A namespace that has a file already.
    pub(super) fn existing(file: &Utf8Path) -> Self {
        Self { file: file.to_owned() }
    }

    /// Its file.
    pub(super) fn file(&self) -> &Utf8Path {
        &self.file
    }

    /// Runs `work` in the namespace, on a thread of its own. What the thread opens stays in the namespace: netlink
    /// sockets, other sockets, and programs that it starts.
    pub(super) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        self.start(work)?.wait()
    }

    /// The same, without waiting for the end.
    pub(super) fn start<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Pending<T>> {
        let file = self.file.clone();
        start_thread(move || {
            enter(&file)?;
            Ok(work())
        })
    }

    /// Removes the file. The namespace and all its devices end with the last descriptor of it. No error if there is no
    /// file or nothing is mounted on it, because an earlier attempt may have ended halfway.
    pub(super) fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + BUSY_DEADLINE;
        loop {
            // Several mounts can be stacked on one file.
            while unmount(self.file.as_str(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
            match std::fs::remove_file(&self.file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    thread::sleep(BUSY_PAUSE);
                }
                other => return other,
            }
        }
    }
}

/// Moves this thread to a network namespace. The thread stays there.
fn enter(file: &Utf8Path) -> io::Result<()> {
    // Without `O_NONBLOCK`, the open of a FIFO would wait for a writer.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(file)?;
    Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Work that goes on in a namespace.
#[derive(Debug)]
pub(super) struct Pending<T> {
    result: Receiver<io::Result<T>>,
}

impl<T> Pending<T> {
    /// Waits for the end, at most until the deadline. The thread is not joined, so it may go on if the kernel blocks it.
    pub(super) fn wait(self) -> io::Result<T> {
        match self.result.recv_timeout(WORK_DEADLINE) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the thread in the namespace panicked")),
        }
    }
}

fn start_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<Pending<T>> {
    let (sender, result) = sync_channel(1);
    thread::Builder::new().name("netns".into()).spawn(move || drop(sender.send(work())))?;
    Ok(Pending { result })
}

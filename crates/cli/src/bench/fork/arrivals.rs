//! The moment at which a snapshot exists: `Vm::snapshot` of a VM that ends returns only after the VM's end.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::ensure;
use camino::Utf8Path;
use kiln_engine::snapshot::SnapshotId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

const EVENT_BYTES: usize = 4096;
/// A save takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(20);

/// A watch on the names in a store.
pub struct Arrivals(OwnedFd);

impl Arrivals {
    /// Watches from now on.
    pub fn watch(snapshots: &Utf8Path) -> anyhow::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC)?;
        inotify::add_watch(&fd, snapshots.as_std_path(), WatchFlags::MOVED_TO)?;
        Ok(Self(fd))
    }

    /// When the next snapshot got its name. Blocks.
    pub fn next(&self) -> anyhow::Result<Instant> {
        let deadline = Instant::now() + DEADLINE;
        let mut buffer = [MaybeUninit::uninit(); EVENT_BYTES];
        let mut events = Reader::new(&self.0, &mut buffer);
        loop {
            if events.is_buffer_empty() {
                let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))?;
                ensure!(poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&left))? > 0, "no snapshot came");
            }
            let now = Instant::now();
            let event = events.next()?;
            let name = event.file_name().map(|name| name.to_string_lossy().parse::<SnapshotId>());
            if event.events().contains(ReadFlags::MOVED_TO) && matches!(name, Some(Ok(_))) {
                return Ok(now);
            }
        }
    }
}

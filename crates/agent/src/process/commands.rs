//! The state that all commands of the guest share: their defaults, their reaper, and whether they may run.

use std::cell::{Ref, RefCell, RefMut};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::{Rc, Weak};

use kiln_wire::{ErrorCode, Fault};
use rustix::fs::{Mode, OFlags};

use super::cgroup::{Cgroups, Group};
use super::command::Defaults;
use super::freezer::Freezer;
use super::reaper::Reaper;
use super::signals::{Notice, Signals};
use super::stdio::Terminal;
use crate::link::frame_buffer;

/// Starts, lists, freezes and reaps the commands of the guest.
#[derive(Debug)]
pub struct Commands {
    defaults: Defaults,
    null: OwnedFd,
    oom_exempt: bool,
    cpus: u32,
    cgroups: Option<Cgroups>,
    /// The agent stands in for a guest in tests. A freeze then only delays new commands, and running ones continue.
    stand_in: bool,
    freezer: Freezer,
    reaper: Reaper,
    scratch: RefCell<Vec<u8>>,
    running: RefCell<BTreeMap<u32, Running>>,
}

/// A running command, for metrics and activity.
#[derive(Debug)]
pub struct Running {
    /// Its control group, if there are any.
    pub group: Weak<Group>,
    /// Name of its session, if it is a session's command.
    pub session: Option<String>,
    /// Its terminal, if it has one.
    pub terminal: Option<Terminal>,
}

impl Commands {
    /// Creates the state, without commands. `stand_in` is a directory that stands in for the guest's files in tests.
    ///
    /// # Errors
    /// If `/dev/null` can't be opened.
    pub fn new(pid_1: bool, cgroups: Option<Cgroups>, stand_in: Option<&Path>) -> io::Result<Self> {
        Ok(Self {
            defaults: Defaults::new(pid_1, stand_in),
            null: rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?,
            oom_exempt: oom_score_adj() < 0,
            cpus: std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
            cgroups,
            stand_in: stand_in.is_some(),
            freezer: Freezer::default(),
            reaper: Reaper::default(),
            scratch: RefCell::new(frame_buffer()),
            running: RefCell::default(),
        })
    }

    /// Reaps children until a signal requests that the machine or the service stops.
    ///
    /// # Errors
    /// If signals can't be read.
    pub async fn watch_signals(&self, signals: &Signals) -> io::Result<()> {
        loop {
            match signals.next().await? {
                Notice::Child => self.reaper.sweep(),
                Notice::Stop => return Ok(()),
            }
        }
    }

    /// Keeps control groups ready for the next commands. Returns only if the agent has no control groups.
    pub async fn prepare_groups(&self) {
        if let Some(cgroups) = &self.cgroups {
            cgroups.janitor().await;
        }
    }

    /// Running commands, by pid.
    pub fn running(&self) -> Ref<'_, BTreeMap<u32, Running>> {
        self.running.borrow()
    }

    /// CPUs of the guest.
    pub fn cpus(&self) -> u32 {
        self.cpus
    }

    /// Whether commands are frozen or are being frozen.
    pub fn are_frozen(&self) -> bool {
        self.freezer.is_closed()
    }

    /// Freezes all commands after `prepared` has ended. New commands wait until the thaw.
    ///
    /// # Errors
    /// If there are no control groups, `prepared` fails, a command isn't frozen in time, or a thaw comes first.
    /// Commands continue then.
    pub async fn freeze(&self, prepared: impl Future<Output = Result<(), Fault>>) -> Result<(), Fault> {
        match &self.cgroups {
            Some(cgroups) => self.freezer.freeze(cgroups, prepared).await,
            None if self.stand_in => {
                self.freezer.close();
                Ok(())
            }
            None => Err(Fault::new(ErrorCode::Unsupported, "commands can't be frozen without control groups")),
        }
    }

    /// Thaws all commands, and starts those that wait.
    ///
    /// # Errors
    /// If the kernel refuses. Commands are still frozen then.
    pub fn thaw(&self) -> Result<(), Fault> {
        self.freezer.thaw(self.cgroups.as_ref())
    }

    /// Reaps children that have exited. For use when signals are no longer watched.
    pub fn reap(&self) {
        self.reaper.sweep();
    }

    pub(super) fn freezer(&self) -> &Freezer {
        &self.freezer
    }

    pub(super) fn cgroups(&self) -> Option<&Cgroups> {
        self.cgroups.as_ref()
    }

    pub(super) fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    pub(super) fn null(&self) -> BorrowedFd<'_> {
        self.null.as_fd()
    }

    /// Whether commands would inherit an exemption from the OOM killer.
    pub(super) fn are_oom_exempt(&self) -> bool {
        self.oom_exempt
    }

    pub(super) fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    /// A buffer for one frame. It is used only between two awaits.
    pub(super) fn scratch(&self) -> RefMut<'_, Vec<u8>> {
        self.scratch.borrow_mut()
    }

    /// Takes back the control group of a command that has ended.
    pub(super) fn give_back(&self, group: Rc<Group>) {
        if let Some(cgroups) = &self.cgroups {
            cgroups.give_back(group);
        }
    }

    pub(super) fn add(&self, pid: u32, running: Running) {
        self.running.borrow_mut().insert(pid, running);
    }

    pub(super) fn remove(&self, pid: u32) {
        self.running.borrow_mut().remove(&pid);
    }
}

fn oom_score_adj() -> i32 {
    fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

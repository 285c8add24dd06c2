//! What every link and every stream shares.

use std::cell::{Ref, RefCell, RefMut};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;

use kiln_wire::{Capability, ErrorCode, Fault, GoodbyeReason};
use rustix::fs::{Mode, OFlags};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::freeze::Freezer;
use crate::link::frame_buffer;
use crate::log::note;
use crate::process::cgroup::{Cgroups, Group};
use crate::process::reaper::Reaper;
use crate::process::signals::{Notice, Signals};
use crate::process::{Defaults, Terminal};
use crate::session::Sessions;
use crate::tally::Tally;

/// How long commands wait for the drivers of the guest's devices.
const DRIVERS_DEADLINE: Duration = Duration::from_secs(10);

/// How long a snapshot waits for the drivers that commands do not wait for.
const ALL_DRIVERS_DEADLINE: Duration = Duration::from_secs(5);

/// What this agent is.
#[derive(Debug, Default)]
pub struct Setup {
    /// Whether it is PID 1 and may change the machine.
    pub pid_1: bool,
    /// What a link has to show.
    pub token: Option<String>,
    /// Control groups, where there are any.
    pub cgroups: Option<Cgroups>,
    /// Where programs leave their leases.
    pub leases: Option<PathBuf>,
    /// It stands in for a guest in tests: what it runs starts in here, a sync names it in `etc/hostname` and
    /// `etc/machine-id` below, and a freeze holds back commands that are asked for. The host's clock, randomness and
    /// names are left alone, and commands that run go on.
    pub stand_in: Option<PathBuf>,
}

/// Which drivers of the guest's devices are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drivers {
    /// Those of the link.
    Few,
    /// Those that commands wait for.
    Enough,
    /// All of them.
    All,
}

/// Shared by everything that serves a link.
#[derive(Debug)]
pub struct Agent {
    setup: Setup,
    defaults: Defaults,
    boot_id: String,
    null: OwnedFd,
    oom_exempt: bool,
    cpus: u32,
    reaper: Reaper,
    scratch: RefCell<Vec<u8>>,
    ending: watch::Sender<Option<GoodbyeReason>>,
    shutdown_asked: watch::Sender<bool>,
    link_up: watch::Sender<bool>,
    drivers: watch::Sender<Drivers>,
    hurry: Notify,
    freezer: Freezer,
    watches: Tally,
    forwards: Tally,
    jobs: RefCell<BTreeMap<u32, JobEntry>>,
    sessions: Sessions,
}

impl Agent {
    /// An agent that serves nothing yet.
    ///
    /// # Errors
    /// `/dev/null` can't be opened.
    pub fn new(setup: Setup) -> io::Result<Rc<Self>> {
        let pid_1 = setup.pid_1;
        Ok(Rc::new(Self {
            defaults: Defaults::new(pid_1, setup.stand_in.as_deref()),
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned(),
            null: rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?,
            oom_exempt: oom_score_adj() < 0,
            cpus: std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
            reaper: Reaper::default(),
            scratch: RefCell::new(frame_buffer()),
            ending: watch::Sender::new(None),
            shutdown_asked: watch::Sender::new(false),
            link_up: watch::Sender::new(false),
            drivers: watch::Sender::new(if pid_1 { Drivers::Few } else { Drivers::All }),
            hurry: Notify::new(),
            freezer: Freezer::default(),
            watches: Tally::default(),
            forwards: Tally::default(),
            jobs: RefCell::default(),
            sessions: Sessions::default(),
            setup,
        }))
    }

    /// Whether this is PID 1.
    pub fn is_pid_1(&self) -> bool {
        self.setup.pid_1
    }

    /// The files of the guest that it stands in for, if it does.
    pub fn stand_in(&self) -> Option<&Path> {
        self.setup.stand_in.as_deref()
    }

    /// What a link has to show.
    pub fn token(&self) -> Option<&str> {
        self.setup.token.as_deref()
    }

    /// Control groups, where there are any.
    pub fn cgroups(&self) -> Option<&Cgroups> {
        self.setup.cgroups.as_ref()
    }

    /// What Hello announces.
    pub fn capabilities(&self) -> Vec<Capability> {
        let cgroups = self.setup.cgroups.is_some().then_some(Capability::Cgroups);
        let init = self.setup.pid_1.then_some(Capability::Init);
        cgroups.into_iter().chain(init).chain([Capability::Grace]).collect()
    }

    /// What commands start from.
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// The kernel's boot id.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// `/dev/null`.
    pub fn null(&self) -> BorrowedFd<'_> {
        self.null.as_fd()
    }

    /// Whether commands would inherit an exemption from the OOM killer.
    pub fn is_oom_exempt(&self) -> bool {
        self.oom_exempt
    }

    /// CPUs of the guest.
    pub fn cpus(&self) -> u32 {
        self.cpus
    }

    /// Who waits for which child.
    pub fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    /// A buffer for one frame, for use between two waits.
    pub fn scratch(&self) -> RefMut<'_, Vec<u8>> {
        self.scratch.borrow_mut()
    }

    /// Takes the control group of a command that ended.
    pub fn give_back(&self, group: Rc<Group>) {
        if let Some(cgroups) = self.cgroups() {
            cgroups.give_back(group);
        }
    }

    /// Collects children and obeys signals until the machine or the service is to stop.
    ///
    /// # Errors
    /// Signals can't be read.
    pub async fn watch_signals(&self, signals: &Signals) -> io::Result<()> {
        loop {
            match signals.next().await? {
                Notice::Child => self.reaper.sweep(),
                Notice::Stop => return Ok(()),
            }
        }
    }

    /// Ends all links with this reason.
    pub fn end_links(&self, reason: GoodbyeReason) {
        self.ending.send_replace(Some(reason));
    }

    /// Lets links start again.
    pub fn links_may_start(&self) {
        self.ending.send_replace(None);
    }

    /// Waits until links have to end.
    pub async fn ending(&self) -> GoodbyeReason {
        let mut ending = self.ending.subscribe();
        let reason = ending.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or(GoodbyeReason::Shutdown)
    }

    /// The host said that the machine is to stop.
    pub fn host_wants_shutdown(&self) {
        self.shutdown_asked.send_replace(true);
    }

    /// Waits until the host said so.
    pub async fn shutdown_asked(&self) {
        // The sender lives as long as this.
        let _ = self.shutdown_asked.subscribe().wait_for(|asked| *asked).await;
    }

    /// A host talks to this agent.
    pub fn link_is_up(&self) {
        self.link_up.send_replace(true);
    }

    /// Waits until a host talked to this agent.
    pub async fn linked(&self) {
        let _ = self.link_up.subscribe().wait_for(|up| *up).await;
    }

    /// More drivers are loaded.
    pub fn drivers_are(&self, loaded: Drivers) {
        self.drivers.send_if_modified(|before| {
            let more = loaded > *before;
            *before = loaded.max(*before);
            more
        });
    }

    /// Waits until the drivers of the guest's devices are loaded.
    pub async fn ready(&self) {
        if !self.have_drivers(Drivers::Enough, DRIVERS_DEADLINE).await {
            note("commands start before all drivers are loaded".into());
            self.drivers_are(Drivers::Enough);
        }
    }

    /// Has all drivers loaded now.
    ///
    /// # Errors
    /// They are not within their deadline.
    pub async fn all_drivers(&self) -> Result<(), Fault> {
        self.hurry.notify_one();
        if self.have_drivers(Drivers::All, ALL_DRIVERS_DEADLINE).await {
            return Ok(());
        }
        let words = format!("not all drivers were loaded within {ALL_DRIVERS_DEADLINE:?}");
        Err(Fault::new(ErrorCode::TimedOut, words))
    }

    /// Waits until somebody needs all drivers now.
    pub async fn hurried(&self) {
        self.hurry.notified().await;
    }

    async fn have_drivers(&self, wanted: Drivers, deadline: Duration) -> bool {
        if *self.drivers.borrow() >= wanted {
            return true;
        }
        let mut drivers = self.drivers.subscribe();
        timeout(deadline, drivers.wait_for(|loaded| *loaded >= wanted)).await.is_ok()
    }

    /// Whether commands may run.
    pub fn freezer(&self) -> &Freezer {
        &self.freezer
    }

    /// Watches that are open.
    pub fn watches(&self) -> &Tally {
        &self.watches
    }

    /// Connections that are forwarded.
    pub fn forwards(&self) -> &Tally {
        &self.forwards
    }

    /// Where programs leave their leases, if anywhere.
    pub fn leases(&self) -> Option<&Path> {
        self.setup.leases.as_deref()
    }

    /// Lists a command for metrics.
    pub fn add_job(&self, pid: u32, entry: JobEntry) {
        self.jobs.borrow_mut().insert(pid, entry);
    }

    /// Takes it off the list.
    pub fn remove_job(&self, pid: u32) {
        self.jobs.borrow_mut().remove(&pid);
    }

    /// Commands that run, by pid.
    pub fn jobs(&self) -> Ref<'_, BTreeMap<u32, JobEntry>> {
        self.jobs.borrow()
    }

    /// All sessions.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }
}

/// A command that runs, as metrics and activity see it.
#[derive(Debug)]
pub struct JobEntry {
    /// Its control group, where there is one.
    pub group: Weak<Group>,
    /// Name of its session, where it is one.
    pub session: Option<String>,
    /// Its terminal, where it has one.
    pub terminal: Option<Terminal>,
}

fn oom_score_adj() -> i32 {
    fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Reads a token file: its first line.
///
/// # Errors
/// It can't be read, is too long or empty.
pub fn read_token(path: &Path) -> io::Result<String> {
    const TOKEN_BYTES_MAX: u64 = 4096;
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(File::open(path)?, TOKEN_BYTES_MAX), &mut text)?;
    match text.lines().next().map(str::trim) {
        Some(token) if !token.is_empty() => Ok(token.to_owned()),
        _ => Err(io::Error::other(format!("`{}` holds no token", path.display()))),
    }
}

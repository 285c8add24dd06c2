//! Control groups (v2): one for the agent, one for each command.
//!
//! ```text
//!   /sys/fs/cgroup ─┬─ agent           protected memory, most of the CPU when it is scarce
//!                   └─ jobs            all of memory but a reserve, most of the pids
//!                        ├─ job-1      one command each; killed as a whole, by the OOM killer too
//!                        └─ job-2
//! ```
//!
//! Freezing stops all groups but the agent's, also those that commands made beside these two.
//!
//! Creating and removing a group is slow. So a fresh group is always ready, and a group is used again if its command
//! left nothing in it. A janitor does this work after the end of the command was reported.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use kiln_wire::Limits;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, mkdirat, open, openat, unlinkat};
use rustix::io::Errno;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::log::note;

/// The agent's own group.
const AGENT: &str = "agent";
/// Groups beside it that are frozen: the group of the commands, and groups that commands of root have made there.
const FROZEN_MAX: usize = 256;
/// Groups that wait for a command.
const SPARES_MAX: usize = 16;
/// The most memory that a group may be charged for to be used again: caches of a short command.
const REUSE_MEMORY_BYTES_MAX: u64 = 4 << 20;
/// First wait for processes that are being killed. It is doubled up to [`DYING_WAIT_MAX`].
const DYING_WAIT: Duration = Duration::from_millis(5);
/// Longest wait between two checks.
const DYING_WAIT_MAX: Duration = Duration::from_secs(1);
/// Groups with processes that don't exit because they block in the kernel. If there are more, the oldest is given up.
const DYING_MAX: usize = 64;
/// Memory that is reserved for the agent.
const AGENT_MEMORY_MIN_BYTES: u64 = 16 << 20;
/// Memory that all commands together leave to the kernel and the agent: at least this …
const RESERVE_BYTES_MIN: u64 = 24 << 20;
/// … and at least this share of all memory.
const RESERVE_PERCENT: u64 = 6;
/// Part that they leave of the memory that was available when the agent started. Without it the guest could run out of
/// memory before the commands reach their bound, and the kernel would then choose any process to kill.
const SPARE_BYTES_MIN: u64 = 16 << 20;
/// Share of the kernel's processes that all commands together may have.
const PIDS_PERCENT: u64 = 80;

/// All control groups of the guest's commands.
#[derive(Debug)]
pub struct Cgroups {
    root: OwnedFd,
    jobs: OwnedFd,
    /// Groups that [`freeze`](Cgroups::freeze) froze.
    frozen: RefCell<Vec<OwnedFd>>,
    spares: RefCell<Vec<Group>>,
    old: RefCell<Vec<Rc<Group>>>,
    work: Notify,
    next: Cell<u64>,
}

/// One command's control group.
#[derive(Debug)]
pub struct Group {
    name: String,
    directory: Arc<OwnedFd>,
    /// CPU time of earlier commands.
    cpu_base: Duration,
    /// No command has run in it.
    fresh: bool,
    /// It must not be used again: it has limits, or its counters were changed.
    spoiled: Cell<bool>,
}

impl Cgroups {
    /// Takes over the hierarchy at `root`: moves the calling process into its own group and creates the group for
    /// commands.
    ///
    /// # Errors
    /// If the kernel lacks cgroup v2, or its memory or pids controller.
    pub fn take_over(root: &Path) -> io::Result<Self> {
        // All controllers at once and before there are groups, because each later change would visit every group again.
        if fs::write(root.join("cgroup.subtree_control"), "+memory +pids +cpu").is_err() {
            fs::write(root.join("cgroup.subtree_control"), "+memory +pids")?;
        }
        let (agent, jobs) = (root.join(AGENT), root.join("jobs"));
        fs::create_dir_all(&agent)?;
        fs::create_dir_all(&jobs)?;
        fs::write(agent.join("cgroup.procs"), "0")?;
        fs::write(agent.join("memory.min"), AGENT_MEMORY_MIN_BYTES.to_string())?;
        fs::write(jobs.join("memory.max"), jobs_memory_bytes().to_string())?;
        fs::write(jobs.join("pids.max"), (processes_max() * PIDS_PERCENT / 100).to_string())?;
        fs::write(jobs.join("cgroup.subtree_control"), "+memory +pids")?;
        // The CPU is divided between the two groups only, so any number of runnable commands leaves the agent its
        // share. A kernel without CONFIG_FAIR_GROUP_SCHED has no weights, and the agent does without.
        let _ = fs::write(agent.join("cpu.weight"), "10000");
        Ok(Self {
            root: open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?,
            jobs: open(&jobs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?,
            frozen: RefCell::default(),
            spares: RefCell::default(),
            old: RefCell::default(),
            work: Notify::new(),
            next: Cell::new(1),
        })
    }

    /// Returns a group with these limits.
    ///
    /// # Errors
    /// If the kernel can't create a group or refuses a limit.
    pub fn take(&self, limits: &Limits) -> io::Result<Rc<Group>> {
        let limited = limits.memory_bytes.is_some() || limits.pids.is_some();
        let spare = {
            let mut spares = self.spares.borrow_mut();
            let wanted = spares.iter().rposition(|spare| spare.fresh == limited);
            wanted.or_else(|| (!limited).then(|| spares.len().checked_sub(1)).flatten()).map(|at| spares.remove(at))
        };
        let group = spare.map_or_else(|| self.make(), Ok)?;
        if limited {
            group.limit(limits)?;
        }
        self.work.notify_one();
        Ok(Rc::new(group))
    }

    /// Takes a group back. The [`janitor`](Self::janitor) kills processes that are left in it.
    pub fn give_back(&self, group: Rc<Group>) {
        self.old.borrow_mut().push(group);
        self.work.notify_one();
    }

    /// Cleans up groups that were given back and keeps a fresh one ready. Never ends.
    pub async fn janitor(&self) {
        let mut dying: Vec<Rc<Group>> = Vec::new();
        let mut wait = DYING_WAIT;
        loop {
            let returned = std::mem::take(&mut *self.old.borrow_mut());
            if !returned.is_empty() {
                wait = DYING_WAIT;
            }
            for group in returned.into_iter().chain(std::mem::take(&mut dying)) {
                if group.is_populated() {
                    group.kill();
                    group.spoiled.set(true);
                    dying.push(group);
                } else {
                    self.retire(group);
                }
            }
            if dying.len() > DYING_MAX {
                let left = dying.remove(0);
                note(format!("control group `{}` holds processes that can't be killed", left.name));
            }
            self.refill();
            if dying.is_empty() {
                self.work.notified().await;
            } else {
                // A group that is given back is handled at once. The wait only bounds how often the dying ones are
                // checked.
                tokio::select! {
                    () = self.work.notified() => {}
                    () = sleep(wait) => wait = (wait * 2).min(DYING_WAIT_MAX),
                }
            }
        }
    }

    /// Kills every command of the guest.
    pub fn kill_all(&self) -> io::Result<()> {
        write(self.jobs.as_fd(), "cgroup.kill", "1")
    }

    /// Starts to freeze all groups but the agent's. Groups that a command has frozen are left to that command.
    ///
    /// # Errors
    /// If the kernel refuses. Call [`thaw`](Self::thaw) to undo what was done until then.
    pub fn freeze(&self) -> io::Result<()> {
        let mut frozen = self.frozen.borrow_mut();
        frozen.clear();
        for entry in Dir::read_from(&self.root)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if entry.file_type() != FileType::Directory || [&b"."[..], b"..", AGENT.as_bytes()].contains(&name) {
                continue;
            }
            if frozen.len() == FROZEN_MAX {
                return Err(io::Error::other(format!("more than {FROZEN_MAX} control groups")));
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let group = openat(&self.root, entry.file_name(), flags, Mode::empty())?;
            if number(group.as_fd(), "cgroup.freeze")? == 0 {
                write(group.as_fd(), "cgroup.freeze", "1")?;
                frozen.push(group);
            }
        }
        Ok(())
    }

    /// Whether all groups that [`freeze`](Self::freeze) started to freeze are frozen.
    ///
    /// # Errors
    /// If a group's state can't be read.
    pub fn is_frozen(&self) -> io::Result<bool> {
        for group in &*self.frozen.borrow() {
            match read(group.as_fd(), "cgroup.events") {
                Ok(text) if field(&text, "frozen") == Some(1) => {}
                Ok(_) => return Ok(false),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Undoes [`freeze`](Self::freeze).
    ///
    /// # Errors
    /// If the kernel refuses. Some processes are still frozen then.
    pub fn thaw(&self) -> io::Result<()> {
        let mut frozen = self.frozen.borrow_mut();
        while let Some(group) = frozen.last() {
            match write(group.as_fd(), "cgroup.freeze", "0") {
                Err(error) if !is_gone(&error) => return Err(error),
                _ => drop(frozen.pop()),
            }
        }
        Ok(())
    }

    fn refill(&self) {
        if self.spares.borrow().iter().any(|spare| spare.fresh) {
            return;
        }
        match self.make() {
            Ok(group) => self.spares.borrow_mut().push(group),
            Err(error) => note(format!("can't prepare a control group: {error}")),
        }
    }

    fn retire(&self, group: Rc<Group>) {
        let reusable = !group.spoiled.get()
            && self.spares.borrow().len() < SPARES_MAX
            && number(group.directory.as_fd(), "memory.current").is_ok_and(|bytes| bytes <= REUSE_MEMORY_BYTES_MAX);
        match Rc::try_unwrap(group) {
            Ok(mut group) if reusable => {
                group.cpu_base += group.cpu();
                group.fresh = false;
                self.spares.borrow_mut().push(group);
            }
            // A reader of metrics still holds the group, so it is removed and not used again.
            Ok(Group { name, .. }) => self.remove(&name),
            Err(group) => self.remove(&group.name),
        }
    }

    fn remove(&self, name: &str) {
        if let Err(error) = unlinkat(&self.jobs, name, AtFlags::REMOVEDIR) {
            note(format!("can't remove control group `{name}`: {error}"));
        }
    }

    fn make(&self) -> io::Result<Group> {
        let name = format!("job-{}", self.next.replace(self.next.get() + 1));
        mkdirat(&self.jobs, &name, Mode::from_raw_mode(0o755))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(&self.jobs, &name, flags, Mode::empty())?;
        write(directory.as_fd(), "memory.oom.group", "1")?;
        let directory = Arc::new(directory);
        Ok(Group { name, directory, cpu_base: Duration::ZERO, fresh: true, spoiled: Cell::new(false) })
    }
}

impl Group {
    /// The group's directory, for clone3.
    pub fn directory(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.directory)
    }

    /// Kills every process in it.
    pub fn kill(&self) {
        self.spoiled.set(true);
        if let Err(error) = write(self.directory.as_fd(), "cgroup.kill", "1") {
            note(format!("can't kill control group `{}`: {error}", self.name));
        }
    }

    /// CPU time of the command and all processes that it started.
    pub fn cpu(&self) -> Duration {
        let micros =
            read(self.directory.as_fd(), "cpu.stat").ok().and_then(|text| field(&text, "usage_usec")).unwrap_or(0);
        Duration::from_micros(micros).saturating_sub(self.cpu_base)
    }

    /// Memory that the group is charged for.
    pub fn memory_bytes(&self) -> u64 {
        number(self.directory.as_fd(), "memory.current").unwrap_or(0)
    }

    /// Processes and threads in it.
    pub fn pids(&self) -> u64 {
        number(self.directory.as_fd(), "pids.current").unwrap_or(0)
    }

    /// Whether the OOM killer killed one of its processes.
    pub fn oom_killed(&self) -> bool {
        self.spoiled.set(true);
        read(self.directory.as_fd(), "memory.events")
            .ok()
            .and_then(|text| field(&text, "oom_kill"))
            .is_some_and(|n| n > 0)
    }

    fn is_populated(&self) -> bool {
        read(self.directory.as_fd(), "cgroup.events").ok().and_then(|text| field(&text, "populated")) == Some(1)
    }

    fn limit(&self, limits: &Limits) -> io::Result<()> {
        self.spoiled.set(true);
        if let Some(bytes) = limits.memory_bytes {
            write(self.directory.as_fd(), "memory.max", &bytes.to_string())?;
            // The file is missing in kernels without swap.
            let _ = write(self.directory.as_fd(), "memory.swap.max", "0");
        }
        if let Some(pids) = limits.pids {
            write(self.directory.as_fd(), "pids.max", &pids.to_string())?;
        }
        Ok(())
    }
}

/// Whether the group was removed: its files are missing, or can't be read any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NODEV))
}

fn write(directory: BorrowedFd<'_>, file: &str, value: &str) -> io::Result<()> {
    let file = openat(directory, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, value.as_bytes())?;
    Ok(())
}

fn read(directory: BorrowedFd<'_>, file: &str) -> io::Result<String> {
    const FILE_BYTES_MAX: usize = 4096;
    let file = openat(directory, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = vec![0; FILE_BYTES_MAX];
    let count = rustix::io::read(file, &mut text[..])?;
    text.truncate(count);
    String::from_utf8(text).map_err(|_| Errno::ILSEQ.into())
}

fn number(directory: BorrowedFd<'_>, file: &str) -> io::Result<u64> {
    read(directory, file)?.trim().parse().map_err(|_| Errno::INVAL.into())
}

/// The value of `name` in a file of `name value` lines.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn jobs_memory_bytes() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix("kB"));
        line.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0) << 10
    };
    let total = bytes("MemTotal:");
    let reserve = RESERVE_BYTES_MIN.max(total / 100 * RESERVE_PERCENT);
    total.saturating_sub(reserve).min(bytes("MemAvailable:").saturating_sub(SPARE_BYTES_MIN))
}

fn processes_max() -> u64 {
    const FALLBACK: u64 = 1024;
    let read = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let pids = read("/proc/sys/kernel/pid_max").unwrap_or(FALLBACK);
    pids.min(read("/proc/sys/kernel/threads-max").unwrap_or(FALLBACK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_kernel_without_weights_has_control_groups_all_the_same() {
        let root = tempfile::tempdir().expect("a directory");
        // A file that can't be written. cgroupfs creates no files either.
        fs::create_dir_all(root.path().join("agent/cpu.weight")).expect("is made");
        Cgroups::take_over(root.path()).expect("the rest is there");
        let limit = fs::read_to_string(root.path().join("jobs/pids.max")).expect("is written");
        assert!(limit.parse::<u64>().is_ok_and(|limit| limit > 0), "{limit}");
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "low 0\noom 1\noom_kill 7\noom_group_kill 2\n";
        assert_eq!(field(text, "oom_kill"), Some(7));
        assert_eq!(field(text, "oom"), Some(1));
        assert_eq!(field(text, "kill"), None);
        assert_eq!(field("oom_kill x\n", "oom_kill"), None);
    }
}

//! A control group for each VMM that root starts. It bounds the VMM's memory, its processes and its share of the CPU.
//!
//! ```text
//!   version 2:  /sys/fs/cgroup/kiln/<vm>
//!   version 1:  /sys/fs/cgroup/{memory,pids,cpu}/kiln/<vm>
//! ```
//! A group is made before its VMM and removed after it. Its owner holds a lock on it meanwhile. So [`sweep`] can
//! distinguish a group that a killed Kiln left from one that another Kiln has just made.

use std::io;
use std::os::fd::OwnedFd;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use rustix::fs::{FlockOperation, Mode, OFlags};

const ROOT: &str = "/sys/fs/cgroup";
/// The parent of all groups of Kiln.
const PARENT: &str = "kiln";
/// `CGROUP2_SUPER_MAGIC` and `CGROUP_SUPER_MAGIC` of linux/magic.h.
const VERSION_2: i64 = 0x6367_7270;
const VERSION_1: i64 = 0x27_e0eb;
/// Controllers that a group needs.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// The kernel takes a moment to empty a group after its last process was reaped, so removing is tried up to so many
/// times.
const REMOVALS_MAX: usize = 20;
const REMOVAL_PAUSE: std::time::Duration = std::time::Duration::from_millis(1);

/// The bounds of one VMM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) memory_bytes: u64,
    pub(crate) processes: u64,
}

/// The group of one VMM. Dropping it removes it, which fails while its VMM runs.
#[derive(Debug)]
pub(crate) struct Cgroup {
    directories: Vec<(Utf8PathBuf, OwnedFd)>,
}

/// Which kind of control groups this host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    One,
    Two,
}

/// The version that this host has, or why it has no usable control groups.
pub(crate) fn version() -> Result<Version, String> {
    if magic(ROOT.into()) == Some(VERSION_2) {
        return Ok(Version::Two);
    }
    let lacks = |name: &&&str| magic(&Utf8Path::new(ROOT).join(name)) != Some(VERSION_1);
    match CONTROLLERS.iter().find(lacks) {
        None => Ok(Version::One),
        Some(name) => Err(format!("no control groups are mounted at `{ROOT}` that have `{name}`")),
    }
}

fn magic(path: &Utf8Path) -> Option<i64> {
    Some(rustix::fs::statfs(path.as_std_path()).ok()?.f_type as i64)
}

impl Cgroup {
    /// Makes a group.
    ///
    /// # Errors
    /// Why this host does not allow it, as text.
    pub(crate) fn create(name: &str, bounds: Bounds) -> Result<Self, String> {
        let version = version()?;
        Self::create_in(version, Utf8Path::new(ROOT), name, bounds).map_err(|error| error.to_string())
    }

    fn create_in(version: Version, root: &Utf8Path, name: &str, bounds: Bounds) -> io::Result<Self> {
        let (memory, processes) = (bounds.memory_bytes.to_string(), bounds.processes.to_string());
        let mut this = Self { directories: Vec::new() };
        match version {
            Version::Two => {
                delegate(root)?;
                delegate(&root.join(PARENT))?;
                let path = this.add(&root.join(PARENT), name)?;
                for (file, value) in [("memory.max", memory.as_str()), ("pids.max", &processes), ("cpu.weight", "100")]
                {
                    fs::write(path.join(file), value)?;
                }
            }
            Version::One => {
                let files = ["memory.limit_in_bytes", "pids.max", "cpu.shares"];
                for ((controller, file), value) in CONTROLLERS.into_iter().zip(files).zip([&memory, &processes, "1024"])
                {
                    let path = this.add(&root.join(controller).join(PARENT), name)?;
                    fs::write(path.join(file), value)?;
                }
            }
        }
        Ok(this)
    }

    /// The group of a VMM that another process started, if it has one.
    pub(crate) fn adopt(name: &str) -> Option<Self> {
        let parents = parents(version().ok()?);
        let found = parents.into_iter().filter_map(|parent| {
            let path = parent.join(name);
            let lock = lock(&path).ok()??;
            Some((path, lock))
        });
        let directories = found.collect::<Vec<_>>();
        (!directories.is_empty()).then_some(Self { directories })
    }

    fn add(&mut self, parent: &Utf8Path, name: &str) -> io::Result<Utf8PathBuf> {
        match fs::create_dir(parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let path = parent.join(name);
        // A resumed VM has the name that it had before. The group that its last VMM left is empty.
        match fs::remove_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(&path)?,
        }
        // A sweep that runs between `mkdir` and `lock` removes the new group. Then writing the bounds fails, and the
        // measure is refused.
        let lock = lock(&path)?.ok_or(io::ErrorKind::WouldBlock)?;
        self.directories.push((path.clone(), lock));
        Ok(path)
    }

    /// Leaves the group to its VMM, which keeps running with another owner or without one.
    pub(crate) fn leave(mut self) {
        self.directories.clear();
    }

    /// The files to which a pid is written to move that process into the groups.
    pub(crate) fn entrances(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |(path, _): &(Utf8PathBuf, OwnedFd)| {
            let path = path.join("cgroup.procs");
            Ok(rustix::fs::open(path.as_std_path(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?)
        };
        self.directories.iter().map(open).collect()
    }
}

/// A process on its way into its groups. Another thread moves it.
///
/// Entering a group is slow. The kernel takes a lock whose writer waits until no processor is in the middle of a fork
/// or an exit, and for each hierarchy that waits for a grace period of RCU, some 10 ms. If the child entered before its
/// exec, it would block for all of that. So its parent writes the pid while QEMU already starts, which takes longer
/// than that.
///
/// The VMM is not bounded in that time, and that is safe. A VMM is dangerous only after its guest has taken it over. No
/// instruction of a restored guest runs before [`finish`](Self::finish), and a guest that boots is still in its
/// firmware, which is Kiln's choice.
#[derive(Debug)]
pub(crate) struct Entry(std::thread::JoinHandle<io::Result<()>>);

impl Entry {
    /// Starts to move a child. The child must not be reaped before [`finish`](Self::finish), because until then its pid
    /// must not be reused.
    pub(crate) fn begin(entrances: Vec<OwnedFd>, pid: u32) -> io::Result<Self> {
        let line = format!("{pid}\n");
        // The thread writes a pid, so the pid must not be reused before it has. It is the pid of a child that this
        // process has not reaped, and `Child` joins this thread before it reaps. So the pid belongs to the child, alive
        // or a zombie.
        let enter = move || {
            let enter = |entrance: &OwnedFd| match rustix::io::write(entrance, line.as_bytes()) {
                // The process has ended already.
                Ok(_) | Err(rustix::io::Errno::SRCH) => Ok(()),
                Err(error) => Err(error.into()),
            };
            entrances.iter().try_for_each(enter)
        };
        std::thread::Builder::new().name("kiln-cgroup".into()).spawn(enter).map(Self)
    }

    /// Waits until the process is in its groups. Blocks.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.0.join().expect("writing does not panic")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for (path, _) in &self.directories {
            if let Err(error) = remove(path) {
                tracing::warn!(%path, %error, "failed to remove a control group");
            }
        }
    }
}

fn remove(path: &Utf8Path) -> io::Result<()> {
    for _ in 1..REMOVALS_MAX {
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(REMOVAL_PAUSE),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
    fs::remove_dir(path)
}

/// Removes the groups whose VMMs and owners are gone.
pub(crate) fn sweep() {
    let Ok(version) = version() else { return };
    for parent in parents(version) {
        let Ok(entries) = parent.read_dir_utf8() else { continue };
        for path in entries.flatten().map(camino::Utf8DirEntry::into_path).filter(|path| path.is_dir()) {
            // A group with an owner is locked. A group whose VMM lives without an owner is not locked, but busy, so
            // removing it fails.
            if let Ok(Some(_lock)) = lock(&path)
                && let Err(error) = fs::remove_dir(&path)
            {
                tracing::debug!(%path, %error, "a control group stays");
            }
        }
    }
}

fn parents(version: Version) -> Vec<Utf8PathBuf> {
    let root = Utf8Path::new(ROOT);
    match version {
        Version::Two => vec![root.join(PARENT)],
        Version::One => CONTROLLERS.iter().map(|controller| root.join(controller).join(PARENT)).collect(),
    }
}

/// Enables the controllers that Kiln needs for the groups below this one.
fn delegate(group: &Utf8Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let file = group.join("cgroup.subtree_control");
    let has = fs::read_to_string(&file)?;
    let lacks = CONTROLLERS.iter().filter(|name| !has.split_ascii_whitespace().any(|one| one == **name));
    let words = lacks.map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
    if words.is_empty() { Ok(()) } else { fs::write(file, words) }
}

/// `None` if another process holds the lock.
fn lock(path: &Utf8Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path.as_std_path(), flags, Mode::empty())?;
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(directory)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

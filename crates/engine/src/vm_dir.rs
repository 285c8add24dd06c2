//! `vms/<id>/`: the directory of one running VM, and what its owner's end leaves of it.
//!
//! ```text
//!   spec.json     what was asked for
//!   pid           the VMM: pid and start time, so that a reused pid is never taken for it
//!   *.sock        monitor, agent and extra ports; bound by Kiln, served by the VMM
//!   console.log   and its later parts
//! ```
//! The owner holds a lock (flock) on the directory itself for as long as the VM lives. A directory whose lock is free has
//! lost its owner; [`recover`] ends its VMM and removes it.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

use crate::vm_spec::VmSpec;

/// `sun_path` of a Unix socket's address, less its end mark.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// [`recover`] can take a new directory before it is locked; that it happens so often says something else is wrong.
const CREATE_ATTEMPTS_MAX: usize = 16;

/// Names a VM on this host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VmId(String);

impl VmId {
    /// A new id, unlike any other.
    pub fn random() -> Self {
        let mut bytes = [0; 6];
        // The kernel fills small requests whole once it has booted; a zero byte more or less is still an id.
        rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
            .expect("getrandom has no way to fail for six bytes");
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The id as text, as it stands in paths.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A VM's directory, removed when this is dropped.
#[derive(Debug)]
pub(crate) struct VmDir {
    id: VmId,
    path: Utf8PathBuf,
    // Held, never read: closing it tells `recover` that the owner is gone.
    _lock: OwnedFd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct PidFile {
    pid: i32,
    start_time: u64,
}

impl VmDir {
    /// Makes the directory of a new VM below `vms`.
    pub(crate) fn create(vms: &Utf8Path, spec: &VmSpec) -> io::Result<Self> {
        fs::create_dir_all(vms)?;
        let made = (0..CREATE_ATTEMPTS_MAX).find_map(|_| Self::make_and_lock(vms).transpose());
        let this = made.ok_or_else(|| io::Error::other(format!("no directory stays in `{vms}`")))??;
        fs::write(this.path.join("spec.json"), serde_json::to_vec_pretty(spec)?)?;
        Ok(this)
    }

    /// `None` where [`recover`] took the new directory for an old one before it was locked.
    fn make_and_lock(vms: &Utf8Path) -> io::Result<Option<Self>> {
        let id = VmId::random();
        let path = vms.join(id.as_str());
        fs::create_dir(&path)?;
        let Some(lock) = try_lock(&path)? else { return Ok(None) };
        rustix::fs::fchmod(&lock, Mode::RWXU)?;
        Ok(Some(Self { id, path, _lock: lock }))
    }

    pub(crate) fn id(&self) -> &VmId {
        &self.id
    }

    pub(crate) fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// What connects to this directory's sockets, also when its path is too long for an address.
    pub(crate) fn sockets(&self) -> io::Result<SocketDir> {
        // Opened anew: a copy of the locked descriptor would hold the lock too.
        let handle = open_directory(&self.path, OFlags::PATH)?;
        Ok(SocketDir { path: self.path.clone(), handle })
    }

    pub(crate) fn write_pid(&self, pid: u32) -> io::Result<()> {
        let pid = pid.cast_signed();
        let file = PidFile { pid, start_time: start_time(pid)? };
        fs::write(self.path.join("pid"), serde_json::to_vec(&file)?)
    }
}

impl Drop for VmDir {
    fn drop(&mut self) {
        // Removed before the lock is let go: nobody takes it for one without an owner.
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path, %error, "failed to remove a VM's directory");
        }
    }
}

/// The sockets of a VM.
#[derive(Debug)]
pub(crate) struct SocketDir {
    path: Utf8PathBuf,
    handle: OwnedFd,
}

impl SocketDir {
    pub(crate) fn listen(&self, name: &str) -> io::Result<UnixListener> {
        UnixListener::bind(self.address(name))
    }

    pub(crate) fn connect(&self, name: &str) -> io::Result<UnixStream> {
        UnixStream::connect(self.address(name))
    }

    /// Where `name` can be bound or connected: the path itself, or the way over our descriptor where that is too long.
    pub(crate) fn address(&self, name: &str) -> Utf8PathBuf {
        let file = format!("{name}.sock");
        let path = self.path.join(&file);
        if path.as_str().len() <= SOCKET_PATH_BYTES_MAX {
            return path;
        }
        Utf8PathBuf::from(format!("/proc/self/fd/{}/{file}", self.handle.as_raw_fd()))
    }
}

/// Ends the VMMs and removes the directories of VMs whose owner is gone. Returns their ids.
///
/// # Errors
/// When `vms` can't be read. A single directory that can't be removed is logged and left for the next time.
pub fn recover(vms: &Utf8Path) -> io::Result<Vec<VmId>> {
    if !vms.exists() {
        return Ok(Vec::new());
    }
    let mut recovered = Vec::new();
    for entry in fs::read_dir(vms)? {
        let entry = entry?;
        let Ok(path) = Utf8PathBuf::try_from(entry.path()) else { continue };
        if !entry.file_type()?.is_dir() {
            continue;
        }
        match recover_one(&path) {
            Ok(true) => recovered.extend(path.file_name().map(|name| VmId(name.to_owned()))),
            Ok(false) => {}
            Err(error) => tracing::warn!(%path, %error, "failed to remove a VM whose owner is gone"),
        }
    }
    Ok(recovered)
}

fn recover_one(path: &Utf8Path) -> io::Result<bool> {
    // Held until the directory is gone.
    let Some(_lock) = try_lock(path)? else { return Ok(false) };
    if let Ok(bytes) = fs::read(path.join("pid"))
        && let Ok(file) = serde_json::from_slice::<PidFile>(&bytes)
    {
        kill_if_same(file)?;
    }
    fs::remove_dir_all(path)?;
    Ok(true)
}

/// Kills the process, unless its pid has been given to another one since.
fn kill_if_same(file: PidFile) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(file.pid) else { return Ok(()) };
    let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // Compared after the pidfd was opened: it stays with that process whatever becomes of the number.
    if start_time(file.pid).is_ok_and(|now| now == file.start_time) {
        tracing::info!(pid = file.pid, "killing a VMM whose owner is gone");
        match rustix::process::pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// When a process started, in clock ticks since boot (proc(5), `stat` field 22).
fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is a name in parentheses that may hold anything, parentheses too.
    let after_name = stat.rsplit_once(')').map(|(_, rest)| rest);
    let field = after_name.and_then(|rest| rest.split_ascii_whitespace().nth(19));
    field.and_then(|field| field.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// `None` for a directory that another process holds, or has just removed.
fn try_lock(path: &Utf8Path) -> io::Result<Option<OwnedFd>> {
    let lock = match open_directory(path, OFlags::empty()) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        // Its last holder may have removed it before it let go.
        Ok(()) => Ok((rustix::fs::fstat(&lock)?.st_nlink > 0).then_some(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn open_directory(path: &Utf8Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path.as_std_path(), flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vms() -> (tempfile::TempDir, Utf8PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8PathBuf::try_from(directory.path().join("vms")).expect("UTF-8");
        (directory, path)
    }

    fn spec() -> VmSpec {
        VmSpec::new("/k", "/i")
    }

    #[test]
    fn a_vm_with_an_owner_is_left_alone_and_one_without_is_removed() {
        let (_directory, vms) = vms();
        let alive = VmDir::create(&vms, &spec()).expect("made");
        let orphan = vms.join("orphan");
        fs::create_dir(&orphan).expect("made");
        assert_eq!(recover(&vms).expect("recovers"), [VmId("orphan".into())]);
        assert!(alive.path().join("spec.json").exists() && !orphan.exists());
        let path = alive.path().to_owned();
        drop(alive);
        assert!(!path.exists());
        assert_eq!(recover(&vms).expect("recovers"), []);
    }

    #[test]
    fn the_vmm_of_an_orphan_is_killed_and_a_stranger_with_its_pid_is_not() {
        let (_directory, vms) = vms();
        let mut vmm = std::process::Command::new("sleep").arg("1000").spawn().expect("starts");
        let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().expect("starts");
        let pids = [(vmm.id().cast_signed(), 0), (stranger.id().cast_signed(), 1)];
        for (index, (pid, skew)) in pids.into_iter().enumerate() {
            let orphan = vms.join(format!("orphan{index}"));
            fs::create_dir_all(&orphan).expect("made");
            let file = PidFile { pid, start_time: start_time(pid).expect("runs") + skew };
            fs::write(orphan.join("pid"), serde_json::to_vec(&file).expect("JSON")).expect("written");
        }
        assert_eq!(recover(&vms).expect("recovers").len(), 2);
        let ended = vmm.wait().expect("ends");
        assert!(!ended.success());
        assert_eq!(stranger.try_wait().expect("is there"), None);
        stranger.kill().expect("killed");
        stranger.wait().expect("ends");
    }

    #[test]
    fn a_directory_too_deep_for_a_socket_address_works_too() {
        let (_directory, vms) = vms();
        let deep = vms.join("d".repeat(200));
        let dir = VmDir::create(&deep, &spec()).expect("made");
        let sockets = dir.sockets().expect("opens");
        let listener = sockets.listen("agent").expect("listens");
        let _client = sockets.connect("agent").expect("connects");
        listener.accept().expect("is there");
        assert!(dir.path().join("agent.sock").exists());
    }

    #[test]
    fn vms_are_made_while_others_recover() {
        let (_directory, vms) = vms();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    recover(&vms).expect("recovers");
                }
            });
            for _ in 0..200 {
                let dir = VmDir::create(&vms, &spec()).expect("made");
                assert!(dir.path().join("spec.json").exists());
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(fs::read_dir(&vms).expect("lists").count(), 0);
    }

    #[test]
    fn ids_differ() {
        assert_ne!(VmId::random(), VmId::random());
        assert_eq!(VmId::random().as_str().len(), 12);
    }
}

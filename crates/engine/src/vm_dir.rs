//! `vms/<id>/`: the directory of one running VM, and what its owner's end leaves of it.
//!
//! ```text
//!   lock          held (flock) by the owner for as long as the VM lives
//!   spec.json     what was asked for
//!   pid           the VMM: pid and start time, so that a reused pid is never taken for it
//!   *.sock        monitor, agent and extra ports; bound by Kiln, served by the VMM
//!   console.log   and its later parts
//! ```
//! A directory whose lock is free has lost its owner; [`recover`] ends its VMM and removes it.

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
    path: Utf8PathBuf,
    handle: OwnedFd,
    // Held, never read: closing it tells `recover` that the owner is gone.
    _lock: fs::File,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct PidFile {
    pid: i32,
    start_time: u64,
}

impl VmDir {
    /// Makes the directory of a new VM below `vms`.
    pub(crate) fn create(vms: &Utf8Path, id: &VmId, spec: &VmSpec) -> io::Result<Self> {
        fs::create_dir_all(vms)?;
        // Between its making and its locking, a directory looks like one whose owner is gone: keep `recover` out.
        let gate = gate(vms, FlockOperation::LockShared)?;
        let path = vms.join(id.as_str());
        fs::create_dir(&path)?;
        rustix::fs::chmod(path.as_std_path(), Mode::RWXU)?;
        let lock = fs::File::create_new(path.join("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        drop(gate);
        let handle = open_directory(&path)?;
        let this = Self { path, handle, _lock: lock };
        fs::write(this.path.join("spec.json"), serde_json::to_vec_pretty(spec)?)?;
        Ok(this)
    }

    pub(crate) fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// What connects to this directory's sockets, also when its path is too long for an address.
    pub(crate) fn sockets(&self) -> io::Result<SocketDir> {
        Ok(SocketDir { path: self.path.clone(), handle: self.handle.try_clone()? })
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
    let _gate = gate(vms, FlockOperation::LockExclusive)?;
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
    match fs::File::open(path.join("lock")) {
        Ok(lock) => match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(error.into()),
        },
        // Its owner ended while making or removing it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
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

fn gate(vms: &Utf8Path, operation: FlockOperation) -> io::Result<fs::File> {
    let gate = fs::OpenOptions::new().create(true).truncate(false).write(true).open(vms.join(".lock"))?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&gate, operation))?;
    Ok(gate)
}

fn open_directory(path: &Utf8Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path.as_std_path(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
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
        let alive = VmDir::create(&vms, &VmId("alive".into()), &spec()).expect("made");
        let orphan = vms.join("orphan");
        fs::create_dir(&orphan).expect("made");
        fs::write(orphan.join("lock"), "").expect("written");
        assert_eq!(recover(&vms).expect("recovers"), [VmId("orphan".into())]);
        assert!(alive.path().join("spec.json").exists() && !orphan.exists());
        drop(alive);
        assert!(!vms.join("alive").exists());
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
        let dir = VmDir::create(&deep, &VmId::random(), &spec()).expect("made");
        let sockets = dir.sockets().expect("opens");
        let listener = sockets.listen("agent").expect("listens");
        let _client = sockets.connect("agent").expect("connects");
        listener.accept().expect("is there");
        assert!(dir.path().join("agent.sock").exists());
    }

    #[test]
    fn ids_differ() {
        assert_ne!(VmId::random(), VmId::random());
        assert_eq!(VmId::random().as_str().len(), 12);
    }
}

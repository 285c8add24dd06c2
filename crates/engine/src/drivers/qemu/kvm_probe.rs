//! Finds out whether KVM works. That `/dev/kvm` exists and opens proves nothing: some hosts offer it without working
//! virtualisation, and no ordinary Linux starts there. Asking KVM for its version or its features does not help either,
//! because such a host answers all of these calls. Only running a kernel shows it. So Kiln boots a probe guest under a
//! deadline and remembers the answer.
//!
//! Answers are kept in `$KILN_HOME/probe.json`, keyed by kernel, VMM and boot of the host. After a new kernel, an
//! upgraded VMM or a reboot, KVM is probed again. A lock lets one process probe while others wait for its answer.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::QemuEngine;
use crate::blocking::{blocking, operation};
use crate::driver::Driver as _;
use crate::files::{FileFacts, plain_file, private_file};
use crate::host::{KvmState, open_kvm};
use crate::spec::{Acceleration, AccelerationRequest, OwnerLoss, VmSpec};
use crate::vm::{Vm, VmEvent, VmEvents};

/// A working KVM has the agent up in a second or two.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(10);
/// A kernel with an early console has printed its first line by now, even on a busy host.
const FIRST_LINE_DEADLINE: Duration = Duration::from_secs(5);
/// Another process may be probing; it ends by its own deadline.
const LOCK_DEADLINE: Duration = Duration::from_secs(30);
/// Below `$KILN_HOME`.
const ANSWERS_FILE: &str = "probe.json";
/// Answers that are remembered; a host has few kernels.
const ANSWERS_MAX: usize = 16;
/// Each has a few hundred bytes.
const ANSWERS_BYTES_MAX: u64 = 64 << 10;
/// Console bytes that are searched; the marks come long before.
const CONSOLE_BYTES_MAX: usize = 256 << 10;
/// Memory of the probe guest.
const PROBE_MEMORY_MIB: u64 = 256;
/// Printed by a kernel that runs.
const FIRST_LINE: &str = "Linux version";
/// Printed by the kernel that starts the initramfs, and by the agent in it.
const UP_LINES: [&str; 2] = ["kiln-agent: init", "Run /init as init process"];

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Answers {
    answers: Vec<Answer>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Answer {
    key: Key,
    kvm: KvmState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    /// blake3 of the kernel.
    kernel: String,
    /// The VMM's path, size and time: a stricter and cheaper witness than its version.
    vmm: String,
    /// The host's boot.
    boot_id: String,
}

/// Whether KVM runs this spec's kernel, from memory or by a probe guest of a few seconds.
pub async fn kvm_works(engine: &QemuEngine, spec: &VmSpec) -> KvmState {
    let (engine, spec) = (engine.clone(), spec.clone());
    operation(async move { find_out(&engine, &spec).await }).await
}

async fn find_out(engine: &QemuEngine, spec: &VmSpec) -> KvmState {
    if let Err(state) = open_kvm() {
        return state;
    }
    let key = match Key::new(&FileFacts::new(engine.home()), engine.binary(), &spec.kernel) {
        Ok(key) => key,
        // The launch that follows fails for the same reason, with a better error.
        Err(error) => return KvmState::Unusable { reason: error.to_string() },
    };
    let file = engine.home().join(ANSWERS_FILE);
    if let Some(kvm) = Answers::load(&file).find(&key) {
        return kvm;
    }
    let _lock = lock(engine.home().join("probe.lock")).await;
    if let Some(kvm) = Answers::load(&file).find(&key) {
        return kvm;
    }
    let kvm = match probe(engine, spec).await {
        Ok(()) => KvmState::Works,
        Err(reason) => KvmState::Lies { reason },
    };
    tracing::info!(answer = kvm.reason(), "probed KVM");
    if let Err(error) = Answers::load(&file).with(key, kvm.clone()).store(&file) {
        tracing::warn!(%error, "failed to remember what the probe guest found");
    }
    kvm
}

/// Forgets what was found on this host, so that the next VM tries KVM again.
///
/// # Errors
/// The answers can't be removed.
pub fn forget_probe(home: &Utf8Path) -> io::Result<()> {
    match fs::remove_file(home.join(ANSWERS_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn probe(engine: &QemuEngine, spec: &VmSpec) -> Result<(), String> {
    let probe = VmSpec {
        cpus: 1,
        memory_mib: PROBE_MEMORY_MIB,
        acceleration: AccelerationRequest::Kvm,
        disks: Vec::new(),
        modules: Vec::new(),
        root: None,
        extra_ports: Vec::new(),
        nics: Vec::new(),
        vhost_user: Vec::new(),
        forkable: false,
        owner_loss: OwnerLoss::Kill,
        // The early console works before any clock is calibrated. The last option about `quiet` counts.
        cmdline_extra: vec!["earlycon=uart8250,io,0x3f8,115200".into(), "ignore_loglevel".into()],
        ..spec.clone()
    };
    // Not with `launch`, which would probe KVM again.
    engine.validate(&probe).map_err(|error| error.to_string())?;
    let mut vm = engine.boot(&probe, Acceleration::Kvm).await.map_err(|error| error.to_string())?;
    let events = vm.take_events().expect("a new VM has its events");
    let result = tokio::time::timeout(PROBE_DEADLINE, watch(&vm, events)).await;
    vm.kill().await;
    result.unwrap_or_else(|_| Err(format!("it did not come up within {PROBE_DEADLINE:?}")))
}

async fn watch(vm: &Vm, mut events: VmEvents) -> Result<(), String> {
    let mut console = String::new();
    loop {
        let event = if console.contains(FIRST_LINE) {
            events.next().await
        } else {
            let waited = tokio::time::timeout(FIRST_LINE_DEADLINE, events.next()).await;
            waited.map_err(|_| format!("its kernel printed nothing for {FIRST_LINE_DEADLINE:?}"))?
        };
        match event {
            Some(VmEvent::Console { bytes, .. }) => console.push_str(&String::from_utf8_lossy(&bytes)),
            Some(VmEvent::Exited(exit)) => return Err(exit.to_string()),
            Some(_) => {}
            None => return Err(vm.wait().await.to_string()),
        }
        if UP_LINES.iter().any(|line| console.contains(line)) {
            return Ok(());
        }
        if console.len() > CONSOLE_BYTES_MAX {
            return Err("its console printed too much".into());
        }
    }
}

/// Held while probing. Without it two processes would only do the same work twice, so failing to get it is no error.
async fn lock(path: Utf8PathBuf) -> Option<fs::File> {
    let wait = blocking(move || -> io::Result<fs::File> {
        if let Some(directory) = path.parent() {
            private_file::create_dir_all(directory)?;
        }
        let file = private_file::lock_file(&path)?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))?;
        Ok(file)
    });
    tokio::time::timeout(LOCK_DEADLINE, wait).await.ok()?.ok()
}

impl Key {
    fn new(facts: &FileFacts, vmm: &Utf8Path, kernel: &Utf8Path) -> io::Result<Self> {
        let meta = fs::metadata(vmm)?;
        Ok(Self {
            kernel: facts.digest(kernel)?,
            vmm: format!("{vmm}:{}:{}.{:09}", meta.size(), meta.mtime(), meta.mtime_nsec()),
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
        })
    }
}

impl Answers {
    /// What is remembered; nothing where the file is not there or not ours.
    fn load(file: &Utf8Path) -> Self {
        plain_file::read(file, ANSWERS_BYTES_MAX)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    fn find(&self, key: &Key) -> Option<KvmState> {
        self.answers.iter().find(|answer| answer.key == *key).map(|answer| answer.kvm.clone())
    }

    fn with(mut self, key: Key, kvm: KvmState) -> Self {
        // Answers of earlier boots can never match again.
        self.answers.retain(|answer| answer.key.boot_id == key.boot_id && answer.key != key);
        self.answers.insert(0, Answer { key, kvm });
        self.answers.truncate(ANSWERS_MAX);
        self
    }

    fn store(&self, file: &Utf8Path) -> io::Result<()> {
        let directory = file.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let scratch = directory.join("cache");
        private_file::create_dir_all(&scratch)?;
        private_file::replace(file, &scratch, &serde_json::to_vec_pretty(self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kernel: &str, boot_id: &str) -> Key {
        Key { kernel: kernel.into(), vmm: "v".into(), boot_id: boot_id.into() }
    }

    #[test]
    fn answers_survive_a_process_and_not_a_reboot() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = Utf8PathBuf::try_from(directory.path().join("probe.json")).expect("UTF-8");
        let lies = KvmState::Lies { reason: "silence".into() };
        Answers::load(&file)
            .with(key("a", "1"), lies.clone())
            .with(key("b", "1"), KvmState::Works)
            .store(&file)
            .expect("written");
        let answers = Answers::load(&file);
        assert_eq!(answers.find(&key("a", "1")), Some(lies));
        assert_eq!(answers.find(&key("b", "1")), Some(KvmState::Works));
        assert_eq!(answers.find(&key("a", "2")), None);
        let answers = answers.with(key("a", "2"), KvmState::Works);
        assert_eq!(answers.answers.len(), 1);
    }

    #[test]
    fn what_is_forgotten_is_asked_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Utf8Path::from_path(directory.path()).expect("UTF-8");
        let file = home.join(ANSWERS_FILE);
        Answers::default().with(key("a", "1"), KvmState::Works).store(&file).expect("written");
        forget_probe(home).expect("is there");
        assert_eq!(Answers::load(&file).find(&key("a", "1")), None);
        forget_probe(home).expect("is gone already");
    }

    #[test]
    fn a_damaged_memory_is_no_memory() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = Utf8PathBuf::try_from(directory.path().join("probe.json")).expect("UTF-8");
        fs::write(&file, b"{\"answers\": [{\"key\": 3}").expect("written");
        assert_eq!(Answers::load(&file).find(&key("a", "1")), None);
    }

    #[test]
    fn memory_is_bounded() {
        let mut answers = Answers::default();
        for kernel in 0..100 {
            answers = answers.with(key(&kernel.to_string(), "1"), KvmState::Works);
        }
        assert_eq!(answers.answers.len(), ANSWERS_MAX);
        assert!(answers.find(&key("99", "1")).is_some());
    }
}

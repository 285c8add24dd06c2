//! Tests whether KVM works.
//!
//! That `/dev/kvm` exists and opens proves little. Some hosts are VMs themselves and offer KVM without a working nested
//! virtualisation: KVM creates a VM and its CPUs, but an ordinary Linux never gets out of its decompressor, and QEMU
//! spins. The version and the features of KVM do not show that either, because such a host answers all of these calls.
//! Only a kernel that runs shows it. So Kiln boots a probe guest under a deadline and remembers the result.
//!
//! Results are in `$KILN_HOME/probe.json`, keyed by kernel, VMM and boot of the host. After a new kernel, an upgraded
//! VMM or a reboot, KVM is tested again. A lock lets one process test while others wait for its result.

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

/// For the boot of the probe guest. With a working KVM it takes a second or two.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(10);
/// For the first line of a kernel with an early console, also on a busy host.
const FIRST_LINE_DEADLINE: Duration = Duration::from_secs(5);
/// For another process that runs the test. It ends by its own deadline.
const LOCK_DEADLINE: Duration = Duration::from_secs(30);
/// Name of the file of results, below `$KILN_HOME`.
const ANSWERS_FILE: &str = "probe.json";
/// Results that are remembered. A host has few kernels.
const ANSWERS_MAX: usize = 16;
/// The longest file that is read. A result has a few hundred bytes.
const ANSWERS_BYTES_MAX: u64 = 64 << 10;
/// Console bytes that are searched. The marks come long before.
const CONSOLE_BYTES_MAX: usize = 256 << 10;
/// Memory of the probe guest.
const PROBE_MEMORY_MIB: u64 = 256;
/// A kernel that runs prints this first.
const FIRST_LINE: &str = "Linux version";
/// The agent prints the first, and the kernel that starts it the second.
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
    /// BLAKE3 digest of the kernel.
    kernel: String,
    /// Path, size and modification time of the VMM. They change with every upgrade, and cost no start of QEMU.
    vmm: String,
    /// Boot id of the host.
    boot_id: String,
}

/// Whether KVM runs this spec's kernel. If that is not remembered, boots a probe guest, which takes a few seconds.
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
        // The following launch fails for the same reason, with a better error.
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

/// Forgets the results of this home, so that the next VM tests KVM again.
///
/// # Errors
/// The file of results can't be removed.
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
        module_disk: None,
        extra_ports: Vec::new(),
        nics: Vec::new(),
        vhost_user: Vec::new(),
        forkable: false,
        owner_loss: OwnerLoss::Kill,
        // The early console works before any clock is calibrated. `ignore_loglevel` overrides a `quiet` of the image.
        cmdline_extra: vec!["earlycon=uart8250,io,0x3f8,115200".into(), "ignore_loglevel".into()],
        ..spec.clone()
    };
    // Not with `launch`, which would test KVM again.
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

/// Takes the lock for a test. Without it, two processes would only do the same work twice, so a failure is not an
/// error.
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
    /// The remembered results. Empty if the file does not exist or can't be parsed.
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
    fn a_forgotten_result_is_tested_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Utf8Path::from_path(directory.path()).expect("UTF-8");
        let file = home.join(ANSWERS_FILE);
        Answers::default().with(key("a", "1"), KvmState::Works).store(&file).expect("written");
        forget_probe(home).expect("is there");
        assert_eq!(Answers::load(&file).find(&key("a", "1")), None);
        forget_probe(home).expect("is gone already");
    }

    #[test]
    fn a_damaged_file_of_results_counts_as_empty() {
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

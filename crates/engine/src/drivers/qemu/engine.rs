//! The engine: finds QEMU, decides between KVM and TCG, and launches VMs of specs.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use tokio::sync::OnceCell;

use super::args::{self, Accelerator, Memory, Start};
use super::kvm_probe::kvm_works;
use super::launch::{self, Plan};
use super::restore::QemuRestorer;
use super::save::{QemuSaver, SavedMemory};
use super::version::{self, QemuVersion};
use super::{blockdev, machine};
use crate::blocking::operation;
use crate::confine::{Confinement, Policy};
use crate::driver::{AdoptError, Capabilities, Driver, Isolation, LaunchError, RestoreError, Restorer};
use crate::failpoint;
use crate::home::Home;
use crate::host::{self, KvmState};
use crate::snapshot::{MachineIdentity, Snapshot, overlay};
use crate::spec::{Acceleration, AccelerationRequest, Disk, DiskRole, SpecError, VmSpec};

use crate::vm::{BoxFuture, Ends, Files, Vm, put};
use crate::vm_dir::{Orphan, State, VmDir, VmId};

/// Name of the program.
pub const QEMU_PROGRAM: &str = "qemu-system-x86_64";
/// The variable that names another QEMU than the one on `PATH`.
pub const QEMU_VARIABLE: &str = "KILN_QEMU";
/// A part of QEMU's error if the host refuses `IA32_ARCH_CAPABILITIES`.
const MSR_FAILURE: &str = "failed to set MSR";

/// Starts VMs with QEMU.
#[derive(Debug, Clone)]
pub struct QemuEngine {
    pub(super) home: Utf8PathBuf,
    pub(super) binary: Utf8PathBuf,
    recovered: Arc<OnceCell<()>>,
    pub(super) policy: Policy,
}

impl QemuEngine {
    /// An engine that keeps its VMs below `home` (`$KILN_HOME`), with the QEMU in `$KILN_QEMU` or on `PATH`. It uses
    /// all measures to confine VMMs that `$KILN_CONFINE_OFF` does not name.
    ///
    /// # Errors
    /// [`LaunchError::VmmMissing`]; [`LaunchError::Policy`]; or other users can change the home ([`Home::check`]).
    pub fn find(home: impl Into<Utf8PathBuf>) -> Result<Self, LaunchError> {
        let home = home.into();
        Home::at(&home).check()?;
        Self::find_unchecked(home)
    }

    /// Like [`find`](Self::find), but does not check the home. The caller must not change the home then.
    pub(crate) fn find_unchecked(home: impl Into<Utf8PathBuf>) -> Result<Self, LaunchError> {
        let program = std::env::var(QEMU_VARIABLE).unwrap_or_else(|_| QEMU_PROGRAM.into());
        let binary = host::find_program(Utf8Path::new(&program));
        let binary = binary.ok_or_else(|| LaunchError::VmmMissing { program: program.into() })?;
        Ok(Self::new(home, binary).with_policy(Policy::from_environment()?))
    }

    /// An engine with the given QEMU.
    pub fn new(home: impl Into<Utf8PathBuf>, binary: impl Into<Utf8PathBuf>) -> Self {
        Self { home: home.into(), binary: binary.into(), recovered: Arc::default(), policy: Policy::default() }
    }

    /// The same engine, with another policy to confine its VMMs.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// The policy that confines its VMMs.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The state of each measure for a VM of this home, whichever process owns it.
    ///
    /// # Errors
    /// The VM does not exist.
    pub fn confinement(&self, vm: &VmId) -> std::io::Result<Confinement> {
        Confinement::load(&self.home.join("vms").join(vm.as_str()))
    }

    /// The QEMU program.
    pub fn binary(&self) -> &Utf8Path {
        &self.binary
    }

    /// QEMU's version, remembered as long as the program is the same. `None` if the program does not report it.
    pub async fn version(&self) -> Option<QemuVersion> {
        let (home, binary) = (self.home.clone(), self.binary.clone());
        operation(async move { machine::qemu_version(&home, &binary).await }).await
    }

    /// Like [`version`](Self::version), but always starts the program and remembers nothing, so it does not write to
    /// the home.
    pub(crate) async fn ask_version(&self) -> Option<QemuVersion> {
        version::qemu_version(&self.binary).await.ok().flatten()
    }

    /// Launches with KVM, and a second time without `IA32_ARCH_CAPABILITIES` if the host refuses that MSR. Some hosts
    /// report it among the features of their CPU, but an attempt to set it fails. QEMU with `-cpu host` copies the
    /// feature and exits when it sets the MSR, before the guest runs. So the first attempt is also the test.
    async fn launch_kvm(&self, spec: &VmSpec) -> Result<Vm, LaunchError> {
        match self.launch_with(spec, Accelerator::Kvm).await {
            Err(LaunchError::VmmFailed { stderr, .. }) if stderr.contains(MSR_FAILURE) => {
                tracing::info!("the host refuses an MSR that it reports, starting without it");
                self.launch_with(spec, Accelerator::KvmWithoutArchCapabilities).await
            }
            other => other,
        }
    }

    async fn launch_with(&self, spec: &VmSpec, accelerator: Accelerator) -> Result<Vm, LaunchError> {
        for Disk { path, format, .. } in &spec.disks {
            // A qcow2 image can name another file of the host as its data file, and no option of QEMU prevents that.
            overlay::refuse_other_files(path, *format)
                .map_err(|error| SpecError::Disk { path: path.clone(), problem: error.to_string() })?;
        }
        let facts = machine::facts(&self.home, &self.binary, spec, accelerator).await;
        let vms = self.home.join("vms");
        let no_directory = |source| LaunchError::Directory { path: vms.clone(), source };
        let dir = VmDir::create(&vms, spec).map_err(no_directory)?;
        failpoint::hit("launch.dir").map_err(|error| no_directory(error.into()))?;
        let own = spec.in_directory(dir.path());
        for (from, to) in spec.disks.iter().zip(&own.disks).filter(|(from, _)| from.role == DiskRole::Fresh) {
            put(Files::Copy, &from.path, &to.path).map_err(|error| LaunchError::Image {
                path: from.path.clone(),
                source: std::io::Error::other(error),
            })?;
        }
        let spec = &own;
        // Backends of vhost-user devices map the guest's memory, so it has to be a shared file for them too.
        let memory = match spec.forkable || !spec.vhost_user.is_empty() {
            true => Memory::Shared(launch::memory_file(&dir, spec)?),
            false => Memory::Anonymous,
        };
        let saved_memory = match &memory {
            Memory::Shared(path) if spec.forkable => SavedMemory::Whole(path.clone()),
            _ => SavedMemory::None,
        };
        let binary = &self.binary;
        let disks = spec.disks.iter().enumerate();
        let disks = disks.map(|(index, disk)| blockdev::blockdev(&args::disk_node(index), disk, &[])).collect();
        let plan = Plan {
            binary,
            spec,
            facts: facts.clone(),
            memory,
            start: Start::Boot,
            disks,
            snapshot: None,
            inherit: Vec::new(),
            policy: &self.policy,
        };
        let started = launch::start(&dir, plan).await?;
        let (qmp, pid) = (started.monitor.0.clone(), started.child.pid());
        let saver = QemuSaver::new(&self.home, &dir, spec, facts, qmp, pid, saved_memory);
        dir.journal().append(State::Running).map_err(|error| no_directory(error.into()))?;
        failpoint::hit("launch.running").map_err(|error| no_directory(error.into()))?;
        launch::own(&self.home, dir, started, spec, accelerator, saver).map_err(no_directory)
    }
}

impl Driver for QemuEngine {
    fn home(&self) -> &Utf8Path {
        &self.home
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            driver: "qemu",
            kernel: true,
            console: true,
            pause: true,
            disks: true,
            nics: true,
            snapshots: true,
            isolation: Isolation::Emulated,
        }
    }

    fn recovered(&self) -> &OnceCell<()> {
        &self.recovered
    }

    fn validate(&self, spec: &VmSpec) -> Result<(), LaunchError> {
        Ok(spec.validate(host::limits())?)
    }

    fn decide<'a>(&'a self, spec: &'a VmSpec) -> BoxFuture<'a, Result<Acceleration, LaunchError>> {
        Box::pin(async move {
            let kvm = match spec.acceleration {
                AccelerationRequest::Tcg => false,
                // Without this check, a guest that never starts would end only at its deadline.
                AccelerationRequest::Kvm => match kvm_works(self, spec).await {
                    KvmState::Works => true,
                    state => return Err(LaunchError::NoKvm(state)),
                },
                AccelerationRequest::Auto => kvm_works(self, spec).await.works(),
            };
            Ok(if kvm { Acceleration::Kvm } else { Acceleration::Tcg })
        })
    }

    fn machine<'a>(&'a self, spec: &'a VmSpec) -> BoxFuture<'a, Result<MachineIdentity, LaunchError>> {
        Box::pin(async move {
            let accelerator = match spec.acceleration {
                AccelerationRequest::Kvm => Accelerator::Kvm,
                AccelerationRequest::Auto | AccelerationRequest::Tcg => Accelerator::Tcg,
            };
            let facts = machine::facts(&self.home, &self.binary, spec, accelerator).await;
            let identity = machine::identity(&self.home, spec, &facts);
            identity.map_err(|source| LaunchError::Image { path: spec.kernel.clone(), source })
        })
    }

    fn boot<'a>(&'a self, spec: &'a VmSpec, on: Acceleration) -> BoxFuture<'a, Result<Vm, LaunchError>> {
        Box::pin(async move {
            match on {
                Acceleration::Kvm => self.launch_kvm(spec).await,
                Acceleration::Tcg | Acceleration::Native => self.launch_with(spec, Accelerator::Tcg).await,
            }
        })
    }

    fn restorer<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        spec: &'a VmSpec,
    ) -> BoxFuture<'a, Result<Arc<dyn Restorer>, RestoreError>> {
        Box::pin(async move { Ok(Arc::new(QemuRestorer::new(self, snapshot, spec).await?) as Arc<dyn Restorer>) })
    }

    fn reattach<'a>(
        &'a self,
        dir: &'a VmDir,
        spec: &'a VmSpec,
        vmm: &'a Orphan,
    ) -> BoxFuture<'a, Result<Ends, AdoptError>> {
        Box::pin(self.reattach_to(dir, spec, vmm))
    }
}

//! A real VM of the image `mini` with its agent's link, for tests that need more than one command in one guest.

use std::time::Duration;

use kiln_engine::home::Home;
use kiln_engine::image::{ImageStore, MINI};
use kiln_engine::link::{ExecOutput, GuestLink, StreamError};
use kiln_engine::{AccelerationRequest, Engine as _, QemuEngine, Vm, VmSpec};
use kiln_wire::{ExecRequest, Text};

/// A cold boot under TCG on a busy host takes seconds, not this.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(90);
/// The longest that a test with a VM takes.
pub const VM_TEST_DEADLINE: Duration = Duration::from_secs(180);
/// Output that tests keep of a command.
const OUTPUT_BYTES: u64 = 16 << 20;

/// A VM that has booted.
#[derive(Debug)]
pub struct Guest {
    /// The VM.
    pub vm: Vm,
    /// The link to its agent.
    pub link: GuestLink,
}

impl Guest {
    /// Boots a VM whose spec `change` may alter.
    ///
    /// # Panics
    /// If there is no image, or the VM does not boot.
    pub async fn boot(change: impl FnOnce(&mut VmSpec)) -> Self {
        let home = Home::from_env().expect("KILN_HOME or HOME is set");
        let image = ImageStore::new(&home).find_boot(MINI).expect("the image is built: kiln image build mini");
        let mut spec = VmSpec { cmdline: image.cmdline.clone(), ..VmSpec::new(&image.kernel, &image.initramfs) };
        spec.acceleration = AccelerationRequest::Auto;
        change(&mut spec);
        let engine = QemuEngine::find(home.path()).expect("QEMU is installed");
        let vm = engine.launch(spec).await.expect("the VM starts");
        let link = Self::link(&vm).await;
        Self { vm, link }
    }

    /// A new link to a VM's agent.
    ///
    /// # Panics
    /// If the agent does not answer.
    pub async fn link(vm: &Vm) -> GuestLink {
        let linked = vm.connect(BOOT_DEADLINE).await;
        linked.unwrap_or_else(|error| panic!("no link: {error}; console: {:#?}", vm.console_tail(30)))
    }

    /// Runs a script of the guest's shell to its end.
    ///
    /// # Errors
    /// See [`GuestLink::run`].
    pub async fn shell(&self, script: &str) -> Result<ExecOutput, StreamError> {
        self.link.run(shell(script), b"", OUTPUT_BYTES).await
    }

    /// The output of a script that must succeed.
    ///
    /// # Panics
    /// If it does not.
    pub async fn text(&self, script: &str) -> String {
        let output = self.shell(script).await.expect("the script runs");
        assert_eq!(output.exited.status.shell_code(), 0, "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }
}

/// A script of the guest's shell.
pub fn shell(script: &str) -> ExecRequest {
    ExecRequest { argv: ["sh", "-c", script].map(Text::from).into(), ..ExecRequest::default() }
}

/// Runs the body of a test that boots VMs, which must end within [`VM_TEST_DEADLINE`].
///
/// # Panics
/// If it does not.
pub fn in_vm<T>(body: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    runtime.block_on(async { tokio::time::timeout(VM_TEST_DEADLINE, body).await.expect("the test hangs") })
}

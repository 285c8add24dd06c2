//! The facts that decide QEMU's arguments, and the machine identity that a snapshot needs.

use camino::Utf8Path;

use super::args::{self, Accelerator, Facts};
use super::firmware::{Firmware, Prefer};
use super::version::{self, QemuVersion};
use crate::blocking::assert_may_block;
use crate::files::{FileFacts, Witness};
use crate::host;
use crate::snapshot::MachineIdentity;
use crate::spec::VmSpec;

/// Collects the facts beside a spec.
pub(super) async fn facts(home: &Utf8Path, binary: &Utf8Path, spec: &VmSpec, accelerator: Accelerator) -> Facts {
    let kernel = kernel_release(&FileFacts::new(home), &spec.kernel);
    let kernel = version::parse_release(&kernel);
    let qemu = qemu_version(home, binary).await;
    // Only under TCG was a gain measured. Under KVM the BIOS takes hardly any time.
    let prefer = if accelerator == Accelerator::Tcg { Prefer::Small } else { Prefer::Bios };
    let firmware = Firmware::find(home, binary, prefer).await;
    Facts { accelerator, firmware, qemu, kernel }
}

/// QEMU's version. It takes a start of QEMU to find out, so it is remembered.
pub(super) async fn qemu_version(home: &Utf8Path, binary: &Utf8Path) -> Option<QemuVersion> {
    const NAME: &str = "qemu-version";
    let memory = FileFacts::new(home);
    if let Ok(Some(known)) = memory.recall(binary, NAME)
        && let Ok(version) = serde_json::from_str(&known)
    {
        return version;
    }
    let witness = Witness::of(binary);
    let version = version::qemu_version(binary).await.unwrap_or_else(|error| {
        tracing::warn!(%binary, %error, "failed to learn QEMU's version");
        None
    });
    if let (Ok(witness), Some(_)) = (witness, version) {
        let value = serde_json::to_string(&version).expect("two numbers are JSON");
        memory.remember(binary, NAME, witness, &value);
    }
    version
}

/// The part of the facts that a restored VM needs to be the same.
pub(super) fn identity(home: &Utf8Path, spec: &VmSpec, facts: &Facts) -> std::io::Result<MachineIdentity> {
    assert_may_block();
    let (acceleration, cpu) = match facts.accelerator {
        Accelerator::Tcg => ("tcg", args::cpu(facts).to_owned()),
        Accelerator::Kvm | Accelerator::KvmWithoutArchCapabilities => {
            ("kvm", format!("{} ({})", args::cpu(facts), host::cpu_identity()))
        }
    };
    let memory = FileFacts::new(home);
    Ok(MachineIdentity {
        vmm: facts.qemu.map_or_else(|| "QEMU".into(), |version| format!("QEMU {version}")),
        acceleration: acceleration.into(),
        cpu,
        machine: args::MACHINE.into(),
        firmware: facts.firmware.identity.clone(),
        kernel: memory.digest(&spec.kernel)?,
        kernel_release: kernel_release(&memory, &spec.kernel),
    })
}

/// The release in a kernel's file. Empty if it has none.
fn kernel_release(memory: &FileFacts, kernel: &Utf8Path) -> String {
    let read = || version::kernel_release(kernel).map(Option::unwrap_or_default);
    memory.text(kernel, "kernel-release", read).unwrap_or_else(|error| {
        tracing::warn!(%error, "failed to read the kernel's version");
        String::new()
    })
}

//! The state of KVM on this host. On some hosts `/dev/kvm` opens, but an ordinary Linux guest never boots, so opening
//! it proves little. A probe guest does: see `drivers/qemu/kvm_probe.rs`.

use std::io;

use serde::{Deserialize, Serialize};

/// The device.
const KVM_DEVICE: &str = "/dev/kvm";

/// What is known about KVM on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum KvmState {
    /// `/dev/kvm` does not exist.
    Missing,
    /// This user may not open it.
    Denied,
    /// It can't be opened for another reason.
    Unusable {
        /// The error.
        reason: String,
    },
    /// It opens, but no guest was booted with it yet.
    Opens,
    /// It opens, but a probe guest did not boot with it.
    Lies {
        /// How the probe ended.
        reason: String,
    },
    /// A probe guest booted with it.
    Works,
}

impl KvmState {
    /// Whether a guest has booted with it.
    pub fn works(&self) -> bool {
        matches!(self, Self::Works)
    }

    /// The state as text for users.
    pub fn reason(&self) -> String {
        match self {
            Self::Missing => format!("`{KVM_DEVICE}` does not exist"),
            Self::Denied => format!("this user may not open `{KVM_DEVICE}`"),
            Self::Unusable { reason } => format!("`{KVM_DEVICE}` does not open: {reason}"),
            Self::Opens => format!("`{KVM_DEVICE}` opens, no guest was tried yet"),
            Self::Lies { reason } => format!("`{KVM_DEVICE}` opens, but a probe guest did not start: {reason}"),
            Self::Works => "a probe guest started".into(),
        }
    }

    /// What the user can do about it. Empty if there is nothing to do.
    pub fn hint(&self) -> String {
        match self {
            Self::Missing => "modprobe kvm_intel || modprobe kvm_amd (in a VM: enable nested virtualisation)".into(),
            Self::Denied => "usermod -aG kvm \"$USER\", then log in again".into(),
            Self::Unusable { .. } => "use TCG: --accel tcg, or auto".into(),
            Self::Lies { .. } => "use TCG: --accel tcg, or auto; kiln doctor --probe tries KVM again".into(),
            Self::Opens | Self::Works => String::new(),
        }
    }
}

/// Opens the device like a VMM does.
///
/// # Errors
/// The state: why it does not open.
pub fn open_kvm() -> Result<(), KvmState> {
    match fs_err::OpenOptions::new().read(true).write(true).open(KVM_DEVICE) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::NotFound => KvmState::Missing,
            io::ErrorKind::PermissionDenied => KvmState::Denied,
            _ => KvmState::Unusable { reason: error.to_string() },
        }),
    }
}

//! Whether `/dev/kvm` opens, and what else is known of it. On some hosts it opens and no ordinary Linux ever starts.

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
    /// It opens, but no guest was tried yet.
    Opens,
    /// It opens, but a probe guest did not start.
    Lies {
        /// How the probe ended.
        reason: String,
    },
    /// A probe guest started.
    Works,
}

impl KvmState {
    /// Whether guests run.
    pub fn works(&self) -> bool {
        matches!(self, Self::Works)
    }

    /// The state in words.
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

    /// What the user can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Missing => "modprobe kvm_intel || modprobe kvm_amd (in a VM: turn on nested virtualisation)".into(),
            Self::Denied => "usermod -aG kvm \"$USER\", then log in again".into(),
            Self::Unusable { .. } => "use TCG: --accel tcg, or auto".into(),
            Self::Lies { .. } => "use TCG: --accel tcg, or auto; kiln doctor --probe tries KVM again".into(),
            Self::Opens | Self::Works => String::new(),
        }
    }
}

/// Opens the device, as a VMM would.
///
/// # Errors
/// Why it does not open.
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

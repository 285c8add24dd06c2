//! What runs a guest's instructions: KVM or TCG, as requested and as decided.

use serde::{Deserialize, Serialize};

/// What is to run a guest's instructions, as requested.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccelerationRequest {
    /// KVM if a probe guest has booted with it on this host, otherwise TCG.
    #[default]
    Auto,
    /// KVM. If it does not work on this host, the launch fails.
    Kvm,
    /// QEMU's translation in user space: works on every host, slow for CPU-bound guests.
    Tcg,
}

/// What runs a guest's instructions, as decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Acceleration {
    /// The host's CPU, with KVM.
    Kvm,
    /// QEMU's translation in user space.
    Tcg,
    /// The guest is a process of this host, not a VM.
    Native,
}

impl From<Acceleration> for AccelerationRequest {
    fn from(acceleration: Acceleration) -> Self {
        match acceleration {
            Acceleration::Kvm => Self::Kvm,
            Acceleration::Tcg => Self::Tcg,
            Acceleration::Native => Self::Auto,
        }
    }
}

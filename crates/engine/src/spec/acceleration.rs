//! What runs a guest's instructions: as it is asked for, and once it is decided.

use serde::{Deserialize, Serialize};

/// What to run a guest's instructions with, as the user asked for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccelerationRequest {
    /// KVM where a probe guest has shown that it runs Linux, TCG elsewhere.
    #[default]
    Auto,
    /// The host's CPU, or an error.
    Kvm,
    /// Translation in user space: slow for CPU-bound guests, works everywhere.
    Tcg,
}

/// What runs a guest's instructions, once that is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Acceleration {
    /// The host's CPU.
    Kvm,
    /// Translation in user space.
    Tcg,
    /// There is no VM: the guest is a process of this host.
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

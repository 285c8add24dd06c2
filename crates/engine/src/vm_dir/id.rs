//! Ids of VMs.

use crate::hex_id::{hex_id, random_hex};

/// Hex digits of an id.
const DIGITS: usize = 12;

hex_id! {
    /// The id of a VM on this host: 12 hex digits.
    pub VmId of DIGITS digits,
    /// A text that is not a VM id.
    NoVmId: "VM id"
}

impl VmId {
    /// A new random id.
    pub fn random() -> Self {
        Self(random_hex::<{ DIGITS / 2 }>())
    }
}

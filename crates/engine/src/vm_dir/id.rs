//! Names of VMs.

use crate::hex_id::{hex_id, random_hex};

/// Hex digits of an id.
const DIGITS: usize = 12;

hex_id! {
    /// Names a VM on this host: 12 hex digits.
    pub VmId of DIGITS digits,
    /// Text that is not a VM id.
    NoVmId: "VM id"
}

impl VmId {
    /// A new id, unlike any other.
    pub fn random() -> Self {
        Self(random_hex::<{ DIGITS / 2 }>())
    }
}

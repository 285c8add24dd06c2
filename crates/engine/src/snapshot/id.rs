//! Ids of snapshots.

use crate::hex_id::{hex_id, random_hex};

/// Hex digits of an id.
const DIGITS: usize = 16;

hex_id! {
    /// The id of a snapshot on this host: 16 hex digits, never reused.
    pub SnapshotId of DIGITS digits,
    /// Text that is not a snapshot id.
    NoSnapshotId: "snapshot id"
}

impl SnapshotId {
    /// A new random id.
    pub fn random() -> Self {
        Self(random_hex::<{ DIGITS / 2 }>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_are_ids() {
        assert_ne!(SnapshotId::random(), SnapshotId::random());
        let id = SnapshotId::random();
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        for wrong in ["", "..", "0123456789abcde", "0123456789ABCDEF", "0123456789abcde/", "0123456789abcdef0"] {
            assert!(wrong.parse::<SnapshotId>().is_err(), "{wrong}");
        }
    }
}

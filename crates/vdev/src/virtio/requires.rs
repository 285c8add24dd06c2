//! Which features require others: "The device MUST NOT offer a feature which requires another feature which was not offered",
//! and the driver must not accept one ("Feature Bits" in the VIRTIO specification).
//!
//! The tables are those of each kind's "Feature bit requirements", without what needs a control queue. A network
//! card's control queue is the VMM's own in most stacks: QEMU adds `CTRL_VQ` to what its backend offers, and never
//! sends the backend that the guest has accepted it. So MQ without `CTRL_VQ` is what a correct backend offers and a
//! correct frontend accepts; [`without_control_queue`] has these apart.

use std::fmt;

use super::DeviceKind;
use super::feature::{self, FeatureName, blk, can, crypto, gpu, net};

/// A feature, and those of which it requires one.
#[derive(Debug, Clone, Copy)]
struct Requirement {
    feature: u64,
    any_of: u64,
    section: &'static str,
    /// Whether it binds what a driver accepts as well, and not only what a device offers.
    binds_driver: bool,
}

/// A feature that is there without what it requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unmet {
    kind: DeviceKind,
    /// The feature's bit.
    pub feature: u64,
    /// The features of which it requires one.
    pub any_of: u64,
    /// The place of the requirement in the specification.
    pub section: &'static str,
}

/// `HOST_ECN without HOST_TSO4 or HOST_TSO6`.
impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = |bits| {
            let names = feature::names(Some(self.kind), bits);
            names.iter().map(FeatureName::to_string).collect::<Vec<_>>().join(" or ")
        };
        write!(f, "{} without {}", words(self.feature), words(self.any_of))
    }
}

/// What a device offers without what it requires.
pub(crate) fn unmet_by_offer(kind: DeviceKind, offered: u64) -> Vec<Unmet> {
    unmet(kind, offered, requirements(kind))
}

/// What a driver accepts without what it requires.
pub(crate) fn unmet_by_driver(kind: DeviceKind, accepted: u64) -> Vec<Unmet> {
    let mut all = unmet_by_offer(kind, accepted);
    all.retain(|one| requirements(kind).iter().any(|row| row.feature == one.feature && row.binds_driver));
    all
}

/// What a device offers that is done by a control queue, which it does not offer. The VMM may have the queue.
pub(crate) fn without_control_queue(kind: DeviceKind, offered: u64) -> Vec<Unmet> {
    if kind == DeviceKind::Net { unmet(kind, offered, NET_CONTROL) } else { Vec::new() }
}

fn unmet(kind: DeviceKind, bits: u64, rows: &[Requirement]) -> Vec<Unmet> {
    let broken = rows.iter().filter(|row| bits & row.feature != 0 && bits & row.any_of == 0);
    broken.map(|row| Unmet { kind, feature: row.feature, any_of: row.any_of, section: row.section }).collect()
}

const fn row(feature: u64, any_of: u64, section: &'static str) -> Requirement {
    Requirement { feature, any_of, section, binds_driver: true }
}

const fn requirements(kind: DeviceKind) -> &'static [Requirement] {
    match kind {
        DeviceKind::Net => NET,
        DeviceKind::Blk => BLK,
        DeviceKind::Gpu => GPU,
        DeviceKind::Crypto => CRYPTO,
        DeviceKind::Can => CAN,
        _ => &[],
    }
}

const OF_NET: &str = "VIRTIO 1.2, 5.1.3.1 Feature bit requirements";
const OF_CRYPTO: &str = "VIRTIO 1.2, 5.9.3.1 Feature bit requirements";

const NET: &[Requirement] = &[
    row(net::GUEST_TSO4, net::GUEST_CSUM, OF_NET),
    row(net::GUEST_TSO6, net::GUEST_CSUM, OF_NET),
    row(net::GUEST_ECN, net::GUEST_TSO4 | net::GUEST_TSO6, OF_NET),
    row(net::GUEST_UFO, net::GUEST_CSUM, OF_NET),
    row(net::GUEST_USO4, net::GUEST_CSUM, OF_NET),
    row(net::GUEST_USO6, net::GUEST_CSUM, OF_NET),
    row(net::HOST_TSO4, net::CSUM, OF_NET),
    row(net::HOST_TSO6, net::CSUM, OF_NET),
    row(net::HOST_ECN, net::HOST_TSO4 | net::HOST_TSO6, OF_NET),
    row(net::HOST_UFO, net::CSUM, OF_NET),
    row(net::HOST_USO, net::CSUM, OF_NET),
    row(net::RSC_EXT, net::HOST_TSO4 | net::HOST_TSO6, OF_NET),
    row(net::HASH_TUNNEL, net::RSS | net::HASH_REPORT, OF_NET),
];

const NET_CONTROL: &[Requirement] = &[
    row(net::CTRL_RX, net::CTRL_VQ, OF_NET),
    row(net::CTRL_VLAN, net::CTRL_VQ, OF_NET),
    row(net::GUEST_ANNOUNCE, net::CTRL_VQ, OF_NET),
    row(net::MQ, net::CTRL_VQ, OF_NET),
    row(net::CTRL_MAC_ADDR, net::CTRL_VQ, OF_NET),
    row(net::NOTF_COAL, net::CTRL_VQ, OF_NET),
    row(net::RSS, net::CTRL_VQ, OF_NET),
    row(net::VQ_NOTF_COAL, net::CTRL_VQ, OF_NET),
    row(net::HASH_TUNNEL, net::CTRL_VQ, OF_NET),
];

/// "Devices SHOULD always offer VIRTIO_BLK_F_FLUSH, and MUST offer it if they offer VIRTIO_BLK_F_CONFIG_WCE." A driver may
/// accept CONFIG_WCE alone; `writeback` begins at 0 for it.
const BLK: &[Requirement] = &[Requirement {
    feature: blk::CONFIG_WCE,
    any_of: blk::FLUSH,
    section: "VIRTIO 1.2, 5.2.5.2 Device Requirements: Device Initialization",
    binds_driver: false,
}];

const GPU: &[Requirement] = &[row(gpu::CONTEXT_INIT, gpu::VIRGL, "VIRTIO 1.2, 5.7.3 Feature bits")];

const CRYPTO: &[Requirement] = &[
    row(crypto::CIPHER_STATELESS_MODE, crypto::REVISION_1, OF_CRYPTO),
    row(crypto::HASH_STATELESS_MODE, crypto::REVISION_1, OF_CRYPTO),
    row(crypto::MAC_STATELESS_MODE, crypto::REVISION_1, OF_CRYPTO),
    row(crypto::AEAD_STATELESS_MODE, crypto::REVISION_1, OF_CRYPTO),
    row(crypto::AKCIPHER_STATELESS_MODE, crypto::REVISION_1, OF_CRYPTO),
];

const CAN: &[Requirement] =
    &[row(can::RTR_FRAMES, can::CAN_CLASSIC, "VIRTIO 1.4, CAN Device, Feature bit requirements")];

#[cfg(test)]
mod tests {
    use super::*;

    fn words(unmet: &[Unmet]) -> Vec<String> {
        unmet.iter().map(Unmet::to_string).collect()
    }

    #[test]
    fn a_feature_without_the_one_it_requires_is_named_with_it() {
        let words = |bits| words(&unmet_by_offer(DeviceKind::Net, bits));
        assert_eq!(words(net::HOST_ECN), ["HOST_ECN without HOST_TSO4 or HOST_TSO6"]);
        assert_eq!(words(net::HOST_ECN | net::HOST_TSO6), ["HOST_TSO6 without CSUM"]);
        assert_eq!(words(net::HOST_ECN | net::HOST_TSO6 | net::CSUM), Vec::<String>::new());
        assert_eq!(
            words(net::GUEST_ECN | net::GUEST_UFO | net::CSUM),
            ["GUEST_ECN without GUEST_TSO4 or GUEST_TSO6", "GUEST_UFO without GUEST_CSUM"]
        );
    }

    #[test]
    fn a_control_queue_may_be_the_vmms_own() {
        assert_eq!(unmet_by_offer(DeviceKind::Net, net::MQ | net::GUEST_ANNOUNCE), []);
        let apart = without_control_queue(DeviceKind::Net, net::MQ | net::GUEST_ANNOUNCE);
        assert_eq!(words(&apart), ["GUEST_ANNOUNCE without CTRL_VQ", "MQ without CTRL_VQ"]);
        assert_eq!(without_control_queue(DeviceKind::Net, net::MQ | net::CTRL_VQ), []);
    }

    #[test]
    fn a_bit_means_what_its_kind_says() {
        assert_eq!(words(&unmet_by_offer(DeviceKind::Blk, blk::CONFIG_WCE)), ["CONFIG_WCE without FLUSH"]);
        assert_eq!(unmet_by_driver(DeviceKind::Blk, blk::CONFIG_WCE), []);
        assert_eq!(unmet_by_driver(DeviceKind::Net, net::GUEST_TSO4).len(), 1);
        assert_eq!(words(&unmet_by_offer(DeviceKind::Crypto, 1 << 1)), ["CIPHER_STATELESS_MODE without REVISION_1"]);
        assert_eq!(words(&unmet_by_offer(DeviceKind::Can, can::RTR_FRAMES)), ["RTR_FRAMES without CAN_CLASSIC"]);
        assert_eq!(words(&unmet_by_offer(DeviceKind::Gpu, gpu::CONTEXT_INIT)), ["CONTEXT_INIT without VIRGL"]);
    }

    #[test]
    fn all_features_of_a_kind_miss_nothing() {
        for kind in DeviceKind::ALL {
            assert_eq!(unmet_by_offer(*kind, feature::known(*kind)), []);
            assert_eq!(without_control_queue(*kind, feature::known(*kind)), []);
        }
    }
}

//! Feature bits by name ("Reserved Feature Bits" and each kind's "Feature bits" in the VIRTIO specification).
//!
//! ```
//! use kiln_vdev::virtio::{DeviceKind, feature};
//!
//! let bits = feature::VERSION_1 | feature::blk::FLUSH | 1 << 57;
//! let names: Vec<_> = feature::names(Some(DeviceKind::Blk), bits).iter().map(ToString::to_string).collect();
//! assert_eq!(names, ["FLUSH", "VERSION_1", "bit 57"]);
//! ```

use std::fmt;

use super::DeviceKind;

/// Names with their bits, in the order of bits.
type Names = &'static [(&'static str, u32)];

macro_rules! bits {
    ($prefix:literal, $($(#[doc = $doc:literal])* $name:ident = $bit:literal;)*) => {
        $(
            #[doc = concat!("`", $prefix, stringify!($name), "`")]
            $(#[doc = $doc])*
            pub const $name: u64 = 1 << $bit;
        )*

        /// Their names and bits, in the order of bits.
        pub const NAMES: &[(&str, u32)] = &[$((stringify!($name), $bit)),*];
    };
}

macro_rules! devices {
    ($($kind:ident $module:ident $prefix:literal { $($body:tt)* })*) => {
        $(
            #[doc = concat!("What only a `", stringify!($module), "` device has.")]
            pub mod $module {
                bits! { $prefix, $($body)* }
            }
        )*

        /// The bits that only devices of this kind have.
        const fn of_kind(kind: DeviceKind) -> Names {
            match kind {
                $(DeviceKind::$kind => $module::NAMES,)*
                DeviceKind::Rng | DeviceKind::Input => &[],
            }
        }
    };
}

bits! { "VIRTIO_F_",
    /// : legacy; the device notifies when a ring runs empty, even if the driver has disabled that.
    NOTIFY_ON_EMPTY = 24;
    /// : vhost's own (`VHOST_F_LOG_ALL`); writes to guest memory are logged.
    LOG_ALL = 26;
    /// : legacy; descriptors may divide a request anywhere.
    ANY_LAYOUT = 27;
    /// : a descriptor may point at a table of descriptors (`VIRTIO_RING_F_INDIRECT_DESC`).
    RING_INDIRECT_DESC = 28;
    /// : either side sets the index from which on it is to be notified (`VIRTIO_RING_F_EVENT_IDX`).
    RING_EVENT_IDX = 29;
    /// : vhost-user's own (`VHOST_USER_F_PROTOCOL_FEATURES`); there are protocol features.
    PROTOCOL_FEATURES = 30;
    /// : the device is no legacy device.
    VERSION_1 = 32;
    /// : addresses may be translated.
    ACCESS_PLATFORM = 33;
    /// : rings may be packed.
    RING_PACKED = 34;
    /// : buffers are used in the order in which they were made available.
    IN_ORDER = 35;
    /// : memory is ordered as the platform orders it.
    ORDER_PLATFORM = 36;
    /// : single root I/O virtualisation.
    SR_IOV = 37;
    /// : a notification has the ring's position.
    NOTIFICATION_DATA = 38;
    /// : a notification carries a number from the configuration.
    NOTIF_CONFIG_DATA = 39;
    /// : a queue can be reset alone.
    RING_RESET = 40;
    /// : there are administration queues.
    ADMIN_VQ = 41;
}

devices! {
    Net net "VIRTIO_NET_F_" {
        CSUM = 0; GUEST_CSUM = 1; CTRL_GUEST_OFFLOADS = 2; MTU = 3; MAC = 5; GSO = 6; GUEST_TSO4 = 7; GUEST_TSO6 = 8;
        GUEST_ECN = 9; GUEST_UFO = 10; HOST_TSO4 = 11; HOST_TSO6 = 12; HOST_ECN = 13; HOST_UFO = 14; MRG_RXBUF = 15;
        STATUS = 16; CTRL_VQ = 17; CTRL_RX = 18; CTRL_VLAN = 19; CTRL_RX_EXTRA = 20; GUEST_ANNOUNCE = 21; MQ = 22;
        CTRL_MAC_ADDR = 23; DEVICE_STATS = 50; HASH_TUNNEL = 51; VQ_NOTF_COAL = 52; NOTF_COAL = 53; GUEST_USO4 = 54;
        GUEST_USO6 = 55; HOST_USO = 56; HASH_REPORT = 57; GUEST_HDRLEN = 59; RSS = 60; RSC_EXT = 61; STANDBY = 62;
        SPEED_DUPLEX = 63;
    }
    Blk blk "VIRTIO_BLK_F_" {
        BARRIER = 0; SIZE_MAX = 1; SEG_MAX = 2; GEOMETRY = 4; RO = 5; BLK_SIZE = 6; SCSI = 7; FLUSH = 9; TOPOLOGY = 10;
        CONFIG_WCE = 11; MQ = 12; DISCARD = 13; WRITE_ZEROES = 14; LIFETIME = 15; SECURE_ERASE = 16; ZONED = 17;
    }
    Console console "VIRTIO_CONSOLE_F_" { SIZE = 0; MULTIPORT = 1; EMERG_WRITE = 2; }
    Balloon balloon "VIRTIO_BALLOON_F_" {
        MUST_TELL_HOST = 0; STATS_VQ = 1; DEFLATE_ON_OOM = 2; FREE_PAGE_HINT = 3; PAGE_POISON = 4; REPORTING = 5;
    }
    Scsi scsi "VIRTIO_SCSI_F_" { INOUT = 0; HOTPLUG = 1; CHANGE = 2; T10_PI = 3; }
    P9 p9 "VIRTIO_9P_F_" { MOUNT_TAG = 0; }
    Gpu gpu "VIRTIO_GPU_F_" { VIRGL = 0; EDID = 1; RESOURCE_UUID = 2; RESOURCE_BLOB = 3; CONTEXT_INIT = 4; }
    Rtc rtc "VIRTIO_RTC_F_" { ALARM = 0; }
    Vsock vsock "VIRTIO_VSOCK_F_" { STREAM = 0; SEQPACKET = 1; NO_IMPLIED_STREAM = 2; }
    Crypto crypto "VIRTIO_CRYPTO_F_" {
        REVISION_1 = 0; CIPHER_STATELESS_MODE = 1; HASH_STATELESS_MODE = 2; MAC_STATELESS_MODE = 3;
        AEAD_STATELESS_MODE = 4; AKCIPHER_STATELESS_MODE = 5;
    }
    Iommu iommu "VIRTIO_IOMMU_F_" {
        INPUT_RANGE = 0; DOMAIN_RANGE = 1; MAP_UNMAP = 2; BYPASS = 3; PROBE = 4; MMIO = 5; BYPASS_CONFIG = 6;
    }
    Mem mem "VIRTIO_MEM_F_" { ACPI_PXM = 0; UNPLUGGED_INACCESSIBLE = 1; PERSISTENT_SUSPEND = 2; }
    Sound sound "VIRTIO_SND_F_" { CTLS = 0; }
    Fs fs "VIRTIO_FS_F_" { NOTIFICATION = 0; }
    Pmem pmem "VIRTIO_PMEM_F_" { SHMEM_REGION = 0; }
    Rpmb rpmb "VIRTIO_RPMB_F_" {}
    Scmi scmi "VIRTIO_SCMI_F_" { P2A_CHANNELS = 0; SHARED_MEMORY = 1; }
    I2c i2c "VIRTIO_I2C_F_" { ZERO_LENGTH_REQUEST = 0; }
    Can can "VIRTIO_CAN_F_" { CAN_CLASSIC = 0; CAN_FD = 1; RTR_FRAMES = 2; LATE_TX_ACK = 3; }
    Bt bt "VIRTIO_BT_F_" { VND_HCI = 0; MSFT_EXT = 1; AOSP_EXT = 2; CONFIG_V2 = 3; }
    Gpio gpio "VIRTIO_GPIO_F_" { IRQ = 0; }
    Spi spi "VIRTIO_SPI_F_" {}
    Media media "VIRTIO_MEDIA_F_" {}
}

/// The bits that a kind of device may give its own meaning; the others mean the same for all.
pub(super) const OF_KINDS: u64 = ((1 << 24) - 1) | (!0 << 50);

/// A feature bit and what it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FeatureName {
    /// The bit, 0 to 63.
    pub bit: u32,
    /// Its name without the prefix that all of its kind share, if it has one.
    pub name: Option<&'static str>,
}

/// `VERSION_1`, or `bit 57` if it has no name.
impl fmt::Display for FeatureName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            Some(name) => f.pad(name),
            None => f.pad(&format!("bit {}", self.bit)),
        }
    }
}

/// The names of these bits, in the order of bits. Without a kind, bits that differ from kind to kind have no name.
pub fn names(kind: Option<DeviceKind>, bits: u64) -> Vec<FeatureName> {
    let set = (0..u64::BITS).filter(|bit| bits >> bit & 1 == 1);
    set.map(|bit| FeatureName { bit, name: name_of(kind, bit) }).collect()
}

/// The bit with this name, in any case, with `-` or `_`; `None` if neither the kind nor all devices have it.
pub(crate) fn named(kind: Option<DeviceKind>, name: &str) -> Option<u64> {
    let wanted = name.to_ascii_uppercase().replace('-', "_");
    let mut all = kind.map_or(&[][..], of_kind).iter().chain(NAMES);
    all.find(|(known, _)| *known == wanted).map(|(_, bit)| 1 << bit)
}

/// All bits that the kind gives a meaning, those of all devices aside.
pub(super) fn known(kind: DeviceKind) -> u64 {
    of_kind(kind).iter().fold(0, |bits, (_, bit)| bits | 1 << bit)
}

fn name_of(kind: Option<DeviceKind>, bit: u32) -> Option<&'static str> {
    let mut all = kind.map_or(&[][..], of_kind).iter().chain(NAMES);
    all.find(|(_, known)| *known == bit).map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_all_devices_and_of_kinds_are_apart_and_in_order() {
        assert!(NAMES.is_sorted_by_key(|(_, bit)| *bit));
        assert!(NAMES.iter().all(|(_, bit)| OF_KINDS >> bit & 1 == 0));
        for kind in DeviceKind::ALL {
            assert!(of_kind(*kind).is_sorted_by(|(_, one), (_, next)| one < next), "{kind}");
            assert_eq!(known(*kind) & !OF_KINDS, 0, "{kind}");
        }
    }

    #[test]
    fn a_bit_means_what_its_kind_says() {
        let name = |kind, bit: u32| names(kind, 1 << bit)[0].to_string();
        assert_eq!(name(Some(DeviceKind::Blk), 9), "FLUSH");
        assert_eq!(name(Some(DeviceKind::Net), 9), "GUEST_ECN");
        assert_eq!(name(Some(DeviceKind::Net), 63), "SPEED_DUPLEX");
        assert_eq!(name(None, 9), "bit 9");
        assert_eq!(name(None, 30), "PROTOCOL_FEATURES");
        assert_eq!(names(Some(DeviceKind::Rng), u64::MAX).len(), 64);
    }

    #[test]
    fn names_lead_back_to_bits() {
        for kind in DeviceKind::ALL {
            for feature in names(Some(*kind), known(*kind) | VERSION_1) {
                let name = feature.name.expect("is known");
                assert_eq!(named(Some(*kind), &name.to_lowercase()), Some(1 << feature.bit), "{kind} {name}");
            }
        }
        assert_eq!(named(None, "ring-packed"), Some(RING_PACKED));
        assert_eq!(named(Some(DeviceKind::Blk), "MRG_RXBUF"), None);
    }
}

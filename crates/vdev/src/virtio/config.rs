//! Configuration space as fields ("Device configuration layout" of each kind in the VIRTIO specification).
//!
//! ```
//! use kiln_vdev::virtio::{DeviceKind, config};
//!
//! let fields = config::decode(DeviceKind::Blk, &131_072_u64.to_le_bytes());
//! assert_eq!(fields[0].to_string(), "capacity 131072 (64 MiB)");
//! ```
//! Numbers are little-endian, as they are in every device since VIRTIO 1.0. A device may have less than is defined:
//! fields that are not whole are left out.

use std::fmt;
use std::ops::Range;

use super::notes::note;
use super::{DeviceKind, feature};

/// How a field's bytes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shape {
    /// A number of that many bytes: 1, 2, 4 or 8.
    Number(usize),
    /// Text that ends at the first NUL or with the field.
    Text(usize),
    /// A hardware address.
    Mac,
    /// Bytes whose meaning other fields decide.
    Bytes(usize),
    /// The lowest and the highest of a range, each of that many bytes.
    Range(usize),
    /// Text whose length is a `u16` in front of it.
    CountedText,
}

/// The place of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    /// The specification's name.
    pub name: &'static str,
    /// Its first byte.
    pub offset: usize,
    /// How it is read.
    pub shape: Shape,
    /// It is valid only if one of these feature bits is negotiated; always, if the list is empty.
    pub needs: u64,
}

/// The value of a field.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FieldValue {
    /// A number.
    Number(u64),
    /// Text; what is no UTF-8 is replaced.
    Text(String),
    /// A hardware address.
    Mac([u8; 6]),
    /// Bytes.
    Bytes(Vec<u8>),
    /// The lowest and the highest.
    Range(u64, u64),
}

/// A field of a device's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Field {
    /// The specification's name.
    pub name: &'static str,
    /// Its value.
    pub value: FieldValue,
    /// The meaning of it, if the value alone does not show that.
    pub note: Option<String>,
    /// It is valid only if one of these feature bits is negotiated; always, if the list is empty.
    pub needs: u64,
}

/// The fields that are whole in these bytes, in the order of the specification.
pub fn decode(kind: DeviceKind, bytes: &[u8]) -> Vec<Field> {
    let present = layout(kind).iter().filter_map(|field| Some((field, read(field, bytes)?)));
    let decoded = present.map(|(field, value)| Field {
        name: field.name,
        note: note(kind, field.name, &value),
        needs: field.needs,
        value,
    });
    decoded.collect()
}

/// The places of a kind's fields, in the order of the specification.
pub const fn layout(kind: DeviceKind) -> &'static [Layout] {
    match kind {
        DeviceKind::Blk => BLK,
        DeviceKind::Net => NET,
        DeviceKind::Fs => FS,
        DeviceKind::Vsock => VSOCK,
        DeviceKind::Scsi => SCSI,
        DeviceKind::Gpu => GPU,
        DeviceKind::Console => CONSOLE,
        DeviceKind::Crypto => CRYPTO,
        DeviceKind::Sound => SOUND,
        DeviceKind::Iommu => IOMMU,
        DeviceKind::Balloon => BALLOON,
        DeviceKind::Input => INPUT,
        DeviceKind::Mem => MEM,
        DeviceKind::P9 => P9,
        DeviceKind::Pmem => PMEM,
        DeviceKind::Rpmb => RPMB,
        DeviceKind::Can => CAN,
        DeviceKind::Bt => BT,
        DeviceKind::Gpio => GPIO,
        DeviceKind::Spi => SPI,
        DeviceKind::Media => MEDIA,
        DeviceKind::Rng | DeviceKind::Rtc | DeviceKind::Scmi | DeviceKind::I2c => &[],
    }
}

impl Shape {
    /// How many bytes it takes at least.
    const fn bytes(self) -> usize {
        match self {
            Self::Number(bytes) | Self::Text(bytes) | Self::Bytes(bytes) => bytes,
            Self::Mac => 6,
            Self::Range(bytes) => 2 * bytes,
            Self::CountedText => 2,
        }
    }
}

impl Layout {
    /// The bytes it takes at least.
    pub(super) const fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.shape.bytes()
    }
}

impl FieldValue {
    /// The number that it is, if it is one.
    pub(super) const fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(_) | Self::Mac(_) | Self::Bytes(_) | Self::Range(..) => None,
        }
    }
}

/// `131072`, `"myfs"`, `52:54:00:12:34:56`, `0a0b`, `0x0..=0xffff`. Text of a peer's is escaped.
impl fmt::Display for FieldValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Mac([a, b, c, d, e, g]) => write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"),
            Self::Bytes(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            Self::Range(low, high) => write!(f, "{low:#x}..={high:#x}"),
        }
    }
}

/// `capacity 131072 (64 MiB)`.
impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.value)?;
        self.note.iter().try_for_each(|note| write!(f, " ({note})"))
    }
}

fn read(field: &Layout, bytes: &[u8]) -> Option<FieldValue> {
    let found = bytes.get(field.range())?;
    Some(match field.shape {
        Shape::Number(_) => FieldValue::Number(number(found)),
        Shape::Text(_) => FieldValue::Text(text(found)),
        Shape::Mac => FieldValue::Mac(found.try_into().ok()?),
        Shape::Bytes(_) => FieldValue::Bytes(found.to_vec()),
        Shape::Range(bytes) => {
            let (low, high) = found.split_at_checked(bytes)?;
            FieldValue::Range(number(low), number(high))
        }
        Shape::CountedText => {
            let count = usize::try_from(number(found)).ok()?;
            FieldValue::Text(text(bytes.get(field.range().end..)?.get(..count)?))
        }
    })
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

const fn field(name: &'static str, offset: usize, shape: Shape) -> Layout {
    Layout { name, offset, shape, needs: 0 }
}

impl Layout {
    /// The same field, with a meaning only if one of these is negotiated.
    const fn with(self, needs: u64) -> Self {
        Self { needs, ..self }
    }
}

const U8: Shape = Shape::Number(1);
const U16: Shape = Shape::Number(2);
const U32: Shape = Shape::Number(4);
const U64: Shape = Shape::Number(8);

const BLK: &[Layout] = {
    use feature::blk::{
        BLK_SIZE, CONFIG_WCE, DISCARD, GEOMETRY, MQ, SECURE_ERASE, SEG_MAX, SIZE_MAX, TOPOLOGY, WRITE_ZEROES, ZONED,
    };
    &[
        field("capacity", 0, U64),
        field("size_max", 8, U32).with(SIZE_MAX),
        field("seg_max", 12, U32).with(SEG_MAX),
        field("geometry.cylinders", 16, U16).with(GEOMETRY),
        field("geometry.heads", 18, U8).with(GEOMETRY),
        field("geometry.sectors", 19, U8).with(GEOMETRY),
        field("blk_size", 20, U32).with(BLK_SIZE),
        field("topology.physical_block_exp", 24, U8).with(TOPOLOGY),
        field("topology.alignment_offset", 25, U8).with(TOPOLOGY),
        field("topology.min_io_size", 26, U16).with(TOPOLOGY),
        field("topology.opt_io_size", 28, U32).with(TOPOLOGY),
        field("writeback", 32, U8).with(CONFIG_WCE),
        field("num_queues", 34, U16).with(MQ),
        field("max_discard_sectors", 36, U32).with(DISCARD),
        field("max_discard_seg", 40, U32).with(DISCARD),
        field("discard_sector_alignment", 44, U32).with(DISCARD),
        field("max_write_zeroes_sectors", 48, U32).with(WRITE_ZEROES),
        field("max_write_zeroes_seg", 52, U32).with(WRITE_ZEROES),
        field("write_zeroes_may_unmap", 56, U8).with(WRITE_ZEROES),
        field("max_secure_erase_sectors", 60, U32).with(SECURE_ERASE),
        field("max_secure_erase_seg", 64, U32).with(SECURE_ERASE),
        field("secure_erase_sector_alignment", 68, U32).with(SECURE_ERASE),
        field("zoned.zone_sectors", 72, U32).with(ZONED),
        field("zoned.max_open_zones", 76, U32).with(ZONED),
        field("zoned.max_active_zones", 80, U32).with(ZONED),
        field("zoned.max_append_sectors", 84, U32).with(ZONED),
        field("zoned.write_granularity", 88, U32).with(ZONED),
        field("zoned.model", 92, U8).with(ZONED),
    ]
};

const NET: &[Layout] = {
    use feature::net::{HASH_REPORT, HASH_TUNNEL, MAC, MQ, MTU, RSS, SPEED_DUPLEX, STATUS};
    &[
        field("mac", 0, Shape::Mac).with(MAC),
        field("status", 6, U16).with(STATUS),
        field("max_virtqueue_pairs", 8, U16).with(MQ | RSS),
        field("mtu", 10, U16).with(MTU),
        field("speed", 12, U32).with(SPEED_DUPLEX),
        field("duplex", 16, U8).with(SPEED_DUPLEX),
        field("rss_max_key_size", 17, U8).with(RSS | HASH_REPORT),
        field("rss_max_indirection_table_length", 18, U16).with(RSS),
        field("supported_hash_types", 20, U32).with(RSS | HASH_REPORT),
        field("supported_tunnel_types", 24, U32).with(HASH_TUNNEL),
    ]
};

const FS: &[Layout] = &[
    field("tag", 0, Shape::Text(36)),
    field("num_request_queues", 36, U32),
    field("notify_buf_size", 40, U32).with(feature::fs::NOTIFICATION),
];

const VSOCK: &[Layout] = &[field("guest_cid", 0, U64)];

const SCSI: &[Layout] = &[
    field("num_queues", 0, U32),
    field("seg_max", 4, U32),
    field("max_sectors", 8, U32),
    field("cmd_per_lun", 12, U32),
    field("event_info_size", 16, U32),
    field("sense_size", 20, U32),
    field("cdb_size", 24, U32),
    field("max_channel", 28, U16),
    field("max_target", 30, U16),
    field("max_lun", 32, U32),
];

const GPU: &[Layout] = &[
    field("events_read", 0, U32),
    field("events_clear", 4, U32),
    field("num_scanouts", 8, U32),
    field("num_capsets", 12, U32),
];

const CONSOLE: &[Layout] = {
    use feature::console::{EMERG_WRITE, MULTIPORT, SIZE};
    &[
        field("cols", 0, U16).with(SIZE),
        field("rows", 2, U16).with(SIZE),
        field("max_nr_ports", 4, U32).with(MULTIPORT),
        field("emerg_wr", 8, U32).with(EMERG_WRITE),
    ]
};

const CRYPTO: &[Layout] = &[
    field("status", 0, U32),
    field("max_dataqueues", 4, U32),
    field("crypto_services", 8, U32),
    field("cipher_algo_l", 12, U32),
    field("cipher_algo_h", 16, U32),
    field("hash_algo", 20, U32),
    field("mac_algo_l", 24, U32),
    field("mac_algo_h", 28, U32),
    field("aead_algo", 32, U32),
    field("max_cipher_key_len", 36, U32),
    field("max_auth_key_len", 40, U32),
    field("akcipher_algo", 44, U32),
    field("max_size", 48, U64),
];

const SOUND: &[Layout] = &[
    field("jacks", 0, U32),
    field("streams", 4, U32),
    field("chmaps", 8, U32),
    field("controls", 12, U32).with(feature::sound::CTLS),
];

const IOMMU: &[Layout] = {
    use feature::iommu::{BYPASS_CONFIG, DOMAIN_RANGE, INPUT_RANGE, PROBE};
    &[
        field("page_size_mask", 0, U64),
        field("input_range", 8, Shape::Range(8)).with(INPUT_RANGE),
        field("domain_range", 24, Shape::Range(4)).with(DOMAIN_RANGE),
        field("probe_size", 32, U32).with(PROBE),
        field("bypass", 36, U8).with(BYPASS_CONFIG),
    ]
};

const BALLOON: &[Layout] = {
    use feature::balloon::{FREE_PAGE_HINT, PAGE_POISON};
    &[
        field("num_pages", 0, U32),
        field("actual", 4, U32),
        field("free_page_hint_cmd_id", 8, U32).with(FREE_PAGE_HINT),
        field("poison_val", 12, U32).with(PAGE_POISON),
    ]
};

const INPUT: &[Layout] =
    &[field("select", 0, U8), field("subsel", 1, U8), field("size", 2, U8), field("data", 8, Shape::Bytes(128))];

const MEM: &[Layout] = &[
    field("block_size", 0, U64),
    field("node_id", 8, U16).with(feature::mem::ACPI_PXM),
    field("addr", 16, U64),
    field("region_size", 24, U64),
    field("usable_region_size", 32, U64),
    field("plugged_size", 40, U64),
    field("requested_size", 48, U64),
];

const P9: &[Layout] = &[field("tag", 0, Shape::CountedText).with(feature::p9::MOUNT_TAG)];

const PMEM: &[Layout] = &[field("start", 0, U64), field("size", 8, U64)];

const RPMB: &[Layout] = &[field("capacity", 0, U8), field("max_wr_cnt", 1, U8), field("max_rd_cnt", 2, U8)];

const CAN: &[Layout] = &[field("status", 0, U16)];

/// Version 2 of the layout, in which `vendor` is aligned; its bytes do not differ from the version before.
const BT: &[Layout] = {
    use feature::bt::{CONFIG_V2, MSFT_EXT};
    &[
        field("type", 0, U8),
        field("alignment", 1, U8).with(CONFIG_V2),
        field("vendor", 2, U16).with(CONFIG_V2),
        field("msft_opcode", 4, U16).with(CONFIG_V2 | MSFT_EXT),
    ]
};

const GPIO: &[Layout] = &[field("ngpio", 0, U16), field("gpio_names_size", 4, U32)];

const SPI: &[Layout] = &[
    field("cs_max_number", 0, U8),
    field("cs_change_supported", 1, U8),
    field("tx_nbits_supported", 2, U8),
    field("rx_nbits_supported", 3, U8),
    field("bits_per_word_mask", 4, U32),
    field("mode_func_supported", 8, U32),
    field("max_freq_hz", 12, U32),
    field("max_word_delay_ns", 16, U32),
    field("max_cs_setup_ns", 20, U32),
    field("max_cs_hold_ns", 24, U32),
    field("max_cs_inactive_ns", 28, U32),
];

const MEDIA: &[Layout] =
    &[field("device_caps", 0, U32), field("device_type", 4, U32), field("card", 8, Shape::Text(32))];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(kind: DeviceKind, bytes: &[u8], name: &str) -> String {
        let field = decode(kind, bytes).into_iter().find(|field| field.name == name);
        field.unwrap_or_else(|| panic!("no `{name}`")).to_string()
    }

    #[test]
    fn fields_stand_in_order_and_end_where_the_kind_does() {
        for kind in DeviceKind::ALL {
            let fields = layout(*kind);
            assert!(fields.windows(2).all(|two| two[0].range().end <= two[1].offset), "{kind}");
            let end = fields.last().map_or(0, |field| field.range().end);
            // Padding at the end belongs to the size.
            assert!(kind.config_bytes() >= end && kind.config_bytes() < end + 4, "{kind}: {end}");
            assert_eq!(decode(*kind, &vec![0; kind.config_bytes()]).len(), fields.len(), "{kind}");
        }
    }

    #[test]
    fn a_disk_of_64_mib_is_read_as_qemus_storage_daemon_says_it() {
        let mut bytes = vec![0; 60];
        bytes[..8].copy_from_slice(&131_072_u64.to_le_bytes());
        bytes[12..16].copy_from_slice(&126_u32.to_le_bytes());
        bytes[20..24].copy_from_slice(&512_u32.to_le_bytes());
        bytes[32] = 1;
        bytes[34] = 4;
        assert_eq!(value(DeviceKind::Blk, &bytes, "capacity"), "capacity 131072 (64 MiB)");
        assert_eq!(value(DeviceKind::Blk, &bytes, "seg_max"), "seg_max 126");
        assert_eq!(value(DeviceKind::Blk, &bytes, "writeback"), "writeback 1 (write-back)");
        assert_eq!(value(DeviceKind::Blk, &bytes, "num_queues"), "num_queues 4");
        let fields = decode(DeviceKind::Blk, &bytes);
        assert_eq!(fields.last().map(|field| field.name), Some("write_zeroes_may_unmap"));
    }

    #[test]
    fn a_card_has_its_address_and_link() {
        let bytes = [0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0, 4, 0, 0xdc, 5, 0xff, 0xff, 0xff, 0xff, 0xff];
        let shown: Vec<_> = decode(DeviceKind::Net, &bytes).iter().map(ToString::to_string).collect();
        let wanted = [
            "mac 52:54:00:12:34:56",
            "status 1 (link up)",
            "max_virtqueue_pairs 4",
            "mtu 1500",
            "speed 4294967295 (unknown)",
            "duplex 255 (unknown)",
        ];
        assert_eq!(shown, wanted);
    }

    #[test]
    fn a_tag_ends_at_its_nul_and_what_it_holds_is_escaped() {
        let mut bytes = vec![0; 40];
        bytes[..4].copy_from_slice(b"my\x1bs");
        bytes[36] = 1;
        assert_eq!(value(DeviceKind::Fs, &bytes, "tag"), r#"tag "my\u{1b}s""#);
        assert_eq!(value(DeviceKind::Fs, &bytes, "num_request_queues"), "num_request_queues 1");
        assert_eq!(value(DeviceKind::P9, b"\x04\x00home", "tag"), r#"tag "home""#);
        assert_eq!(decode(DeviceKind::P9, b"\x05\x00home"), []);
    }

    #[test]
    fn a_short_configuration_gives_the_fields_that_are_whole() {
        assert_eq!(decode(DeviceKind::Vsock, &[3, 0, 0, 0, 0, 0, 0]), []);
        assert_eq!(value(DeviceKind::Vsock, &[3, 0, 0, 0, 0, 0, 0, 0], "guest_cid"), "guest_cid 3");
        assert_eq!(decode(DeviceKind::Scsi, &[1, 0, 0, 0, 2, 0, 0]).len(), 1);
        assert_eq!(decode(DeviceKind::Rng, &[1; 256]), []);
    }

    #[test]
    fn a_field_says_which_feature_gives_it_its_meaning() {
        let fields = decode(DeviceKind::Blk, &[0; 96]);
        let needs = |name| fields.iter().find(|field| field.name == name).map(|field| field.needs);
        assert_eq!(needs("capacity"), Some(0));
        assert_eq!(needs("num_queues"), Some(feature::blk::MQ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_and_shown(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for kind in DeviceKind::ALL {
                for field in decode(*kind, &bytes) {
                    prop_assert!(!field.to_string().chars().any(char::is_control));
                }
            }
        }

        #[test]
        fn more_bytes_never_take_a_field_away(bytes in proptest::collection::vec(any::<u8>(), 0..150), cut in 0_usize..150) {
            for kind in DeviceKind::ALL {
                let whole = decode(*kind, &bytes);
                let part = decode(*kind, &bytes[..cut.min(bytes.len())]);
                prop_assert_eq!(&whole[..part.len()], &part[..]);
            }
        }
    }
}

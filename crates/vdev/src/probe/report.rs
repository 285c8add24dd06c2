//! What a probe found, for people and programs.

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::quirks::Quirk;
use crate::protocol::ProtocolFeatures;
use crate::virtio::config::{Field, FieldValue};
use crate::virtio::{DeviceKind, config, feature};

/// What a backend is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProbeReport {
    /// The socket.
    pub socket: String,
    /// What kind of device, if it was given or can be guessed.
    pub device: Option<DeviceReport>,
    /// VIRTIO's features.
    pub features: NamedBits,
    /// Protocol features, if the backend has them at all.
    pub protocol_features: Option<NamedBits>,
    /// The number of queues (`MQ`).
    pub queues: Option<u64>,
    /// How many memory regions it takes (`CONFIGURE_MEM_SLOTS`).
    pub max_mem_slots: Option<u64>,
    /// Its status (`STATUS`).
    pub status: Option<u64>,
    /// VIRTIO shared memory regions by id, without those of size 0 (`SHMEM`).
    pub shared_memory: Vec<(u8, u64)>,
    /// Its configuration (`CONFIG`).
    pub config: Option<ConfigReport>,
    /// How it behaves if the specification leaves room, or is broken.
    pub quirks: Vec<Quirk>,
    /// Microseconds from connecting to the last answer of the handshake.
    pub handshake_us: u64,
    /// Microseconds that the fastest answer to `GET_FEATURES` took.
    pub round_trip_us: Option<u64>,
    /// Questions that it should have answered and did not.
    pub problems: Vec<String>,
}

/// The kind of device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceReport {
    /// Its name.
    pub kind: String,
    /// Whether it is a guess: vhost-user has no question for it.
    pub is_guess: bool,
    /// The evidence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A set of bits, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NamedBits {
    /// All of them.
    #[serde(serialize_with = "hexadecimal")]
    pub bits: u64,
    /// The names of those that have one, in the order of bits.
    pub names: Vec<&'static str>,
    /// The numbers of those without a name.
    pub unknown: Vec<u32>,
}

/// The configuration space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigReport {
    /// As much of it as the backend gives.
    pub bytes: Vec<u8>,
    /// Its fields, if the kind of device is known or guessed. Those that mean nothing without a feature that the
    /// backend does not offer are left out.
    pub fields: Vec<Field>,
}

impl NamedBits {
    /// VIRTIO's features.
    pub fn features(kind: Option<DeviceKind>, bits: u64) -> Self {
        let names = feature::names(kind, bits);
        Self {
            bits,
            names: names.iter().filter_map(|name| name.name).collect(),
            unknown: names.iter().filter(|name| name.name.is_none()).map(|name| name.bit).collect(),
        }
    }

    /// Protocol features.
    pub fn protocol_features(features: ProtocolFeatures) -> Self {
        let undefined = features.undefined();
        Self {
            bits: features.bits(),
            names: features.names().collect(),
            unknown: (0..u64::BITS).filter(|bit| undefined >> bit & 1 == 1).collect(),
        }
    }
}

impl ConfigReport {
    /// Decodes a configuration.
    pub fn new(kind: Option<DeviceKind>, features: u64, bytes: Vec<u8>) -> Self {
        let fields = kind.map_or_else(Vec::new, |kind| config::decode(kind, &bytes));
        let means = |field: &Field| field.needs == 0 || field.needs & features != 0;
        Self { fields: fields.into_iter().filter(means).collect(), bytes }
    }
}

impl Serialize for ConfigReport {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("size", &self.bytes.len())?;
        let hex: String = self.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        map.serialize_entry("hex", &hex)?;
        for Field { name, value, .. } in &self.fields {
            match value {
                FieldValue::Number(number) => map.serialize_entry(name, number)?,
                FieldValue::Text(text) => map.serialize_entry(name, text)?,
                FieldValue::Range(low, high) => map.serialize_entry(name, &[low, high])?,
                FieldValue::Mac(_) | FieldValue::Bytes(_) => map.serialize_entry(name, &value.to_string())?,
            }
            if let ("capacity", FieldValue::Number(sectors)) = (*name, value) {
                map.serialize_entry("capacity_bytes", &(u128::from(*sectors) * 512))?;
            }
        }
        map.end()
    }
}

/// Not every reader of JSON has whole numbers of 64 bits.
fn hexadecimal<S: Serializer>(bits: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{bits:#x}"))
}

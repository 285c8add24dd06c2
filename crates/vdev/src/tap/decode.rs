//! The content of a message, field by field, under the names of the specification.

use std::fmt;

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::entry::{Recorded, Side, TapChannel};
use crate::protocol::{
    BackendCall, BackendRequest, Config, Flags, FrontendCall, FrontendRequest, Inflight, Iotlb, Log, MemoryRegion,
    PackedBase, Payload, PayloadError, ProtocolFeatures, SharedMemoryConfig, SharedMemoryMap, VringAddress, VringArea,
    VringFile, VringState,
};
use crate::virtio::{DeviceKind, config, feature};

/// The value of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// A number.
    Number(u64),
    /// A number of bytes.
    Size(u64),
    /// An address or a set of bits; hexadecimal.
    Hex(u64),
    /// Yes or no.
    Flag(bool),
    /// Words.
    Text(String),
    /// Names of bits.
    Names(Vec<String>),
    /// Fields of their own, some times over.
    List(Vec<ShownFields>),
}

/// The fields of a message, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShownFields(pub Vec<(&'static str, Shown)>);

/// The content of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Decoded {
    /// Its fields.
    pub fields: ShownFields,
    /// Why there are no fields, if its payload is wrong.
    pub error: Option<PayloadError>,
}

/// What is known of the session that a message belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// What its device is: features and configuration are named for it.
    pub kind: Option<DeviceKind>,
    /// Whether its rings are packed: a base has both indices and both wrap counters then.
    pub packed_rings: bool,
}

/// Decodes any message of either side.
pub(super) fn decode(message: &Recorded, known: Known) -> Decoded {
    let Recorded { channel, from, request, flags, payload, .. } = message;
    let is_reply = Flags::from_bits(*flags).is_reply() || *from != channel.asker();
    let fields = match (channel, is_reply) {
        (TapChannel::Main, false) => match FrontendRequest::from_number(*request) {
            Some(request) => FrontendCall::decode(request, payload).map(|call| of_call(&call, known)),
            None => Ok(raw(payload)),
        },
        (TapChannel::Main, true) => match FrontendRequest::from_number(*request) {
            Some(request) => of_reply(request, payload, known),
            None => Ok(raw(payload)),
        },
        (TapChannel::Backend, false) => match BackendRequest::from_number(*request) {
            Some(request) => BackendCall::decode(request, payload).map(|call| of_backend_call(&call)),
            None => Ok(raw(payload)),
        },
        (TapChannel::Backend, true) => acknowledgement(payload),
    };
    match fields {
        Ok(fields) => Decoded { fields: ShownFields(fields), error: None },
        Err(error) => Decoded { fields: ShownFields(raw(payload)), error: Some(error) },
    }
}

type Fields = Vec<(&'static str, Shown)>;

fn of_call(call: &FrontendCall, known: Known) -> Fields {
    use FrontendCall as Call;
    let kind = known.kind;
    match call {
        Call::SetFeatures(message) => features(message.0, kind),
        Call::SetProtocolFeatures(message) => protocol_features(message.0),
        Call::SetMemTable(message) => {
            let regions = message.0.0.iter().map(|one| ShownFields(region(one)));
            vec![("regions", Shown::List(regions.collect()))]
        }
        Call::AddMemReg(message) => region(&message.0.0),
        Call::RemMemReg(message) => region(&message.0.0),
        Call::SetLogBase(message) => log(message.0),
        Call::SetVringNum(message) => ring(message.0, "num"),
        Call::SetVringBase(message) => base(message.0, known),
        Call::GetVringBase(message) => ring(message.0, "num"),
        Call::GetVringBaseSkipDrain(message) => ring(message.0, "num"),
        Call::SetVringEndian(message) => ring(message.0, "big_endian"),
        Call::VringKick(message) => ring(message.0, "num"),
        Call::SetVringEnable(message) => ring(message.0, "enable"),
        Call::SetVringAddr(message) => ring_address(message.0),
        Call::SetVringKick(message) => ring_file(message.0),
        Call::SetVringCall(message) => ring_file(message.0),
        Call::SetVringErr(message) => ring_file(message.0),
        Call::SendRarp(message) => {
            let [a, b, c, d, e, f, ..] = message.0.to_ne_bytes();
            vec![("mac", Shown::Text(format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")))]
        }
        Call::NetSetMtu(message) => vec![("mtu", Shown::Number(message.0))],
        Call::IotlbMsg(message) => iotlb(&message.0),
        Call::GetConfig(message) => {
            let Config { offset, flags, bytes } = &message.0;
            vec![
                ("offset", Shown::Number((*offset).into())),
                ("size", Shown::Size(bytes.len() as u64)),
                ("flags", Shown::Hex((*flags).into())),
            ]
        }
        Call::SetConfig(message) => configuration(&message.0, kind),
        Call::CreateCryptoSession(message) => raw(&message.0.0),
        Call::CloseCryptoSession(message) => vec![("session", Shown::Number(message.0))],
        Call::GetInflightFd(message) => inflight(message.0),
        Call::SetInflightFd(message) => inflight(message.0),
        Call::SetStatus(message) => status(message.0),
        Call::GetSharedObject(message) => uuid(&message.0.uuid),
        Call::SetDeviceStateFd(message) => {
            let direction = match message.0.direction {
                0 => "save".to_owned(),
                1 => "load".to_owned(),
                other => format!("{other}"),
            };
            vec![("direction", Shown::Text(direction)), ("phase", Shown::Number(message.0.phase.into()))]
        }
        Call::GetFeatures(_)
        | Call::SetOwner(_)
        | Call::ResetOwner(_)
        | Call::SetLogFd(_)
        | Call::GetProtocolFeatures(_)
        | Call::GetQueueNum(_)
        | Call::SetBackendReqFd(_)
        | Call::PostcopyAdvise(_)
        | Call::PostcopyListen(_)
        | Call::PostcopyEnd(_)
        | Call::GpuSetSocket(_)
        | Call::ResetDevice(_)
        | Call::GetMaxMemSlots(_)
        | Call::GetStatus(_)
        | Call::CheckDeviceState(_)
        | Call::GetShmemConfig(_) => Vec::new(),
    }
}

fn of_reply(request: FrontendRequest, payload: &[u8], known: Known) -> Result<Fields, PayloadError> {
    use FrontendRequest as Request;
    let kind = known.kind;
    let number = || u64::decode(payload);
    Ok(match request {
        Request::GetFeatures => features(number()?, kind),
        Request::GetProtocolFeatures => protocol_features(number()?),
        Request::GetQueueNum => vec![("queues", Shown::Number(number()?))],
        Request::GetMaxMemSlots => vec![("slots", Shown::Number(number()?))],
        Request::GetStatus => status(number()?),
        Request::GetVringBase | Request::GetVringBaseSkipDrain => base(VringState::decode(payload)?, known),
        // Errors come as an answer without a payload.
        Request::GetConfig if payload.is_empty() => vec![("refused", Shown::Flag(true))],
        Request::GetConfig => configuration(&Config::decode(payload)?, kind),
        Request::GetInflightFd => inflight(Inflight::decode(payload)?),
        Request::GetShmemConfig => {
            let SharedMemoryConfig { regions, sizes } = SharedMemoryConfig::decode(payload)?;
            let sizes =
                sizes.iter().enumerate().filter(|(_, size)| **size != 0).map(|(id, size)| {
                    ShownFields(vec![("id", Shown::Number(id as u64)), ("size", Shown::Size(*size))])
                });
            vec![("regions", Shown::Number(regions.into())), ("sizes", Shown::List(sizes.collect()))]
        }
        Request::SetDeviceStateFd => {
            let number = number()?;
            vec![("error", Shown::Number(number & 0xff)), ("no_descriptor", Shown::Flag(number & 1 << 8 != 0))]
        }
        Request::CreateCryptoSession => raw(payload),
        Request::PostcopyAdvise | Request::GetSharedObject if payload.is_empty() => Vec::new(),
        _ => acknowledgement(payload)?,
    })
}

fn of_backend_call(call: &BackendCall) -> Fields {
    use BackendCall as Call;
    match call {
        Call::IotlbMsg(message) => iotlb(&message.0),
        Call::ConfigChangeMsg(_) => Vec::new(),
        Call::VringHostNotifierMsg(message) => {
            let VringArea { ring, size, offset } = message.0;
            vec![
                ("index", Shown::Number(ring & 0xff)),
                ("no_descriptor", Shown::Flag(ring & 1 << 8 != 0)),
                ("size", Shown::Size(size)),
                ("offset", Shown::Hex(offset)),
            ]
        }
        Call::VringCall(message) => ring(message.0, "num"),
        Call::VringErr(message) => ring(message.0, "num"),
        Call::SharedObjectAdd(message) => uuid(&message.0.uuid),
        Call::SharedObjectRemove(message) => uuid(&message.0.uuid),
        Call::SharedObjectLookup(message) => uuid(&message.0.uuid),
        Call::ShmemMap(message) => shared_memory(&message.0),
        Call::ShmemUnmap(message) => shared_memory(&message.0),
    }
}

fn acknowledgement(payload: &[u8]) -> Result<Fields, PayloadError> {
    u64::decode(payload).map(|code| vec![("result", Shown::Number(code))])
}

fn features(bits: u64, kind: Option<DeviceKind>) -> Fields {
    let names = feature::names(kind, bits).iter().map(ToString::to_string).collect();
    vec![("features", Shown::Hex(bits)), ("names", Shown::Names(names))]
}

fn protocol_features(bits: u64) -> Fields {
    let features = ProtocolFeatures::from_bits(bits);
    let undefined = (0..64).filter(|bit| features.undefined() >> bit & 1 == 1).map(|bit| format!("bit {bit}"));
    let names = features.names().map(str::to_owned).chain(undefined).collect();
    vec![("features", Shown::Hex(bits)), ("names", Shown::Names(names))]
}

fn region(region: &MemoryRegion) -> Fields {
    vec![
        ("guest_address", Shown::Hex(region.guest_address)),
        ("size", Shown::Size(region.size)),
        ("user_address", Shown::Hex(region.user_address)),
        ("mmap_offset", Shown::Hex(region.mmap_offset)),
    ]
}

fn log(log: Log) -> Fields {
    vec![("size", Shown::Size(log.size)), ("offset", Shown::Hex(log.offset))]
}

fn ring(state: VringState, name: &'static str) -> Fields {
    vec![("index", Shown::Number(state.index.into())), (name, Shown::Number(state.num.into()))]
}

/// The base of a ring, whose meaning depends on its layout.
fn base(state: VringState, known: Known) -> Fields {
    if !known.packed_rings {
        return ring(state, "base");
    }
    let base = PackedBase::from_bits(state.num);
    vec![
        ("index", Shown::Number(state.index.into())),
        ("available", Shown::Number(base.available.into())),
        ("available_wrap_counter", Shown::Number(base.available_wrap.into())),
        ("used", Shown::Number(base.used.into())),
        ("used_wrap_counter", Shown::Number(base.used_wrap.into())),
    ]
}

fn ring_address(address: VringAddress) -> Fields {
    vec![
        ("index", Shown::Number(address.index.into())),
        ("flags", Shown::Hex(address.flags.into())),
        ("descriptor", Shown::Hex(address.descriptor)),
        ("used", Shown::Hex(address.used)),
        ("available", Shown::Hex(address.available)),
        ("log", Shown::Hex(address.log)),
    ]
}

fn ring_file(file: VringFile) -> Fields {
    let mut fields =
        vec![("index", Shown::Number(file.index.into())), ("no_descriptor", Shown::Flag(file.no_descriptor))];
    if file.reserved != 0 {
        fields.push(("reserved", Shown::Hex(file.reserved)));
    }
    fields
}

fn iotlb(message: &Iotlb) -> Fields {
    vec![
        ("type", Shown::Text(format!("{:?}", message.kind))),
        ("iova", Shown::Hex(message.iova)),
        ("size", Shown::Size(message.size)),
        ("user_address", Shown::Hex(message.user_address)),
        ("permission", Shown::Text(format!("{:?}", message.permission))),
    ]
}

fn configuration(part: &Config, kind: Option<DeviceKind>) -> Fields {
    let mut fields = vec![
        ("offset", Shown::Number(part.offset.into())),
        ("size", Shown::Size(part.bytes.len() as u64)),
        ("flags", Shown::Hex(part.flags.into())),
    ];
    match kind {
        // What is before the part is not known; the part keeps its place.
        Some(kind) if part.offset as usize <= Config::BYTES_MAX => {
            let start = part.offset as usize;
            let mut whole = vec![0; start];
            whole.extend_from_slice(&part.bytes);
            let names = config::layout(kind).iter().filter(|field| field.offset >= start).map(|field| field.name);
            let here: Vec<_> = names.collect();
            let decoded = config::decode(kind, &whole).into_iter().filter(|field| here.contains(&field.name));
            fields.extend(decoded.map(|field| {
                let value = match (&field.value, &field.note) {
                    (config::FieldValue::Number(number), None) => Shown::Number(*number),
                    (value, None) => Shown::Text(value.to_string()),
                    (value, Some(note)) => Shown::Text(format!("{value} ({note})")),
                };
                (field.name, value)
            }));
        }
        _ => fields.extend(raw(&part.bytes)),
    }
    fields
}

fn inflight(inflight: Inflight) -> Fields {
    vec![
        ("mmap_size", Shown::Size(inflight.mmap_size)),
        ("mmap_offset", Shown::Hex(inflight.mmap_offset)),
        ("num_queues", Shown::Number(inflight.num_queues.into())),
        ("queue_size", Shown::Number(inflight.queue_size.into())),
    ]
}

fn status(bits: u64) -> Fields {
    const NAMES: [(u64, &str); 6] = [
        (1, "ACKNOWLEDGE"),
        (2, "DRIVER"),
        (4, "DRIVER_OK"),
        (8, "FEATURES_OK"),
        (64, "DEVICE_NEEDS_RESET"),
        (128, "FAILED"),
    ];
    let names = NAMES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| (*name).to_owned());
    vec![("status", Shown::Hex(bits)), ("names", Shown::Names(names.collect()))]
}

fn uuid(bytes: &[u8; 16]) -> Fields {
    let text = bytes.iter().enumerate().map(|(at, byte)| {
        let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
        format!("{dash}{byte:02x}")
    });
    vec![("uuid", Shown::Text(text.collect()))]
}

fn shared_memory(map: &SharedMemoryMap) -> Fields {
    vec![
        ("region", Shown::Number(map.region.into())),
        ("fd_offset", Shown::Hex(map.fd_offset)),
        ("region_offset", Shown::Hex(map.region_offset)),
        ("size", Shown::Size(map.size)),
        ("flags", Shown::Hex(map.flags)),
    ]
}

fn raw(bytes: &[u8]) -> Fields {
    if bytes.is_empty() {
        return Vec::new();
    }
    let text = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    vec![("bytes", Shown::Text(text))]
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) | Self::Size(number) => to.serialize_u64(*number),
            // Not every reader of JSON has whole numbers of 64 bits.
            Self::Hex(number) => to.collect_str(&format_args!("{number:#x}")),
            Self::Flag(flag) => to.serialize_bool(*flag),
            Self::Text(text) => to.serialize_str(text),
            Self::Names(names) => names.serialize(to),
            Self::List(list) => list.serialize(to),
        }
    }
}

impl Serialize for ShownFields {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Size(bytes) => match bytes {
                0 => f.write_str("0"),
                bytes if bytes % (1 << 30) == 0 => write!(f, "{} GiB", bytes >> 30),
                bytes if bytes % (1 << 20) == 0 => write!(f, "{} MiB", bytes >> 20),
                bytes if bytes % (1 << 10) == 0 => write!(f, "{} KiB", bytes >> 10),
                bytes => write!(f, "{bytes} B"),
            },
            Self::Hex(number) => write!(f, "{number:#x}"),
            Self::Flag(flag) => f.write_str(if *flag { "yes" } else { "no" }),
            Self::Text(text) => f.write_str(text),
            Self::Names(names) if names.is_empty() => f.write_str("none"),
            Self::Names(names) => f.write_str(&names.join(" ")),
            Self::List(list) => write!(f, "{}", list.len()),
        }
    }
}

/// `index 0, num 256`, `features 0x100000200: FLUSH VERSION_1`; lists are only counted.
impl fmt::Display for ShownFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (name, value)) in self.0.iter().enumerate() {
            match (place, value) {
                (0, _) => write!(f, "{name} {value}")?,
                (_, Shown::Names(_)) => write!(f, ": {value}")?,
                _ => write!(f, ", {name} {value}")?,
            }
        }
        Ok(())
    }
}

impl Side {
    /// `→` for what the frontend sends, `←` for what the backend sends.
    pub const fn arrow(self) -> &'static str {
        match self {
            Self::Frontend => "→",
            Self::Backend => "←",
        }
    }
}

//! What a backend says of itself, asked once before the cases: which of them apply depends on it.

use serde::Serialize;

use super::context::negotiate;
use super::link::{Link, SharedTrace};
use super::outcome::{Outcome, Stop};
use super::target::Target;
use crate::protocol::frontend::{GetConfig, GetQueueNum};
use crate::protocol::{Config, Empty, ProtocolFeatures};
use crate::virtio::{DeviceKind, plausible};

/// Sizes of configuration that devices in use have; a backend may refuse to answer more than it has.
const CONFIG_SIZES: [usize; 7] = [96, 60, 44, 36, 24, 12, 8];

/// What a backend says of itself.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Facts {
    /// `GET_FEATURES`.
    pub features: u64,
    /// `GET_PROTOCOL_FEATURES`; none where the backend has no protocol features.
    #[serde(serialize_with = "by_name")]
    pub protocol_features: ProtocolFeatures,
    /// `GET_QUEUE_NUM`, or 1.
    pub queues: u64,
    /// Its configuration space, as much as it gives.
    pub config: Vec<u8>,
    /// Whether its process ends when its client leaves.
    pub ends_with_client: bool,
}

fn by_name<S: serde::Serializer>(features: &ProtocolFeatures, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(features)
}

impl Facts {
    /// Asks a backend. It is started afresh as often as needed, where it can be.
    pub fn ask(target: &mut Target, device: Option<DeviceKind>) -> Outcome<Self> {
        let mut facts = Self { queues: 1, ..Self::default() };
        restart(target)?;
        let mut link = open(target)?;
        facts.features = link.offered;
        facts.protocol_features = link.protocol;
        if link.protocol.contains(ProtocolFeatures::MQ) {
            facts.queues = link.call(&GetQueueNum(Empty))?;
        }
        drop(link);
        facts.ends_with_client = ends_with_client(target)?;
        target.ends_with_client = facts.ends_with_client;
        if facts.protocol_features.contains(ProtocolFeatures::CONFIG) {
            let known = device.map(DeviceKind::config_bytes).filter(|bytes| *bytes > 0);
            for bytes in known.into_iter().chain(CONFIG_SIZES) {
                restart(target)?;
                if let Ok(config @ [_, ..]) = config(target, bytes).as_deref() {
                    facts.config = config.to_vec();
                    break;
                }
            }
        }
        Ok(facts)
    }

    /// What kind of device it most likely is.
    pub fn likely_device(&self) -> Option<DeviceKind> {
        let queues = self.protocol_features.contains(ProtocolFeatures::MQ).then_some(self.queues);
        plausible(self.features, queues, &self.config).first().map(|candidate| candidate.kind)
    }

    /// The size of a disk.
    pub fn capacity_sectors(&self) -> u64 {
        self.config.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

/// A fresh backend, where it is started by us and the last one has ended or the next question needs one.
fn restart(target: &mut Target) -> Outcome {
    let fresh = target.is_spawned() && (target.process().is_none() || target.has_ended() || target.ends_with_client);
    if fresh {
        target.start().map_err(|error| Stop::Fail(format!("failed to start the backend: {error}")))?;
    }
    Ok(())
}

fn open(target: &mut Target) -> Outcome<Link> {
    let mut link = Link::new(target.connect_served()?, SharedTrace::default());
    negotiate(&mut link, ProtocolFeatures::from_bits(u64::MAX).difference(REFUSED))?;
    Ok(link)
}

/// What nobody takes to ask questions: it changes how everything else is said.
const REFUSED: ProtocolFeatures = ProtocolFeatures::XEN_MMAP.union(ProtocolFeatures::INBAND_NOTIFICATIONS);

fn config(target: &mut Target, bytes: usize) -> Outcome<Vec<u8>> {
    let mut link = open(target)?;
    let reply = link.call(&GetConfig(Config { offset: 0, flags: 0, bytes: vec![0; bytes] }))?;
    Ok(reply.bytes)
}

/// A client has just left: whether the process ends for that.
fn ends_with_client(target: &mut Target) -> Outcome<bool> {
    match target.connect_served() {
        Ok(_) => Ok(false),
        Err(_) if target.has_ended() => Ok(true),
        Err(stop) => Err(stop),
    }
}

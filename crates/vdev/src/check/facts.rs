//! What a backend reports of itself, read once before the cases: which of them apply depends on it.

use std::fmt;

use serde::Serialize;

use super::context::negotiate;
use super::link::{Link, SharedTrace};
use super::outcome::{Outcome, Stop};
use super::target::Target;
use super::works::RingCheck;
use crate::protocol::frontend::{GetConfig, GetQueueNum};
use crate::protocol::{Config, Empty, ProtocolFeatures};
use crate::virtio::{Candidate, DeviceKind, plausible};

/// Sizes of configuration that devices in use have; a backend may refuse to answer more than it has.
const CONFIG_SIZES: [usize; 7] = [96, 60, 44, 36, 24, 12, 8];

/// What a backend reports of itself.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Facts {
    /// `GET_FEATURES`.
    pub features: u64,
    /// `GET_PROTOCOL_FEATURES`; empty if the backend has no protocol features.
    #[serde(serialize_with = "by_name")]
    pub protocol_features: ProtocolFeatures,
    /// `GET_QUEUE_NUM`, or 1.
    pub queues: u64,
    /// Its configuration space, as much as it gives.
    pub config: Vec<u8>,
    /// Whether its process ends when its client leaves.
    pub ends_with_client: bool,
    /// What a new client's ring can be used for, to find out whether the backend still works.
    #[serde(skip)]
    pub rings: RingCheck,
}

/// The kind of device that is checked, and how it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckedDevice {
    /// The kind, by name.
    #[serde(serialize_with = "kind_by_name")]
    pub kind: DeviceKind,
    /// How it is known.
    pub known: DeviceKnown,
    /// The evidence, if it was guessed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
}

/// How the kind of a device is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKnown {
    /// The user gave it.
    Given,
    /// It was guessed, from evidence that no other kind has.
    Guessed,
}

/// `blk (given)`.
impl fmt::Display for CheckedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.evidence {
            Some(evidence) => write!(f, "{} (guessed: {evidence})", self.kind),
            None => write!(f, "{} (given)", self.kind),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde calls")]
fn kind_by_name<S: serde::Serializer>(kind: &DeviceKind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(kind.name())
}

fn by_name<S: serde::Serializer>(features: &ProtocolFeatures, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(features)
}

impl Facts {
    /// Reads the facts of a backend. The backend is restarted as often as needed, if that is possible.
    pub(super) fn ask(target: &mut Target, device: Option<DeviceKind>) -> Outcome<Self> {
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

    /// What kind of device it is, if its evidence leaves no doubt; else all that it may be.
    ///
    /// # Errors
    /// If there is no evidence that only one kind has.
    pub(super) fn device(&self) -> Result<CheckedDevice, Vec<Candidate>> {
        let queues = self.protocol_features.contains(ProtocolFeatures::MQ).then_some(self.queues);
        let candidates = plausible(self.features, queues, &self.config);
        let mut sure = candidates.iter().filter(|candidate| candidate.is_sure);
        match (sure.next(), sure.next()) {
            (Some(Candidate { kind, reason, .. }), None) => {
                Ok(CheckedDevice { kind: *kind, known: DeviceKnown::Guessed, evidence: Some(reason.clone()) })
            }
            _ => Err(candidates),
        }
    }

    /// The size of a disk.
    pub(super) fn capacity_sectors(&self) -> u64 {
        self.config.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

/// A fresh backend, if it is started by us and the last one has ended or the next request needs one.
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

/// Not negotiated for these requests: it changes how all other messages work.
const REFUSED: ProtocolFeatures = ProtocolFeatures::XEN_MMAP.union(ProtocolFeatures::INBAND_NOTIFICATIONS);

fn config(target: &mut Target, bytes: usize) -> Outcome<Vec<u8>> {
    let mut link = open(target)?;
    let reply = link.call(&GetConfig(Config { offset: 0, flags: 0, bytes: vec![0; bytes] }))?;
    Ok(reply.bytes)
}

/// A client has just left: whether the process ends for that.
fn ends_with_client(target: &mut Target) -> Outcome<bool> {
    match target.connect_learning() {
        Ok(_) => Ok(false),
        Err(_) if target.has_ended() => Ok(true),
        Err(stop) => Err(stop),
    }
}

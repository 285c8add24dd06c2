//! The requests: each is sent once, has a deadline, and may stay without a reply.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::quirks;
use super::report::{ConfigReport, DeviceReport, NamedBits, ProbeReport};
use crate::protocol::frontend::{
    GetConfig, GetFeatures, GetMaxMemSlots, GetProtocolFeatures, GetQueueNum, GetShmemConfig, GetStatus, SetOwner,
    SetProtocolFeatures,
};
use crate::protocol::{Config, Empty, FrontendRequest, Message, Payload as _, ProtocolFeatures};
use crate::socket::{Channel, SocketError};
use crate::virtio::{DeviceKind, feature, plausible};

/// The features that these requests need.
const ASKED_WITH: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(ProtocolFeatures::STATUS)
    .union(ProtocolFeatures::SHMEM);
/// Sizes that configurations have or had. A backend refuses a request for more than it has.
const CONFIG_SIZES: [usize; 17] = [2, 4, 8, 12, 16, 20, 24, 28, 36, 40, 44, 56, 60, 72, 96, 136, Config::BYTES_MAX];
const ROUND_TRIPS: usize = 8;

/// How to probe.
#[derive(Debug, Clone, Copy)]
pub struct ProbeOptions {
    /// The kind of device, if it is known.
    pub device: Option<DeviceKind>,
    /// How long all of it may take.
    pub timeout: Duration,
    /// Also do what may end a backend or make it leak.
    pub with_harm: bool,
}

/// Why nothing is known of a backend.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The socket, or who is behind it.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// A connection for requests, until the time is over.
pub(super) struct Asker {
    path: PathBuf,
    deadline: Instant,
    pub channel: Channel,
    /// It takes no more requests.
    pub is_over: bool,
}

impl Asker {
    /// Connects again.
    fn connect(path: &Path, deadline: Instant) -> Result<Self, SocketError> {
        let channel = Channel::connect(path, left(deadline))?;
        Ok(Self { path: path.to_owned(), deadline, channel, is_over: false })
    }

    /// Another connection to the same backend.
    pub(super) fn another(&self) -> Result<Self, SocketError> {
        Self::connect(&self.path, self.deadline)
    }

    /// When time is up.
    pub(super) const fn deadline(&self) -> Instant {
        self.deadline
    }

    fn ask<M: Message>(&mut self, message: &M) -> Result<(M::Reply, Vec<OwnedFd>), SocketError> {
        self.channel.set_timeout(left(self.deadline));
        let answer = self.channel.call(message, &[]);
        self.is_over |= answer.is_err();
        answer
    }

    pub(super) fn say<M: Message>(&mut self, message: &M) -> Result<(), SocketError> {
        self.channel.set_timeout(left(self.deadline));
        let said = self.channel.send(message, &[]);
        self.is_over |= said.is_err();
        said
    }

    /// The usual beginning, up to the protocol features.
    pub(super) fn begin(&mut self) -> Result<Beginning, SocketError> {
        self.say(&SetOwner(Empty))?;
        let features = self.ask(&GetFeatures(Empty))?.0;
        let mut offered = None;
        if features & feature::PROTOCOL_FEATURES != 0 {
            let protocol = ProtocolFeatures::from_bits(self.ask(&GetProtocolFeatures(Empty))?.0);
            self.say(&SetProtocolFeatures(protocol.intersection(ASKED_WITH).bits()))?;
            offered = Some(protocol);
        }
        Ok(Beginning { features, protocol: offered })
    }
}

/// What a backend offers.
pub(super) struct Beginning {
    pub features: u64,
    pub protocol: Option<ProtocolFeatures>,
}

/// What is left of the time, in whole milliseconds; never nothing, so that errors come from the socket and name it.
pub(super) fn left(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    Duration::from_millis(left.as_micros().div_ceil(1000).try_into().unwrap_or(u64::MAX).max(1))
}

/// Finds out what is behind a socket.
///
/// # Errors
/// If no backend listens, or it does not reply at least to `GET_FEATURES` in time.
pub fn probe(path: &Path, options: &ProbeOptions) -> Result<ProbeReport, ProbeError> {
    let started = Instant::now();
    let mut asker = Asker::connect(path, started + options.timeout)?;
    let Beginning { features, protocol } = asker.begin()?;
    let handshake_us = micros(started.elapsed());
    let mut problems = Vec::new();
    let has = |wanted| protocol.is_some_and(|offered| offered.contains(wanted));
    let mut number = |asker: &mut Asker, wanted, question: fn(&mut Asker) -> Result<u64, SocketError>| {
        if !has(wanted) {
            return None;
        }
        known(asker, &mut problems, question)
    };
    let round_trip_us = round_trip(&mut asker);
    let queues = number(&mut asker, ProtocolFeatures::MQ, |asker| Ok(asker.ask(&GetQueueNum(Empty))?.0));
    let slots =
        number(&mut asker, ProtocolFeatures::CONFIGURE_MEM_SLOTS, |asker| Ok(asker.ask(&GetMaxMemSlots(Empty))?.0));
    let status = number(&mut asker, ProtocolFeatures::STATUS, |asker| Ok(asker.ask(&GetStatus(Empty))?.0));
    let shared = if has(ProtocolFeatures::SHMEM) {
        known(&mut asker, &mut problems, |asker| Ok(asker.ask(&GetShmemConfig(Empty))?.0))
    } else {
        None
    };
    let shared_memory = shared.map_or_else(Vec::new, |shared| {
        let sizes = (0..=u8::MAX).zip(shared.sizes);
        sizes.filter(|(_, size)| *size != 0).collect()
    });
    let config = if has(ProtocolFeatures::CONFIG) { config(&mut asker, options.device, &mut problems) } else { None };
    let device = device(options.device, features, queues, config.as_deref().unwrap_or_default());
    let kind = device.as_ref().and_then(|device| device.kind.parse().ok());
    let report = ProbeReport {
        socket: path.display().to_string(),
        features: NamedBits::features(kind, features),
        protocol_features: protocol.map(NamedBits::protocol_features),
        queues,
        max_mem_slots: slots,
        status,
        shared_memory,
        config: config.map(|bytes| ConfigReport::new(kind, features, bytes)),
        quirks: quirks::find(asker, protocol, features, options.with_harm),
        handshake_us,
        round_trip_us,
        problems,
        device,
    };
    Ok(report)
}

/// The answer to a question, or a problem. A connection that is over is replaced by another first.
fn known<T>(
    asker: &mut Asker,
    problems: &mut Vec<String>,
    question: impl FnOnce(&mut Asker) -> Result<T, SocketError>,
) -> Option<T> {
    let answer = revive(asker).and_then(|()| question(asker));
    answer.map_err(|error| problems.push(words(&error))).ok()
}

fn revive(asker: &mut Asker) -> Result<(), SocketError> {
    if asker.is_over {
        let mut another = asker.another()?;
        another.begin()?;
        *asker = another;
    }
    Ok(())
}

/// The chain of an error in one line.
pub(super) fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    words
}

fn round_trip(asker: &mut Asker) -> Option<u64> {
    let mut took = Vec::new();
    for _ in 0..ROUND_TRIPS {
        let started = Instant::now();
        asker.ask(&GetFeatures(Empty)).ok()?;
        took.push(started.elapsed());
    }
    took.into_iter().min().map(micros)
}

/// As much of the configuration as the backend returns. More and more is requested, so that a backend that refuses by
/// closing gets at most one request that is too large.
fn config(asker: &mut Asker, kind: Option<DeviceKind>, problems: &mut Vec<String>) -> Option<Vec<u8>> {
    let most = kind.map_or(Config::BYTES_MAX, DeviceKind::config_bytes);
    let mut found: Option<Vec<u8>> = None;
    let mut problem = None;
    for size in CONFIG_SIZES.into_iter().filter(|size| *size <= most) {
        match revive(asker).and_then(|()| config_of(asker, size)) {
            Ok(Some(bytes)) => found = Some(bytes),
            Ok(None) => problem = Some(format!("`{}` refused every GET_CONFIG", asker.path.display())),
            Err(error) => problem = Some(words(&error)),
        }
        if (found.is_some() && problem.is_some()) || Instant::now() >= asker.deadline {
            break;
        }
    }
    if found.is_none() {
        problems.extend(problem);
    }
    found
}

/// The first bytes of the configuration; nothing if the backend has not so many.
fn config_of(asker: &mut Asker, size: usize) -> Result<Option<Vec<u8>>, SocketError> {
    let request = GetConfig(Config { offset: 0, flags: 0, bytes: vec![0; size] });
    asker.channel.set_timeout(left(asker.deadline));
    let reply = asker.channel.send(&request, &[]).and_then(|()| asker.channel.receive());
    asker.is_over |= reply.is_err();
    let reply = reply?;
    let request = FrontendRequest::GetConfig;
    if reply.header.request != request.number() || !reply.header.flags.is_reply() {
        asker.is_over = true;
        let found = format!("{} (flags {:#x})", reply.header.request, reply.header.flags.bits());
        let (socket, doing) = (asker.channel.name().to_owned(), format!("waiting for the reply to {request}"));
        return Err(SocketError::WrongReply { socket, doing, found });
    }
    // Some refuse with no payload at all, some with no bytes behind its fields.
    Ok(Config::decode(&reply.payload).ok().filter(|config| config.bytes.len() == size).map(|config| config.bytes))
}

fn device(said: Option<DeviceKind>, features: u64, queues: Option<u64>, config: &[u8]) -> Option<DeviceReport> {
    if let Some(kind) = said {
        return Some(DeviceReport { kind: kind.name().to_owned(), is_guess: false, reason: None });
    }
    let candidate = plausible(features, queues, config).into_iter().next()?;
    Some(DeviceReport { kind: candidate.kind.name().to_owned(), is_guess: true, reason: Some(candidate.reason) })
}

fn micros(time: Duration) -> u64 {
    time.as_micros().try_into().unwrap_or(u64::MAX)
}

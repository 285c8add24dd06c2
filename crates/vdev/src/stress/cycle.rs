//! What a client does in one cycle.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::frontend::blk::{BlkDriver, BlkOptions};
use crate::frontend::{Frontend, FrontendError, Options, SharedRegion, Wish};
use crate::protocol::{Flags, FrontendRequest, HEADER_BYTES, Header, ProtocolFeatures, REGIONS_MAX};
use crate::queue::Arena;
use crate::random::Random;
use crate::socket::{Channel, Event, SocketError};

/// Kicks of one storm.
const KICKS: u64 = 2000;
/// Descriptors that are sent along with one message at most.
const DESCRIPTORS: u64 = 64;
/// Connections that are closed as soon as they are made, in one cycle.
const CONNECTIONS: u64 = 8;
/// Messages of a handshake until a ring is enabled.
const STEPS: u64 = 12;
const RING_SIZE: u16 = 64;
const MEMORY_BYTES: u64 = 1 << 20;
const READS: u64 = 4;

/// What a client does in one cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CycleKind {
    /// A whole session: handshake, a ring, on a disk some reads.
    Session,
    /// A handshake that ends at any of its messages.
    CutHandshake,
    /// A part of a message.
    HalfMessage,
    /// A ring that is kicked and kicked with nothing in it.
    KickStorm,
    /// Messages with descriptors that do not belong to them.
    ManyDescriptors,
    /// Connections that are closed at once, and one that is used.
    Reconnect,
}

/// What came of a cycle.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The backend did what it should; how long its handshake took, if there was one.
    Served(Option<Duration>),
    /// It had no time for us.
    NotServed,
    /// It failed a client that kept the rules.
    Failed(FrontendError),
    /// The backend does not listen any more.
    Gone,
}

impl CycleKind {
    /// All there are.
    pub const ALL: [Self; 6] =
        [Self::Session, Self::CutHandshake, Self::HalfMessage, Self::KickStorm, Self::ManyDescriptors, Self::Reconnect];

    /// The next kind by chance, one of these: half of all are whole sessions if those are among them.
    pub(super) fn choose(random: &mut Random, kinds: &[Self]) -> Self {
        let sessions = kinds.is_empty() || kinds.contains(&Self::Session);
        if sessions && random.number() & 1 == 0 {
            return Self::Session;
        }
        kinds.get(random.below(kinds.len() as u64) as usize).copied().unwrap_or(Self::Session)
    }
}

/// What a cycle needs to know.
pub(super) struct Surroundings<'a> {
    pub socket: &'a Path,
    pub session: &'a Options,
    pub disk: bool,
    pub kinds: &'a [CycleKind],
}

impl Surroundings<'_> {
    pub(super) fn run(&self, kind: CycleKind, random: &mut Random) -> Outcome {
        let started = Instant::now();
        let result = match kind {
            CycleKind::Session => self.whole_session(random).map(Some),
            CycleKind::CutHandshake => self.cut_handshake(random).map(|()| None),
            CycleKind::HalfMessage => self.half_message(random).map(|()| None),
            CycleKind::KickStorm => self.kick_storm(random).map(|()| None),
            CycleKind::ManyDescriptors => self.many_descriptors(random).map(|()| None),
            CycleKind::Reconnect => self.reconnect(random).map(Some),
        };
        match result {
            Ok(ready) => Outcome::Served(ready.map(|ready| ready.duration_since(started))),
            Err(Broken::NotServed) => Outcome::NotServed,
            Err(Broken::Failed(error)) if is_gone(&error) => Outcome::Gone,
            Err(Broken::Failed(error)) => Outcome::Failed(error),
        }
    }

    fn whole_session(&self, random: &mut Random) -> Result<Instant, Broken> {
        if !self.disk {
            let (frontend, _arena) = self.handshake()?;
            let ready = Instant::now();
            drop(frontend);
            return Ok(ready);
        }
        let frontend = self.first_answer()?;
        let rings = BlkOptions { depth: 4, request_bytes: 4096, queue_size: RING_SIZE, ..BlkOptions::default() };
        let rings = BlkOptions { timeout: self.session.timeout, ..rings };
        let mut disk = BlkDriver::start(frontend, &Wish::default(), &rings)?;
        let ready = Instant::now();
        let blocks = disk.config().capacity / 8;
        let mut block = [0; 4096];
        for _ in 0..if blocks == 0 { 0 } else { READS } {
            disk.read(random.below(blocks) * 8, &mut block)?;
        }
        Ok(ready)
    }

    /// A session that has got its features, so that it is the current one.
    fn first_answer(&self) -> Result<Frontend, Broken> {
        let mut frontend = Frontend::connect(self.socket, self.session)?;
        match frontend.get_features() {
            Ok(_) => Ok(frontend),
            Err(error) if error.is_closed() || error.is_timeout() => Err(Broken::NotServed),
            Err(error) => Err(error.into()),
        }
    }

    /// A session up to shared memory.
    fn handshake(&self) -> Result<(Frontend, Arena), Broken> {
        let mut frontend = self.first_answer()?;
        frontend.handshake(&Wish::default())?;
        let arena = share(&mut frontend)?;
        Ok((frontend, arena))
    }

    fn cut_handshake(&self, random: &mut Random) -> Result<(), Broken> {
        let cut = random.below(STEPS);
        let frontend = self.first_answer()?;
        // The reply to a handshake in other pieces than ours does not matter: it is left in the middle.
        match steps(frontend, cut) {
            Err(error) if error.refused().is_none() && !error.is_closed() => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn half_message(&self, random: &mut Random) -> Result<(), Broken> {
        let mut channel = Channel::connect(self.socket, self.session.timeout)?;
        let request = FrontendRequest::ALL[random.below(FrontendRequest::ALL.len() as u64) as usize];
        let payload_bytes = 1 + u32::try_from(random.below(300)).expect("is small");
        let header = Header { request: request.number(), flags: Flags::request(), payload_bytes };
        let mut bytes = header.encode().to_vec();
        bytes.resize(HEADER_BYTES + payload_bytes as usize, 0xa5);
        let cut = 1 + random.below(bytes.len() as u64 - 1) as usize;
        said(channel.send_bytes(&bytes[..cut], &[]))
    }

    fn kick_storm(&self, random: &mut Random) -> Result<(), Broken> {
        let (mut frontend, mut arena) = self.handshake()?;
        let layout = frontend.negotiated().ring_layout(RING_SIZE);
        let ring = frontend.set_up_ring(0, layout, &mut arena)?;
        for _ in 0..1 + random.below(KICKS) {
            frontend.kick_ring(&ring)?;
        }
        // It still listens after all of that.
        frontend.get_features()?;
        Ok(())
    }

    fn many_descriptors(&self, random: &mut Random) -> Result<(), Broken> {
        let mut channel = Channel::connect(self.socket, self.session.timeout)?;
        let event = Event::new().map_err(|source| SocketError::Io {
            socket: self.socket.display().to_string(),
            doing: "making an eventfd".to_owned(),
            source,
        })?;
        for _ in 0..1 + random.below(4) {
            let count = 1 + random.below(DESCRIPTORS) as usize;
            let fds = vec![event.as_fd(); count];
            let (request, bytes) = if random.number() & 1 == 0 {
                (FrontendRequest::GetFeatures, 0)
            } else {
                (FrontendRequest::SetMemTable, 8 + 32 * REGIONS_MAX)
            };
            said(channel.send_raw(request.number(), Flags::request(), &vec![0; bytes], &fds))?;
        }
        Ok(())
    }

    fn reconnect(&self, random: &mut Random) -> Result<Instant, Broken> {
        for _ in 0..random.below(CONNECTIONS) {
            drop(Channel::connect(self.socket, self.session.timeout)?);
        }
        let (frontend, _arena) = self.handshake()?;
        let ready = Instant::now();
        drop(frontend);
        Ok(ready)
    }
}

/// Why a cycle did not come to its end.
enum Broken {
    NotServed,
    Failed(FrontendError),
}

impl From<FrontendError> for Broken {
    fn from(error: FrontendError) -> Self {
        Self::Failed(error)
    }
}

impl From<SocketError> for Broken {
    fn from(error: SocketError) -> Self {
        Self::Failed(error.into())
    }
}

/// What a backend does about a client that breaks the rules is its own affair: it may hang up.
fn said(result: Result<(), SocketError>) -> Result<(), Broken> {
    match result {
        Err(error) if error.is_closed() => Ok(()),
        result => Ok(result?),
    }
}

/// No backend listens. One whose queue of connections is full is still there.
fn is_gone(error: &FrontendError) -> bool {
    match error.socket_error() {
        Some(SocketError::Connect { source, .. }) => {
            matches!(source.kind(), std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound)
        }
        _ => false,
    }
}

fn share(frontend: &mut Frontend) -> Result<Arena, FrontendError> {
    let socket = frontend.name().to_owned();
    let memory = Arena::new(0x10_0000, MEMORY_BYTES);
    let (arena, file) = memory.map_err(|source| FrontendError::Memory { socket, source })?;
    frontend.share_memory(vec![SharedRegion { region: *arena.region().description(), file }])?;
    Ok(arena)
}

/// The first so many messages of a session.
fn steps(mut frontend: Frontend, cut: u64) -> Result<(), FrontendError> {
    let mut left = cut;
    let mut goes_on = || {
        left = left.saturating_sub(1);
        left > 0
    };
    if cut == 0 {
        return Ok(());
    }
    frontend.set_owner()?;
    if !goes_on() {
        return Ok(());
    }
    let wish = Wish::default();
    let features = frontend.get_features()? & wish.features;
    if !goes_on() {
        return Ok(());
    }
    if let Ok(offered) = frontend.get_protocol_features() {
        let wanted = ProtocolFeatures::REPLY_ACK | ProtocolFeatures::CONFIGURE_MEM_SLOTS;
        frontend.set_protocol_features(offered.intersection(wanted))?;
    }
    if !goes_on() {
        return Ok(());
    }
    frontend.set_features(features)?;
    if !goes_on() {
        return Ok(());
    }
    let mut arena = share(&mut frontend)?;
    if !goes_on() {
        return Ok(());
    }
    let layout = crate::frontend::Negotiated { features, ..Default::default() }.ring_layout(RING_SIZE);
    let ring = crate::frontend::Ring::create(0, layout, &mut arena);
    let ring = ring.map_err(|what| FrontendError::Queue { socket: frontend.name().to_owned(), what })?;
    frontend.set_vring_num(0, RING_SIZE.into())?;
    if !goes_on() {
        return Ok(());
    }
    frontend.set_vring_addr(&ring.driver.address())?;
    if !goes_on() {
        return Ok(());
    }
    frontend.set_vring_call(0, Some(ring.call.as_fd()))?;
    if !goes_on() {
        return Ok(());
    }
    frontend.set_vring_kick(0, Some(ring.kick.as_fd()))?;
    if !goes_on() {
        return Ok(());
    }
    match frontend.set_vring_enable(0, true) {
        Err(FrontendError::NotNegotiated { .. }) => Ok(()),
        enabled => enabled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_comes_to_every_kind() {
        let mut random = Random::new(1);
        let chosen: Vec<_> = (0..200).map(|_| CycleKind::choose(&mut random, &CycleKind::ALL)).collect();
        assert!(CycleKind::ALL.iter().all(|kind| chosen.contains(kind)));
        assert_eq!(CycleKind::choose(&mut random, &[]), CycleKind::Session);
    }
}

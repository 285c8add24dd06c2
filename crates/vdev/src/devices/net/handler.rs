//! Moves frames between one pair of rings and the wire, on one thread.
//!
//! A guest that leaves no buffers for what it receives is not sent more: a TAP is not read then, and answers wait in a
//! bounded queue behind which they are lost.

use std::collections::VecDeque;

use super::card::FRAME_BYTES_MAX;
use super::options::NetOptions;
use super::wire::Wire;
use crate::backend::{EventFlags, Queue, QueueHandler, Queues, Work};
use crate::queue::{Chain, QueueError};
use crate::random::Random;
use crate::virtio::feature;

/// The header before each frame with `VERSION_1` or `MRG_RXBUF`, and without.
const HEADER_BYTES: usize = 12;
const HEADER_BYTES_LEGACY: usize = 10;
/// Where `num_buffers` is in the long one.
const NUM_BUFFERS_AT: usize = 10;
/// Frames that one look at a ring moves, so that the other ring has its turn.
const FRAMES_AT_ONCE: usize = 64;
/// Answers that wait for room in the guest.
const ANSWERS_MAX: usize = 256;
/// Buffers that one frame may take: more than the longest takes in buffers of 4 KiB.
const BUFFERS_MAX: usize = 64;
/// Looks for buffers beyond those that are there for one frame: a driver may add some while they are counted, and a
/// driver that only changes its index is not followed forever.
const LOOKS_MAX: usize = 2 * BUFFERS_MAX;
/// The token of the TAP.
const TAP: u64 = 0;

pub(super) struct Handler {
    /// The queues that it serves: one pair.
    receives: u16,
    transmits: u16,
    wire: Wire,
    header_bytes: usize,
    merges: bool,
    /// The guest has received nothing of this yet.
    answers: VecDeque<Vec<u8>>,
    /// Lists that were answers and will be again.
    idle: Vec<Vec<u8>>,
    /// A frame of the wire that found no room.
    held: Option<Vec<u8>>,
    frame: Vec<u8>,
    packet: Vec<u8>,
    chain: Chain,
    chains: Vec<Chain>,
    tap_watched: bool,
    tap_ended: bool,
    loss: Loss,
}

impl Handler {
    pub(super) fn new(wire: Wire, options: &NetOptions, pair: u16, features: u64) -> Self {
        let merges = features & feature::net::MRG_RXBUF != 0;
        let is_long = merges || features & feature::VERSION_1 != 0;
        Self {
            receives: 2 * pair,
            transmits: 2 * pair + 1,
            wire,
            header_bytes: if is_long { HEADER_BYTES } else { HEADER_BYTES_LEGACY },
            merges,
            answers: VecDeque::new(),
            idle: Vec::new(),
            held: None,
            frame: Vec::new(),
            packet: Vec::new(),
            chain: Chain::new(),
            chains: Vec::new(),
            tap_watched: false,
            tap_ended: false,
            loss: Loss { permille: options.loss_permille, random: Random::new(options.seed.wrapping_add(pair.into())) },
        }
    }

    /// Takes frames from the guest.
    fn transmit(&mut self, queue: &mut Queue) -> Result<Work, QueueError> {
        for _ in 0..FRAMES_AT_ONCE {
            if !queue.pop(&mut self.chain)? {
                return Ok(Work::Drained);
            }
            let bytes = self.chain.readable_bytes();
            let is_frame = bytes > self.header_bytes as u64 && bytes <= (self.header_bytes + FRAME_BYTES_MAX) as u64;
            if is_frame && !self.loss.strikes() {
                let length =
                    usize::try_from(bytes).expect("at most a header and the longest frame") - self.header_bytes;
                self.frame.resize(length, 0);
                let read = self.chain.read_into(self.header_bytes as u64, &mut self.frame);
                self.frame.truncate(read);
                self.send();
            }
            queue.complete(&self.chain, 0);
        }
        Ok(Work::More)
    }

    fn send(&mut self) {
        let mut answer = self.idle.pop().unwrap_or_default();
        let is_answered = self.wire.send(&self.frame, &mut answer);
        if is_answered && self.answers.len() < ANSWERS_MAX && !self.loss.strikes() {
            self.answers.push_back(answer);
        } else {
            self.idle.push(answer);
        }
    }

    /// Gives frames to the guest while there are any and it has room. Returns whether room is what is missing.
    fn receive(&mut self, queue: &mut Queue) -> Result<bool, QueueError> {
        // All replies, and some of the other frames: a TAP is ready again at once.
        for _ in 0..ANSWERS_MAX + FRAMES_AT_ONCE {
            let Some(frame) = self.next_frame() else { return Ok(false) };
            if !self.deliver(queue, &frame)? {
                self.held = Some(frame);
                return Ok(true);
            }
            if self.idle.len() < ANSWERS_MAX {
                self.idle.push(frame);
            }
        }
        Ok(false)
    }

    fn next_frame(&mut self) -> Option<Vec<u8>> {
        if let Some(held) = self.held.take() {
            return Some(held);
        }
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        if self.receives > 0 && matches!(self.wire, Wire::Tap(_)) {
            return None;
        }
        let mut frame = self.idle.pop().unwrap_or_default();
        loop {
            match self.wire.receive(&mut frame) {
                Ok(true) if self.loss.strikes() => {}
                Ok(true) => return Some(frame),
                Ok(false) => break,
                Err(_) => {
                    self.tap_ended = true;
                    break;
                }
            }
        }
        self.idle.push(frame);
        None
    }

    /// Puts one frame into the guest's buffers. Returns whether there was room; if not, no buffer was used, and the
    /// driver kicks when it has more.
    fn deliver(&mut self, queue: &mut Queue, frame: &[u8]) -> Result<bool, QueueError> {
        self.packet.clear();
        self.packet.resize(self.header_bytes, 0);
        self.packet.extend_from_slice(frame);
        let (mut room, mut used, mut looks) = (0, 0, 0);
        while room < self.packet.len() as u64 {
            if used == self.chains.len() {
                self.chains.push(Chain::new());
            }
            let is_last_try = used == if self.merges { BUFFERS_MAX } else { 1 };
            if is_last_try {
                // No driver has so little room for a frame: it is lost, with the buffers that were meant for it.
                self.give_back(queue, used);
                return Ok(true);
            }
            if !queue.pop(&mut self.chains[used])? {
                // While those that were taken count as taken: the driver kicks for what comes behind them.
                looks += 1;
                if looks < LOOKS_MAX && queue.enable_kicks() {
                    continue;
                }
                for chain in self.chains[..used].iter().rev() {
                    queue.unpop(chain);
                }
                return Ok(false);
            }
            room += self.chains[used].writable_bytes();
            used += 1;
        }
        if self.header_bytes == HEADER_BYTES {
            let buffers = u16::try_from(used).unwrap_or(u16::MAX).to_le_bytes();
            self.packet[NUM_BUFFERS_AT..HEADER_BYTES].copy_from_slice(&buffers);
        }
        let mut done = 0;
        for chain in &self.chains[..used] {
            let written = chain.write_from(0, &self.packet[done..]);
            done += written;
            queue.complete(chain, u32::try_from(written).expect("at most a header and the longest frame"));
        }
        Ok(true)
    }

    fn give_back(&self, queue: &mut Queue, used: usize) {
        for chain in &self.chains[..used] {
            queue.complete(chain, 0);
        }
    }

    /// Serves the receive ring: afterwards either there is nothing to receive, or the driver will kick when it has room.
    fn serve_receive(&mut self, queues: &mut Queues) -> Result<(), QueueError> {
        let Some(queue) = queues.get(self.receives) else { return Ok(()) };
        if !queue.is_enabled() {
            return Ok(());
        }
        let starved = self.receive(queue)?;
        queue.flush();
        if !starved {
            queue.disable_kicks();
        }
        self.watch_tap(queues, !starved);
        Ok(())
    }

    /// Waits for the TAP, or does not while the guest has no room for what it has.
    fn watch_tap(&mut self, queues: &Queues, wanted: bool) {
        // The threads of the other pairs would take frames from each other.
        let wanted = wanted && !self.tap_ended && self.receives == 0;
        let Wire::Tap(tap) = &self.wire else { return };
        if wanted == self.tap_watched {
            return;
        }
        if wanted {
            // One that can't be waited for is one that gives no frames.
            self.tap_watched = queues.watch(tap, TAP, EventFlags::IN).is_ok();
        } else {
            queues.unwatch(tap);
            self.tap_watched = false;
        }
    }
}

impl QueueHandler for Handler {
    fn process(&mut self, queues: &mut Queues, queue: u16) -> Result<Work, QueueError> {
        if queue == self.receives {
            self.serve_receive(queues)?;
            return Ok(Work::Left);
        }
        let Some(transmit) = queues.get(self.transmits) else { return Ok(Work::Left) };
        let work = self.transmit(transmit)?;
        if !self.answers.is_empty() {
            self.serve_receive(queues)?;
        }
        Ok(work)
    }

    /// A card that is disabled sends nothing and receives nothing, but takes what is to be sent off the guest's hands.
    fn discard(&mut self, queues: &mut Queues, queue: u16) -> Result<Work, QueueError> {
        if queue == self.receives {
            self.watch_tap(queues, false);
            return Ok(Work::Left);
        }
        let Some(transmit) = queues.get(self.transmits) else { return Ok(Work::Left) };
        for _ in 0..FRAMES_AT_ONCE {
            if !transmit.pop(&mut self.chain)? {
                return Ok(Work::Drained);
            }
            transmit.complete(&self.chain, 0);
        }
        Ok(Work::More)
    }

    fn ready(&mut self, queues: &mut Queues, _token: u64) -> Result<(), (u16, QueueError)> {
        self.serve_receive(queues).map_err(|error| (self.receives, error))
    }

    fn stopping(&mut self, queues: &mut Queues, queue: u16) {
        if queue == self.receives {
            self.watch_tap(queues, false);
        }
    }
}

/// Decides which frames are lost.
struct Loss {
    permille: u16,
    random: Random,
}

impl Loss {
    /// Whether the next frame is lost.
    fn strikes(&mut self) -> bool {
        self.permille > 0 && self.random.below(1000) < u64::from(self.permille)
    }
}

//! A script, in the form that a server calls.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::hint::nearest;
use super::script::{
    InsteadRule, MessageRule, Names, RingOn, RingRule, Script, ScriptError, numbered_bit, protocol_bit, unknown,
};
use crate::backend::fault::{AnswerFault, Completion, Faults, Instead, MessageFault, Offer, RingEvent, Serving};
use crate::backend::{Queue, StoppedQueue};
use crate::protocol::{Flags, ProtocolFeatures};
use crate::queue::{Chain, ChainId, RingKind};
use crate::virtio::{DeviceKind, feature};

/// A refusal's code if the script has none.
const NACK: u64 = 1;
/// How long after a ring was stopped a mock writes to it.
const LATE: Duration = Duration::from_millis(30);
/// The id of a used entry without a request.
const UNKNOWN_ID: u16 = 0x7777;

/// A script, in the form that a server calls, for all of its sessions.
pub(super) struct Misbehave {
    script: Script,
    features: [u64; 2],
    protocol_features: [u64; 2],
    /// How often each rule has matched.
    messages: Vec<AtomicU64>,
    rings: Vec<AtomicU64>,
    /// Messages that have come.
    seen: Mutex<BTreeSet<u32>>,
}

impl Misbehave {
    pub(super) fn new(script: &Script, kind: DeviceKind) -> Result<Self, ScriptError> {
        let virtio_bit = |name: &str| {
            numbered_bit(name).or_else(|| feature::named(Some(kind), name)).ok_or_else(|| {
                let own = feature::names(Some(kind), u64::MAX);
                let names: Vec<_> = own.iter().filter_map(|feature| feature.name).collect();
                ScriptError::Feature(unknown("feature", name, nearest(name, names)))
            })
        };
        let offer = &script.offer;
        Ok(Self {
            features: bits(&offer.features, virtio_bit)?,
            protocol_features: bits(&offer.protocol_features, protocol_bit)?,
            messages: script.message.iter().map(|_| AtomicU64::new(0)).collect(),
            rings: script.ring.iter().map(|_| AtomicU64::new(0)).collect(),
            seen: Mutex::default(),
            script: script.clone(),
        })
    }

    /// The rules about this that apply now. Each counts its own occasions.
    fn ring_rules(&self, on: RingOn, queue: u16, sector: Option<u64>) -> impl Iterator<Item = &RingRule> {
        self.script.ring.iter().zip(&self.rings).filter_map(move |(rule, count)| {
            let has_come = |after: super::script::Number| {
                self.seen.lock().unwrap_or_else(PoisonError::into_inner).contains(&after.0)
            };
            let is_here = rule.on == on
                && rule.after.is_none_or(has_come)
                && rule.queue.is_none_or(|wanted| wanted == queue)
                && rule.sector.is_none_or(|wanted| sector == Some(wanted));
            (is_here && is_nth(rule.nth, count)).then_some(rule)
        })
    }
}

fn bits(names: &Names, bit: impl Fn(&str) -> Result<u64, ScriptError>) -> Result<[u64; 2], ScriptError> {
    let all = |names: &[String]| names.iter().try_fold(0, |all, name| Ok(all | bit(name)?));
    Ok([all(&names.add)?, all(&names.remove)?])
}

fn is_nth(nth: Option<u64>, count: &AtomicU64) -> bool {
    let this = count.fetch_add(1, Ordering::Relaxed) + 1;
    nth.is_none_or(|nth| nth == this)
}

fn fault(rule: &MessageRule) -> MessageFault {
    let reply = &rule.reply;
    MessageFault {
        delay: Duration::from_millis(rule.delay_ms),
        instead: rule.instead.map(|instead| match instead {
            InsteadRule::Ignore => Instead::Ignore,
            InsteadRule::Close => Instead::Close,
            InsteadRule::Crash => Instead::Crash,
            InsteadRule::Nack => Instead::Nack(rule.code.unwrap_or(NACK)),
            InsteadRule::Ack => Instead::Ack,
        }),
        answer: AnswerFault {
            silent: reply.silent,
            twice: reply.twice,
            request: reply.number.map(|number| number.0),
            flags: reply.flags.map(Flags::from_bits),
            size: reply.size,
            payload: reply.payload.as_ref().map(|hex| hex.0.clone()),
            extra_fds: reply.descriptors,
            cut_after: reply.cut,
        },
        backend_channel: rule.backend_channel.as_ref().map(|said| (said.number, said.payload.0.clone())),
    }
}

impl Faults for Misbehave {
    fn serving(&self) -> Serving {
        let rule = self.script.serve;
        Serving {
            start_delay: Duration::from_millis(rule.start_delay_ms),
            accept_delay: Duration::from_millis(rule.accept_delay_ms),
            pause: Duration::from_millis(rule.pause_ms),
            clients: rule.clients,
        }
    }

    fn offer(&self, offer: &mut Offer) {
        let [add, remove] = self.features;
        offer.features = (offer.features | add) & !remove;
        let [add, remove] = self.protocol_features;
        let bits = (offer.protocol_features.bits() | add) & !remove;
        offer.protocol_features = ProtocolFeatures::from_bits(bits);
        if let Some(queues) = self.script.offer.queues {
            offer.queues = queues;
        }
    }

    fn config(&self, config: &mut Vec<u8>) {
        for rule in &self.script.config {
            for (place, byte) in (rule.at..).zip(&rule.bytes.0) {
                if let Some(found) = config.get_mut(place) {
                    *found = *byte;
                }
            }
        }
    }

    fn message(&self, request: u32) -> Option<MessageFault> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = self.script.message.iter().zip(&self.messages);
        let found =
            rules.filter(|(rule, _)| rule.name.0 == request && rule.after.is_none_or(|after| seen.contains(&after.0)));
        let found = found.filter(|(rule, count)| is_nth(rule.nth, count)).map(|(rule, _)| rule).last();
        seen.insert(request);
        if let Some(delay) = found.and_then(|rule| rule.crash_after_ms) {
            let late = move || {
                std::thread::sleep(Duration::from_millis(delay));
                std::process::abort();
            };
            // If the system has no thread to spare, nothing goes wrong this once.
            let _ = std::thread::Builder::new().name("late-crash".to_owned()).spawn(late);
        }
        found.map(fault)
    }

    fn looks_unasked(&self) -> bool {
        // A device that polls would find the request without its kick.
        self.script.ring.iter().all(|rule| rule.on != RingOn::Kick)
    }

    fn ignores(&self, queue: u16, event: RingEvent) -> bool {
        event == RingEvent::Kick && self.ring_rules(RingOn::Kick, queue, None).count() > 0
    }

    fn completed(&self, queue: u16, chain: &Chain, written: u32) -> Completion {
        let mut completion = Completion::as_it_is(chain.id(), written);
        for rule in self.ring_rules(RingOn::Completion, queue, sector_of(chain)) {
            std::thread::sleep(Duration::from_millis(rule.delay_ms));
            if rule.corrupt {
                corrupt(chain);
            }
            if let Some(status) = rule.status {
                chain.write_from(chain.writable_bytes().saturating_sub(1), &[status]);
            }
            completion.written = rule.written.unwrap_or(completion.written);
            completion.times = rule.times.unwrap_or(completion.times);
            completion.jump = rule.jump.unwrap_or(completion.jump);
            if let Some(number) = rule.id {
                completion.id = ChainId::forged(number, chain.id().descriptors());
            }
        }
        completion
    }

    fn jump(&self, queue: &Queue, by: u16) {
        let areas = queue.areas();
        match queue.layout().kind {
            RingKind::Split => {
                let index = areas.device.load_u16(2, Ordering::Acquire);
                areas.device.store_u16(2, index.wrapping_add(by), Ordering::Release);
            }
            RingKind::Packed => {
                // An entry that looks used, at the device's next place.
                let place = queue.base() >> 16;
                let (index, wrap) = ((place & 0x7fff) as usize, place >> 15 & 1);
                let flags = if wrap == 1 { 1_u16 << 7 | 1 << 15 } else { 0 };
                areas.descriptors.write(index * 16 + 12, UNKNOWN_ID.to_le());
                areas.descriptors.store_u16(index * 16 + 14, flags, Ordering::Release);
            }
        }
    }

    fn calls(&self, queue: u16) -> u32 {
        self.ring_rules(RingOn::Call, queue, None).filter_map(|rule| rule.times).last().unwrap_or(1)
    }

    fn stopped(&self, queue: StoppedQueue) {
        if self.ring_rules(RingOn::Stop, queue.index(), None).count() == 0 {
            return;
        }
        let late = move || {
            std::thread::sleep(LATE);
            queue.write_late();
        };
        // It ends on its own soon. If the system has no thread to spare, the fault is left out this time.
        let _ = std::thread::Builder::new().name("late-write".to_owned()).spawn(late);
    }
}

/// The sector that a request of a disk is for.
fn sector_of(chain: &Chain) -> Option<u64> {
    let mut sector = [0; 8];
    (chain.read_into(8, &mut sector) == sector.len()).then(|| u64::from_le_bytes(sector))
}

/// Flips the bits of the first byte that was written.
fn corrupt(chain: &Chain) {
    let mut byte = [0_u8];
    if let Some(first) = chain.writable_part(0, 1).next()
        && let Ok(slice) = chain.memory().slice(first)
    {
        slice.copy_to(&mut byte);
        slice.copy_from(&[!byte[0]]);
    }
}

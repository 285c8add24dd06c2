//! What a ring of any device must do, shown with one small request that every device of the kind gives back.

use std::time::Duration;

use super::prelude::*;
use crate::check::disk::size;
use crate::check::guest::Guest;
use crate::check::request::Request;
use crate::check::ring::{Descriptor, SplitRing, Used, chained};

const REQUEST: Need = Need::Request;
const PROTOCOL: Need = Need::Feature(feature::PROTOCOL_FEATURES, "VHOST_USER_F_PROTOCOL_FEATURES");
const INDIRECT_OFFERED: Need = Need::Feature(feature::RING_INDIRECT_DESC, "VIRTIO_F_INDIRECT_DESC");
const FRAMING: &str = "VIRTIO 1.2, 2.7.4.1 Device Requirements: Message Framing";
const STATES: &str = "Ring states";
/// How long a backend is given to take a kick that it can't serve yet.
const TAKES_KICK_WITHIN: Duration = Duration::from_millis(30);
/// Entries of the rings.
const ENTRIES: u16 = 16;

cases! {
    "requests.used" Must [REQUEST] |context| is_used(context, Request::in_parts),
        "VIRTIO 1.2, 2.7.8 The Virtqueue Used Ring" =>
            "a request in the layout of real drivers completes with the head of its chain";
    "requests.written-length" Must [REQUEST] written_length,
        "VIRTIO 1.2, 2.7.8.2 Device Requirements: The Virtqueue Used Ring" =>
            "the device \"MUST write at least len bytes\" to its writable buffers, so `len` is never larger than these";
    "requests.chain-of-two" Must [REQUEST] |context| is_used(context, Request::in_two),
        FRAMING =>
            "\"The device MUST NOT make assumptions about the particular arrangement of descriptors\": a request in \
             two descriptors completes on any device";
    "requests.chain-of-many" Must [REQUEST] |context| is_used(context, Request::in_many),
        FRAMING => "a request completes even if its descriptors end in the middle of its fields";
    "requests.indirect-table" Must [REQUEST, INDIRECT_OFFERED] indirect_table,
        "VIRTIO 1.2, 2.7.5.3.2 Device Requirements: Indirect Descriptors" =>
            "with INDIRECT_DESC a request of any device may be in an indirect table";
    "requests.goes-around" Must [REQUEST] goes_around,
        "VIRTIO 1.2, 2.7 Split Virtqueues" => "a ring of any device continues at index 0 after its last entry";
    "requests.offered-before-start" Must [REQUEST] offered_before_start,
        STATES => "requests that were made available before the ring started complete after the first kick";
    "requests.kick-before-enable" Must [REQUEST, PROTOCOL] kick_before_enable,
        STATES =>
            "a ring may be kicked before it is enabled: requests made available in between complete without another \
             kick";
    "requests.kick-while-disabled" Must [REQUEST, PROTOCOL] kick_while_disabled,
        STATES =>
            "a ring that is disabled and enabled again completes the requests made available meanwhile, without \
             another kick";
}

/// A device whose rings run, up to the one that its requests go by.
struct Opened {
    link: Link,
    guest: Guest,
    ring: SplitRing,
    /// The rings before it; their descriptors stay open.
    _before: Vec<SplitRing>,
    request: Request,
    timeout: Duration,
}

/// A device whose rings run but the last, which is as far as `start` brings it.
fn open(context: &mut Context<'_>, start: impl FnOnce(&SplitRing, &mut Link) -> Outcome) -> Outcome<Opened> {
    let request = context.device.and_then(|device| Request::of(device, context.facts));
    let Some(request) = request else { return Stop::skip("the suite has no request for this device") };
    let mut link = context.open_device()?;
    let mut guest = Guest::new()?;
    guest.share(&mut link)?;
    let mut before = Vec::new();
    for index in 0..request.queue {
        let ring = SplitRing::new(&mut guest, index, ENTRIES)?;
        ring.start(&mut link)?;
        before.push(ring);
    }
    let ring = SplitRing::new(&mut guest, request.queue, ENTRIES)?;
    start(&ring, &mut link)?;
    Ok(Opened { link, guest, ring, _before: before, request, timeout: context.timeout() })
}

impl Opened {
    /// Puts a chain into the table, from `first` on, and shows it to the device.
    fn offer(&mut self, first: u16, chain: &[Descriptor]) {
        let words: Vec<_> = chain.iter().map(ToString::to_string).collect();
        let Self { link, ring, request, .. } = self;
        link.done(format!("ring {}: {} is made available: [{}]", ring.index, request.what, words.join(", ")));
        ring.put_chain(first, chain);
        ring.offer(first);
        ring.publish();
    }

    fn kick(&self) -> Outcome {
        self.link.done(format!("ring {}: kick", self.ring.index));
        self.ring.kick()
    }

    /// Waits for the chain with this head.
    fn complete(&mut self, head: u16) -> Outcome<Used> {
        let used = self.ring.wait_used(&mut self.link, self.timeout)?;
        self.link.note(format!("ring {}: used head {}, {} bytes written", self.ring.index, used.head, used.written));
        if used.head != u32::from(head) {
            return Stop::fail(format!("the used ring has head {}, but {head} was made available", used.head));
        }
        Ok(used)
    }
}

fn is_used(context: &mut Context<'_>, layout: fn(&Request, &mut Guest) -> Vec<Descriptor>) -> Outcome {
    let mut opened = open(context, SplitRing::start)?;
    let chain = layout(&opened.request, &mut opened.guest);
    // Not from 0 on, so that a device that takes the place in the ring for the head is found.
    opened.offer(3, &chain);
    opened.kick()?;
    opened.complete(3).map(drop)
}

fn written_length(context: &mut Context<'_>) -> Outcome {
    let mut opened = open(context, SplitRing::start)?;
    let chain = opened.request.in_parts(&mut opened.guest);
    opened.offer(0, &chain);
    opened.kick()?;
    let (written, room) = (opened.complete(0)?.written, opened.request.writable_bytes());
    if written <= room {
        return Ok(());
    }
    Stop::fail(format!("the used length is {written}, but the request has only {room} writable bytes"))
}

fn indirect_table(context: &mut Context<'_>) -> Outcome {
    let mut opened = open(context, SplitRing::start)?;
    let chain = opened.request.in_parts(&mut opened.guest);
    let table: Vec<u8> = chained(0, &chain).iter().flat_map(|one| one.encode()).collect();
    let table = Descriptor::indirect(opened.guest.put(&table), size(chain.len()));
    opened.offer(5, &[table]);
    opened.kick()?;
    opened.complete(5).map(drop)
}

fn goes_around(context: &mut Context<'_>) -> Outcome {
    let mut opened = open(context, SplitRing::start)?;
    let chain = opened.request.in_parts(&mut opened.guest);
    for time in 0..2 * ENTRIES + 3 {
        // Chains go over the end of the table, too.
        let first = time * 5 % ENTRIES;
        let linked = chain_from(first, &chain);
        for (place, descriptor) in &linked {
            opened.ring.put(*place, *descriptor);
        }
        opened.ring.offer(first);
        opened.ring.publish();
        opened.ring.kick()?;
        opened.complete(first)?;
    }
    Ok(())
}

/// Descriptors at places of a table that has [`ENTRIES`].
fn chain_from(first: u16, chain: &[Descriptor]) -> Vec<(u16, Descriptor)> {
    let places = (first..).map(|place| place % ENTRIES);
    let linked = chained(first, chain).into_iter().map(|one| Descriptor { next: one.next % ENTRIES, ..one });
    places.zip(linked).collect()
}

fn offered_before_start(context: &mut Context<'_>) -> Outcome {
    let mut opened = open(context, SplitRing::place)?;
    let chain = opened.request.in_parts(&mut opened.guest);
    opened.offer(0, &chain);
    opened.ring.connect(&mut opened.link)?;
    if opened.link.offered & feature::PROTOCOL_FEATURES != 0 {
        opened.ring.enable(&mut opened.link, true)?;
    }
    opened.kick()?;
    opened.complete(0).map(drop)
}

/// Kicks a ring that is disabled, gives the backend the time to see it, and enables it without another kick. A backend may have
/// processed it before: "the back-end must process the ring without causing any side effects", which other rules look at.
fn kick_then_enable(mut opened: Opened) -> Outcome {
    let chain = opened.request.in_parts(&mut opened.guest);
    opened.offer(0, &chain);
    opened.kick()?;
    opened.ring.is_quiet_for(TAKES_KICK_WITHIN);
    opened.link.features()?;
    opened.ring.enable(&mut opened.link, true)?;
    opened.complete(0).map(drop)
}

fn kick_before_enable(context: &mut Context<'_>) -> Outcome {
    let opened = open(context, |ring, link| {
        ring.place(link)?;
        ring.connect(link)
    })?;
    kick_then_enable(opened)
}

fn kick_while_disabled(context: &mut Context<'_>) -> Outcome {
    let opened = open(context, |ring, link| {
        ring.start(link)?;
        ring.enable(link, false)
    })?;
    kick_then_enable(opened)
}

//! Rings that no driver lays out. A guest can: it is not trusted. A backend may signal an error, ignore or close; it must
//! go on serving.

use std::os::fd::AsFd as _;
use std::time::Duration;

use super::prelude::*;
use crate::check::disk::{pattern, size};
use crate::check::guest::Guest;
use crate::check::packed_ring::{AVAIL, PackedRing};
use crate::check::process::wait_until;
use crate::check::ring::{Descriptor, INDIRECT, NEXT, SplitRing, WRITE};
use crate::memory::SharedFile;

const HARM: Need = Need::Harm;
const DESCRIPTORS: &str = "VIRTIO 1.2, 2.7.5 The Virtqueue Descriptor Table";
const AVAILABLE: &str = "VIRTIO 1.2, 2.7.6 The Virtqueue Available Ring";
const TABLES: &str = "VIRTIO 1.2, 2.7.5.3 Indirect Descriptors";
const PACKED: Need = Need::Feature(feature::RING_PACKED, "VIRTIO_F_RING_PACKED");
const PACKED_RINGS: &str = "VIRTIO 1.2, 2.8 Packed Virtqueues";
const FRAMING: &str = "VIRTIO 1.2, 2.7.4 Message Framing";
const MEMORY: &str = "Memory access";
const SURVIVES: &str = "a guest writes its rings freely; no content of them may end the backend";
const CUT: &str =
    "a frontend can truncate the file that it shares as memory; the SIGBUS that follows must not end the backend";
const WAITS: &str =
    "a frontend may never read its calls; a backend that blocks on a full descriptor stops serving others";
/// Entries of the rings: as many as every device takes.
const ENTRIES: u16 = 64;
/// How long a backend is given to do something about a ring.
const REACTS_WITHIN: Duration = Duration::from_millis(40);

cases! {
    "hostile.chain-loops-at-once" Must [HARM] |context| chain(context, &[(0, piece(NEXT, 0))]),
        DESCRIPTORS => SURVIVES;
    "hostile.chain-loops" Must [HARM] |context| chain(context, &[(0, piece(NEXT, 1)), (1, piece(NEXT, 0))]),
        DESCRIPTORS => SURVIVES;
    "hostile.chain-loops-writable" Must [HARM]
        |context| chain(context, &[(0, piece(NEXT, 1)), (1, piece(NEXT | WRITE, 2)), (2, piece(NEXT | WRITE, 1))]),
        DESCRIPTORS => SURVIVES;
    "hostile.next-beyond-table" Must [HARM] |context| chain(context, &[(0, piece(NEXT, 5000))]),
        DESCRIPTORS => SURVIVES;
    "hostile.all-flags" Must [HARM] |context| chain(context, &[(0, piece(u16::MAX, 1))]),
        DESCRIPTORS => SURVIVES;
    "hostile.head-beyond-table" Must [HARM] head_beyond_table,
        AVAILABLE => SURVIVES;
    "hostile.index-jumps" Must [HARM] |context| jump(context, 30000),
        AVAILABLE => SURVIVES;
    "hostile.index-goes-back" Must [HARM] |context| jump(context, u16::MAX),
        AVAILABLE => SURVIVES;
    "hostile.same-head-twice" Must [HARM] same_head_twice,
        AVAILABLE => SURVIVES;
    "hostile.address-outside" Must [HARM] |context| place(context, 1 << 45, 512),
        MEMORY => SURVIVES;
    "hostile.address-overflows" Must [HARM] |context| place(context, u64::MAX - 10, 512),
        MEMORY => SURVIVES;
    "hostile.length-largest" Must [HARM] |context| place(context, 0, u32::MAX),
        MEMORY => SURVIVES;
    "hostile.length-over-the-end" Must [HARM] |context| place(context, Guest::BYTES - 16, 4096),
        MEMORY => SURVIVES;
    "hostile.length-zero" Must [HARM] |context| place(context, 0, 0),
        DESCRIPTORS => SURVIVES;
    "hostile.nothing-to-write" Must [HARM] |context| chain(context, &[(0, piece(0, 0))]),
        FRAMING => SURVIVES;
    "hostile.nothing-to-read" Must [HARM] |context| chain(context, &[(0, piece(WRITE, 0))]),
        FRAMING => SURVIVES;
    "hostile.write-before-read" Must [HARM]
        |context| chain(context, &[(0, piece(WRITE | NEXT, 1)), (1, piece(NEXT, 2)), (2, piece(WRITE, 0))]),
        FRAMING => SURVIVES;
    "hostile.header-of-a-byte" Must [HARM] header_of_a_byte,
        FRAMING => SURVIVES;
    "hostile.table-outside" Must [HARM] |context| chain(context, &[(0, Descriptor::indirect(1 << 45, 4))]),
        TABLES => SURVIVES;
    "hostile.table-over-the-end" Must [HARM]
        |context| chain(context, &[(0, Descriptor::indirect(Guest::BYTES - 16, 64))]),
        TABLES => SURVIVES;
    "hostile.table-of-odd-size" Must [HARM]
        |context| chain(context, &[(0, Descriptor { bytes: 33, ..Descriptor::indirect(0x8000, 0) })]),
        TABLES => SURVIVES;
    "hostile.table-empty" Must [HARM] |context| chain(context, &[(0, Descriptor::indirect(0x8000, 0))]),
        TABLES => SURVIVES;
    "hostile.table-largest" Must [HARM]
        |context| chain(context, &[(0, Descriptor { bytes: 0xffff_fff0, ..Descriptor::indirect(0x8000, 0) })]),
        TABLES => SURVIVES;
    "hostile.table-and-next" Must [HARM]
        |context| chain(context, &[(0, TABLE_AND_NEXT), (1, piece(WRITE, 0))]),
        TABLES => SURVIVES;
    "hostile.table-in-table" Must [HARM] |context| table(context, &[piece(INDIRECT, 0)]),
        TABLES => SURVIVES;
    "hostile.table-in-itself" Must [HARM]
        |context| table(context, &[Descriptor { address: TABLE, bytes: 16, flags: INDIRECT, next: 0 }]),
        TABLES => SURVIVES;
    "hostile.table-loops" Must [HARM] |context| table(context, &[piece(NEXT, 1), piece(NEXT, 0)]),
        TABLES => SURVIVES;
    "hostile.table-next-beyond" Must [HARM] |context| table(context, &[piece(NEXT, 5000)]),
        TABLES => SURVIVES;
    "hostile.table-longer-than-ring" Must [HARM] |context| table(context, &vec![piece(NEXT, 1); 1000]),
        TABLES => SURVIVES;
    "hostile.buffer-is-the-used-ring" Must [HARM] |context| onto_itself(context, |address| address.used),
        MEMORY => SURVIVES;
    "hostile.buffer-is-the-descriptors" Must [HARM] |context| onto_itself(context, |address| address.descriptor),
        MEMORY => SURVIVES;
    "hostile.buffer-is-the-available-ring" Must [HARM] |context| onto_itself(context, |address| address.available),
        MEMORY => SURVIVES;
    "hostile.ring-of-noise" Must [HARM] ring_of_noise,
        DESCRIPTORS => SURVIVES;
    "hostile.request-of-noise" Must [HARM] request_of_noise,
        FRAMING => SURVIVES;
    "hostile.call-is-full" Must [HARM] call_is_full,
        "VHOST_USER_SET_VRING_CALL" => WAITS;
    "hostile.call-is-a-full-pipe" Must [HARM] call_is_a_full_pipe,
        "VHOST_USER_SET_VRING_CALL" => WAITS;
    "hostile.packed-endless-chain" Must [PACKED, HARM] packed_endless_chain,
        PACKED_RINGS => SURVIVES;
    "hostile.packed-table-wild" Must [PACKED, HARM] packed_table_wild,
        PACKED_RINGS => SURVIVES;
    "hostile.packed-noise" Must [PACKED, HARM] packed_noise,
        PACKED_RINGS => SURVIVES;
    "hostile.memory-cut-under-buffer" Must [HARM] |context| cut(context, CUT_AT),
        MEMORY => CUT;
    "hostile.memory-cut-under-ring" Must [HARM] |context| cut(context, 0),
        MEMORY => CUT;
}

/// The place of tables of descriptors.
const TABLE: u64 = 0x10_0000;
/// The end of memory after it was cut, if the rings stay.
const CUT_AT: u64 = 0x20_0000;

/// A table, and a descriptor after it.
const TABLE_AND_NEXT: Descriptor = Descriptor { address: 0x8000, bytes: 16, flags: INDIRECT | NEXT, next: 1 };

/// A small piece of memory that is there.
const fn piece(flags: u16, next: u16) -> Descriptor {
    Descriptor { address: 0x8_0000, bytes: 64, flags, next }
}

/// A session whose rings all run; requests of the driver's go to `ring`.
struct Rings {
    link: Link,
    guest: Guest,
    rings: Vec<SplitRing>,
    used: usize,
}

impl Rings {
    fn open(context: &mut Context<'_>, guest: Guest) -> Outcome<Self> {
        let mut link = context.open_device()?;
        let mut guest = guest;
        guest.share(&mut link)?;
        let queues = u32::try_from(context.facts.queues.clamp(1, 4)).unwrap_or(1);
        let rings = (0..queues).map(|index| SplitRing::new(&mut guest, index, ENTRIES));
        let rings = rings.collect::<Outcome<Vec<_>>>()?;
        for ring in &rings {
            ring.start(&mut link)?;
        }
        let used = match context.device {
            // What a guest sends goes by the second ring; the first is for what it receives, or for what is urgent.
            Some(DeviceKind::Net | DeviceKind::Vsock | DeviceKind::Fs) if rings.len() > 1 => 1,
            _ => 0,
        };
        Ok(Self { link, guest, rings, used })
    }

    fn ring(&mut self) -> &mut SplitRing {
        &mut self.rings[self.used]
    }

    /// Shows the backend what was offered, waits until it does something about it, and whether it lives then.
    fn survived(mut self, context: &mut Context<'_>, what: &str) -> Outcome {
        self.link.done(format!("ring {}: {what}", self.used));
        self.ring().publish();
        self.ring().kick()?;
        self.react();
        context.survives_messages(self.link)
    }

    /// Waits until the backend uses something, sends something, or closes; or a while.
    fn react(&mut self) {
        let Self { link, rings, used, .. } = self;
        let ring = &rings[*used];
        wait_until(REACTS_WITHIN, || {
            ring.used_index() != ring.taken || link.channel().is_readable(Duration::ZERO).unwrap_or(true)
        });
    }
}

fn rings(context: &mut Context<'_>) -> Outcome<Rings> {
    Rings::open(context, Guest::new()?)
}

/// Offers the chain at 0 of these descriptors.
fn chain(context: &mut Context<'_>, descriptors: &[(u16, Descriptor)]) -> Outcome {
    let mut rings = rings(context)?;
    for (place, descriptor) in descriptors {
        rings.ring().put(*place, *descriptor);
    }
    rings.ring().offer(0);
    let words: Vec<_> = descriptors.iter().map(|(place, descriptor)| format!("{place}: {descriptor}")).collect();
    rings.survived(context, &format!("the chain at 0 of [{}] is made available", words.join(", ")))
}

/// Offers a table of these descriptors.
fn table(context: &mut Context<'_>, descriptors: &[Descriptor]) -> Outcome {
    let mut rings = rings(context)?;
    let bytes: Vec<u8> = descriptors.iter().flat_map(|descriptor| descriptor.encode()).collect();
    rings.guest.write(TABLE, &bytes);
    rings.ring().put(0, Descriptor::indirect(TABLE, size(descriptors.len())));
    rings.ring().offer(0);
    let first = &descriptors[..descriptors.len().min(3)];
    rings.survived(
        context,
        &format!("a table of {} descriptors, first {first:x?}, is made available", descriptors.len()),
    )
}

fn head_beyond_table(context: &mut Context<'_>) -> Outcome {
    let mut rings = rings(context)?;
    rings.ring().offer(60000);
    rings.survived(context, "head 60000 of 64 is made available")
}

fn jump(context: &mut Context<'_>, index: u16) -> Outcome {
    let mut rings = rings(context)?;
    rings.ring().put(0, piece(WRITE, 0));
    rings.ring().offered = index;
    rings.survived(context, &format!("the available index goes from 0 to {index}"))
}

fn same_head_twice(context: &mut Context<'_>) -> Outcome {
    let mut rings = rings(context)?;
    let ring = rings.ring();
    ring.put_chain(0, &[Descriptor::readable(0x8_0000, 16), Descriptor::writable(0x9_0000, 513)]);
    for _ in 0..ENTRIES {
        ring.offer(0);
    }
    rings.survived(context, "the same head is made available 64 times at once")
}

/// A request whose data is at this place.
fn place(context: &mut Context<'_>, address: u64, bytes: u32) -> Outcome {
    let mut rings = rings(context)?;
    let chain =
        [Descriptor::readable(0x8_0000, 16), Descriptor::writable(address, bytes), Descriptor::writable(0x9_0000, 1)];
    rings.ring().put_chain(0, &chain);
    rings.ring().offer(0);
    rings.survived(context, &format!("a chain with {bytes:#x} bytes at {address:#x} is made available"))
}

fn header_of_a_byte(context: &mut Context<'_>) -> Outcome {
    let mut rings = rings(context)?;
    rings.ring().put_chain(0, &[Descriptor::readable(0x8_0000, 1), Descriptor::writable(0x9_0000, 1)]);
    rings.ring().offer(0);
    rings.survived(context, "a request of one byte is made available")
}

/// A request whose data the device writes over the ring itself.
fn onto_itself(context: &mut Context<'_>, part: fn(&VringAddress) -> u64) -> Outcome {
    let mut rings = rings(context)?;
    let region = rings.guest.region(0);
    let ring = rings.ring();
    let address = part(&ring.address()) - region.user_address + region.guest_address;
    let chain =
        [Descriptor::readable(0x8_0000, 16), Descriptor::writable(address, 512), Descriptor::writable(0x9_0000, 1)];
    ring.put_chain(0, &chain);
    ring.offer(0);
    rings.survived(context, "a read over the ring itself is made available")
}

fn ring_of_noise(context: &mut Context<'_>) -> Outcome {
    let mut rings = rings(context)?;
    let ring = rings.ring();
    let noise = pattern(7, usize::from(ring.size) * 16);
    for (place, bytes) in (0..ring.size).zip(noise.chunks_exact(16)) {
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        // Addresses and links that are plausible lead further than those that are refused at once.
        let descriptor = Descriptor {
            address: u64::from(field(0)) * 64,
            bytes: u32::from(field(2)),
            flags: field(4) & (NEXT | WRITE | INDIRECT),
            next: field(6) % (ring.size + 8),
        };
        ring.put(place, descriptor);
    }
    for head in 0..ring.size {
        // What a disk finds there as a request is mostly zeros: a read.
        ring.offer(head);
    }
    rings.survived(context, "a ring of random descriptors is made available")
}

fn request_of_noise(context: &mut Context<'_>) -> Outcome {
    let mut rings = rings(context)?;
    let ring = rings.ring();
    for place in 0..20_u16 {
        ring.put_chain(
            3 * place,
            &[
                Descriptor::readable(0x8_0000 + u64::from(place) * 64, 64),
                Descriptor::writable(0x10_0000 + u64::from(place) * 4096, 4096),
                Descriptor::writable(0x9_0000 + u64::from(place), 1),
            ],
        );
        ring.offer(3 * place);
    }
    for place in 0..20 {
        let mut noise = pattern(1000 + place, 64);
        // Of a disk's requests only those that do not write.
        noise[0] |= 0x40;
        rings.guest.write(0x8_0000 + place * 64, &noise);
    }
    rings.survived(context, "20 requests of random bytes are made available")
}

/// Cuts the file of the memory short, then makes a request whose data lay there.
fn cut(context: &mut Context<'_>, bytes: u64) -> Outcome {
    let file = tempfile::tempfile()?;
    file.set_len(Guest::BYTES)?;
    let region = MemoryRegion { guest_address: 0, size: Guest::BYTES, user_address: 1 << 40, mmap_offset: 0 };
    let guest = Guest::with_mapped(vec![(region, SharedFile::from_peer(file.try_clone()?.into()))])?;
    let mut rings = Rings::open(context, guest)?;
    let chain = [
        Descriptor::readable(0x8_0000, 16),
        Descriptor::writable(CUT_AT + 4096, 512),
        Descriptor::writable(0x9_0000, 1),
    ];
    rings.ring().put_chain(0, &chain);
    rings.ring().offer(0);
    rings.ring().publish();
    rings.link.done(format!("the memory's file is truncated to {bytes:#x} bytes"));
    file.set_len(bytes)?;
    rings.ring().kick()?;
    // What was cut can't be looked at from here either.
    rings.link.channel().is_readable(REACTS_WITHIN)?;
    context.survives_messages(rings.link)
}

fn call_is_full(context: &mut Context<'_>) -> Outcome {
    let call = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).map_err(std::io::Error::from)?;
    rustix::io::write(&call, &(u64::MAX - 1).to_ne_bytes()).map_err(std::io::Error::from)?;
    calls_on(context, call.as_fd(), "a call on an eventfd that is full")
}

fn call_is_a_full_pipe(context: &mut Context<'_>) -> Outcome {
    let (_reader, writer) = std::io::pipe()?;
    let flags = rustix::fs::fcntl_getfl(&writer).map_err(std::io::Error::from)?;
    rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).map_err(std::io::Error::from)?;
    while rustix::io::write(&writer, &[0; 4096]).is_ok() {}
    rustix::fs::fcntl_setfl(&writer, flags).map_err(std::io::Error::from)?;
    calls_on(context, writer.as_fd(), "a call on a pipe that is full")
}

/// Makes requests whose calls are never read: a backend that blocks on them stops.
fn calls_on(context: &mut Context<'_>, call: std::os::fd::BorrowedFd<'_>, what: &str) -> Outcome {
    let mut rings = rings(context)?;
    let index = rings.ring().small_index();
    let fds = [call];
    rings.link.send(&SetVringCall(VringFile::with_descriptor(index)), &fds)?;
    rings.ring().put_chain(0, &[Descriptor::readable(0x8_0000, 16), Descriptor::writable(0x9_0000, 513)]);
    rings.ring().offer(0);
    rings.survived(context, what)
}

/// A session of any device with a packed ring.
fn packed(context: &mut Context<'_>) -> Outcome<(Link, PackedRing)> {
    let mut link = context.open()?;
    let features = usual_features(link.offered) | feature::RING_PACKED;
    link.require(&SetFeatures(features), &[])?;
    let mut guest = Guest::new()?;
    guest.share(&mut link)?;
    let ring = PackedRing::new(&mut guest, 64)?;
    ring.start(&mut link)?;
    Ok((link, ring))
}

fn packed_endless_chain(context: &mut Context<'_>) -> Outcome {
    let (link, ring) = packed(context)?;
    for place in 0..ring.size {
        ring.put(place, Descriptor { flags: AVAIL | NEXT, ..Descriptor::readable(0x8_0000, 64) }, 0);
    }
    link.done("packed ring: every descriptor has NEXT");
    ring.kick()?;
    context.survives_rings(link)
}

fn packed_table_wild(context: &mut Context<'_>) -> Outcome {
    let (link, ring) = packed(context)?;
    for (place, bytes) in [(0, u32::MAX), (1, 0), (2, 33)] {
        ring.put(place, Descriptor { address: 1 << 45, bytes, flags: AVAIL | INDIRECT, next: 0 }, place);
    }
    link.done("packed ring: tables outside guest memory");
    ring.kick()?;
    context.survives_rings(link)
}

fn packed_noise(context: &mut Context<'_>) -> Outcome {
    let (link, ring) = packed(context)?;
    let noise = pattern(71, usize::from(ring.size) * 16);
    for (place, bytes) in (0..ring.size).zip(noise.chunks_exact(16)) {
        let number = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let flags = AVAIL | number(4) & (NEXT | WRITE | INDIRECT);
        let descriptor = Descriptor { address: u64::from(number(0)) * 64, bytes: number(2).into(), flags, next: 0 };
        ring.put(place, descriptor, number(6));
    }
    link.done("packed ring: random descriptors");
    ring.kick()?;
    context.survives_rings(link)
}

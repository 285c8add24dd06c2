//! Packed rings.

use std::time::Duration;

use super::prelude::*;
use crate::check::disk::{Disk, Setup, kind, pattern, require_status, same_bytes, size, status};
use crate::check::guest::Guest;
use crate::check::packed_ring::{EVENT_DISABLE, PackedRing};
use crate::check::ring::Descriptor;
use crate::protocol::PackedBase;

const DATA: Need = Need::DataPath;
const PACKED: Need = Need::Feature(feature::RING_PACKED, "VIRTIO_F_RING_PACKED");
const ACK: Need = Need::Protocol(ProtocolFeatures::REPLY_ACK);
const BASE: &str = "Vring descriptor indices for packed virtqueues";
const START: PackedBase = PackedBase::START;
const SECTION: &str = "VIRTIO 1.2, 2.8 Packed Virtqueues";

cases! {
    "data.packed-write-read-back" Must [DATA, PACKED, Need::Writes] write_read_back,
        SECTION => "with RING_PACKED the backend serves requests through packed rings";
    "data.packed-goes-around" Must [DATA, PACKED] |context| goes_around(context, 16),
        SECTION => "the wrap counters flip at the end of the ring, also in the middle of a chain";
    "data.packed-any-size" Must [DATA, PACKED] |context| goes_around(context, 13),
        SECTION => "a packed ring may have any size up to 32768, not only powers of 2";
    "data.packed-largest" Should [DATA, PACKED] |context| goes_around(context, 1024),
        SECTION => "QEMU's largest ring works";
    "data.packed-indirect" Must
        [DATA, PACKED, Need::Feature(feature::RING_INDIRECT_DESC, "VIRTIO_F_INDIRECT_DESC")]
        indirect,
        "VIRTIO 1.2, 2.8 Packed Virtqueues, Indirect Flag: Scatter-Gather Support" =>
            "an indirect table is read in its order, without NEXT";
    "data.packed-written-length" Should [DATA, PACKED] written_length,
        SECTION => "the used descriptor has the number of bytes that the device wrote";
    "data.packed-stop-and-go-on" Must [DATA, PACKED] stop_and_go_on,
        "VHOST_USER_GET_VRING_BASE" => "the state of a packed ring has both indices and both wrap counters";
    "rings.packed-base-kept" Must [ACK, PACKED] |context| keeps_base(context, PackedBase { available: 5, used: 5, ..START }),
        BASE => "a packed ring continues at the indices and wrap counters from SET_VRING_BASE: 32 bits, not 16";
    "rings.packed-base-of-second-lap" Must [ACK, PACKED]
        |context| keeps_base(context, PackedBase { available: 9, available_wrap: false, used: 9, used_wrap: false }),
        BASE => "both wrap counters flip at the end of the ring, so SET_VRING_BASE has them at 0 as often as at 1";
    "rings.packed-base-at-start" Must [ACK, PACKED] |context| keeps_base(context, START),
        BASE => "a new packed ring begins at index 0 with both wrap counters at 1: SET_VRING_BASE sends 0x80008000";
    "data.packed-call-not-wanted" Should [DATA, PACKED] call_not_wanted,
        "VIRTIO 1.2, 2.8 Packed Virtqueues, Event Suppression Structure Format" =>
            "RING_EVENT_FLAGS_DISABLE in the driver event suppression area disables calls, RING_EVENT_FLAGS_ENABLE \
             enables them";
}

/// A disk with a packed ring that runs.
fn open(context: &mut Context<'_>, entries: u16) -> Outcome<(Disk, PackedRing)> {
    let setup = Setup { features: feature::RING_PACKED, start: false, ..Setup::default() };
    let mut disk = Disk::open_with(context, &setup)?;
    let ring = PackedRing::new(&mut disk.guest, entries)?;
    ring.start(&mut disk.link)?;
    Ok((disk, ring))
}

/// Has a request done, in the usual layout.
fn request(
    disk: &mut Disk,
    ring: &mut PackedRing,
    id: u16,
    kind: u32,
    data: Descriptor,
    timeout: Duration,
) -> Outcome<u32> {
    let header = Descriptor::readable(disk.header(kind, if kind == kind::OUT { disk.scratch } else { 0 }), 16);
    let chain = [header, data, Descriptor::writable(disk.status_at(), 1)];
    disk.link.done(format!("packed ring: request type {kind}, id {id}"));
    ring.send(id, &chain)?;
    let used = ring.wait_used(&mut disk.link, timeout)?;
    require_status(disk.status(), status::OK, "a request through a packed ring")?;
    Ok(used.written)
}

fn write_read_back(context: &mut Context<'_>) -> Outcome {
    let timeout = context.timeout();
    let (mut disk, mut ring) = open(context, 16)?;
    let (data, sector) = (disk.data_at(), disk.scratch);
    read_at(&mut disk, &mut ring, sector, timeout)?;
    let kept = disk.guest.read(data, 4096);
    for contents in [pattern(61, 4096), kept] {
        disk.guest.write(data, &contents);
        request(&mut disk, &mut ring, 0, kind::OUT, Descriptor::readable(data, 4096), timeout)?;
        disk.guest.write(data, &[0xee; 4096]);
        read_at(&mut disk, &mut ring, sector, timeout)?;
        same_bytes(&disk.guest.read(data, 4096), &contents, "the sectors written through a packed ring")?;
    }
    Ok(())
}

fn read_at(disk: &mut Disk, ring: &mut PackedRing, sector: u64, timeout: Duration) -> Outcome {
    let header = Descriptor::readable(disk.header(kind::IN, sector), 16);
    let data = Descriptor::writable(disk.data_at(), 4096);
    ring.send(1, &[header, data, Descriptor::writable(disk.status_at(), 1)])?;
    ring.wait_used(&mut disk.link, timeout)?;
    require_status(disk.status(), status::OK, "a read through a packed ring")
}

fn goes_around(context: &mut Context<'_>, entries: u16) -> Outcome {
    let timeout = context.timeout();
    let (mut disk, mut ring) = open(context, entries)?;
    let expected = {
        let data = Descriptor::writable(disk.data_at(), 512);
        request(&mut disk, &mut ring, 0, kind::IN, data, timeout)?;
        disk.guest.read(disk.data_at(), 512)
    };
    for time in 0..2 * entries {
        let data = disk.data_at();
        disk.guest.write(data, &[0xee; 512]);
        request(&mut disk, &mut ring, time % entries, kind::IN, Descriptor::writable(data, 512), timeout)?;
        same_bytes(&disk.guest.read(data, 512), &expected, "a read through a packed ring")?;
    }
    Ok(())
}

fn indirect(context: &mut Context<'_>) -> Outcome {
    let timeout = context.timeout();
    let (mut disk, mut ring) = open(context, 16)?;
    let header = Descriptor::readable(disk.header(kind::IN, 0), 16);
    let chain = [header, Descriptor::writable(disk.data_at(), 512), Descriptor::writable(disk.status_at(), 1)];
    let table: Vec<u8> = chain.iter().flat_map(|descriptor| descriptor.encode()).collect();
    // In a table of a packed ring the last field is the flags, and the one before it the id, which counts for nothing.
    let table: Vec<u8> =
        table.chunks_exact(16).flat_map(|entry| [&entry[..12], &[0, 0], &entry[12..14]].concat()).collect();
    let table = Descriptor::indirect(disk.guest.put(&table), size(chain.len()));
    ring.send(7, &[table])?;
    let used = ring.wait_used(&mut disk.link, timeout)?;
    require_status(disk.status(), status::OK, "a read in an indirect table")?;
    if used.head == 7 { Ok(()) } else { Stop::fail(format!("id 7 was made available, but id {} was used", used.head)) }
}

fn written_length(context: &mut Context<'_>) -> Outcome {
    let timeout = context.timeout();
    let (mut disk, mut ring) = open(context, 16)?;
    let data = Descriptor::writable(disk.data_at(), 512);
    match request(&mut disk, &mut ring, 0, kind::IN, data, timeout)? {
        513 => Ok(()),
        written => Stop::fail(format!("a read of 512 bytes has the used length {written}")),
    }
}

fn stop_and_go_on(context: &mut Context<'_>) -> Outcome {
    let timeout = context.timeout();
    let (mut disk, mut ring) = open(context, 16)?;
    let data = Descriptor::writable(disk.data_at(), 512);
    // The ring is passed in the fourth round.
    for _ in 0..8 {
        request(&mut disk, &mut ring, 0, kind::IN, data, timeout)?;
        let (base, expected) = (ring.stop(&mut disk.link)?, ring.base());
        if base != expected {
            return Stop::fail(format!("GET_VRING_BASE returned {base:#010x}, not {expected:#010x}"));
        }
        ring.start(&mut disk.link)?;
    }
    Ok(())
}

/// Starts a packed ring at a base, has nothing done, and stops it.
fn keeps_base(context: &mut Context<'_>, base: PackedBase) -> Outcome {
    let mut link = context.open()?;
    link.require(&SetFeatures(usual_features(link.offered) | feature::RING_PACKED), &[])?;
    let mut guest = Guest::new()?;
    guest.share(&mut link)?;
    let mut ring = PackedRing::new(&mut guest, 64)?;
    ring.start_at(base);
    ring.start(&mut link)?;
    let found = ring.stop(&mut link)?;
    if found == base.bits() {
        return Ok(());
    }
    let (given, found_bits) = (base.bits(), found);
    let found = PackedBase::from_bits(found);
    Stop::fail(format!(
        "SET_VRING_BASE set {given:#010x} ({base}), the ring had no requests, and GET_VRING_BASE returned \
         {found_bits:#010x} ({found})"
    ))
}

fn call_not_wanted(context: &mut Context<'_>) -> Outcome {
    let timeout = context.timeout();
    let (mut disk, mut ring) = open(context, 16)?;
    let data = Descriptor::writable(disk.data_at(), 512);
    ring.set_event_flags(EVENT_DISABLE);
    ring.call.take()?;
    request(&mut disk, &mut ring, 0, kind::IN, data, timeout)?;
    if ring.call.wait(Duration::from_millis(20))? {
        return Stop::fail("the driver set RING_EVENT_FLAGS_DISABLE, but a call came");
    }
    ring.set_event_flags(0);
    request(&mut disk, &mut ring, 0, kind::IN, data, timeout)?;
    if ring.call.wait(timeout)? {
        Ok(())
    } else {
        Stop::fail("the driver set RING_EVENT_FLAGS_ENABLE, but no call came")
    }
}

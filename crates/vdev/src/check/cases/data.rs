//! Requests to a disk: what each type does, and what the device returns for it.

use super::prelude::*;
use crate::check::disk::{DATA_BYTES, Disk, SECTOR, Setup, kind, on_scratch, pattern, require_status, size, status};
use crate::check::guest::Guest;
use crate::check::ring::{Descriptor, SplitRing};
use crate::protocol::frontend::SetVringEnable;

const DATA: Need = Need::DataPath;
const WRITES: Need = Need::Writes;
const OPERATION: &str = "VIRTIO 1.2, 5.2.6 Device Operation";
const REQUIREMENTS: &str = "VIRTIO 1.2, 5.2.6.2 Device Requirements: Device Operation";
const USED: &str = "VIRTIO 1.2, 2.7.8.2 Device Requirements: The Virtqueue Used Ring";
const STATES: &str = "Ring states";

cases! {
    "data.read" Must [DATA] read,
        OPERATION => "type 0 reads sectors and returns status OK";
    "data.write-read-back" Must [DATA, WRITES] write_read_back,
        OPERATION => "a read returns the data of the last write";
    "data.write-its-sectors-only" Must [DATA, WRITES] write_its_sectors_only,
        OPERATION => "a write changes only its own sectors";
    "data.large" Must [DATA, WRITES] large,
        OPERATION => "one descriptor of 256 KiB is one request";
    "data.flush" Must [DATA, Need::Feature(feature::blk::FLUSH, "VIRTIO_BLK_F_FLUSH")] flush,
        OPERATION => "a guest that flushes its writes waits for the status";
    "data.get-id" Should [DATA] get_id,
        OPERATION => "type 8 returns an identifier of 20 bytes and status OK";
    "data.unknown-type" Should [DATA] unknown_type,
        OPERATION =>
            "VIRTIO_BLK_S_UNSUPP is the status \"for a request unsupported by device\"; a guest then stops sending \
             that type";
    "data.read-out-of-range" Must [DATA] read_out_of_range,
        REQUIREMENTS => "a read of sectors beyond the end of the disk returns an error, never OK";
    "data.read-over-the-end" Must [DATA] read_over_the_end,
        REQUIREMENTS => "a request that ends beyond the disk returns an error";
    "data.write-out-of-range" Must [DATA, WRITES] write_out_of_range,
        REQUIREMENTS => "a write beyond the end must neither return OK nor extend the file";
    "data.sector-overflow" Must [DATA] sector_overflow,
        REQUIREMENTS =>
            "a sector whose byte offset does not fit 64 bits is beyond the end of the disk, not at its start";
    "data.part-of-a-sector" Should [DATA] part_of_a_sector,
        "VIRTIO 1.2, 5.2.6.1 Driver Requirements: Device Operation" =>
            "the length of data is a multiple of 512; any other length must return an error";
    "data.write-to-read-only" Must [DATA, Need::Feature(feature::blk::RO, "VIRTIO_BLK_F_RO")] write_to_read_only,
        REQUIREMENTS =>
            "a device that offers RO \"MUST set the status byte to VIRTIO_BLK_S_IOERR for a write request\", and \
             \"MUST NOT write any data\"";
    "data.discard" Should [DATA, WRITES, Need::Feature(feature::blk::DISCARD, "VIRTIO_BLK_F_DISCARD")] discard,
        OPERATION => "with DISCARD the device accepts type 11";
    "data.write-zeroes" Must
        [DATA, WRITES, Need::Feature(feature::blk::WRITE_ZEROES, "VIRTIO_BLK_F_WRITE_ZEROES")]
        write_zeroes,
        OPERATION => "with WRITE_ZEROES type 13 fills sectors with zeros";
    "data.written-length-at-most" Must [DATA, WRITES] written_length_at_most,
        USED =>
            "the device \"MUST write at least len bytes\": if `len` is too large, a guest reads bytes that were never \
             written";
    "data.written-length-of-read" Should [DATA] written_length_of_read,
        USED => "`len` counts the bytes that the device wrote: data and status, 513 for a read of 512";
    "data.written-length-of-write" Should [DATA, WRITES] written_length_of_write,
        USED => "`len` counts the bytes that the device wrote: for a write, only the status";
    "data.many-at-once" Must [DATA, WRITES] many_at_once,
        USED => "all requests of a full ring complete, each once, in any order";
    "data.queues-at-once" Must [DATA, Need::Queues(2)] queues_at_once,
        "Multiple queue support" => "every queue serves requests";
    "data.disabled-from-the-start" Must [DATA, WRITES] disabled_from_the_start,
        STATES =>
            "a ring that was never enabled is processed \"without causing any side effects\": nothing is written";
    "data.disabled-later" Must [DATA, WRITES] disabled_later,
        STATES => "a ring that was disabled is processed \"without causing any side effects\": nothing is written";
    "data.enabled-again" Must [DATA] enabled_again,
        STATES => "a ring that is enabled again serves requests";
    "data.stopped" Must [DATA] stopped,
        STATES => "\"stopped: the back-end must not process the ring at all\"";
    "data.base-counts" Must [DATA] base_counts,
        "VHOST_USER_GET_VRING_BASE" =>
            "a migrated guest continues at this index: after 3 requests from index 0 on it is 3";
    "data.stop-and-go-on" Must [DATA] stop_and_go_on,
        STATES => "a ring that was stopped continues at its index and repeats no request";
    "data.start-elsewhere" Must [DATA] start_elsewhere,
        STATES => "after a reboot the ring has another address and size, and begins at index 0";
    "data.offered-before-start" Must [DATA] offered_before_start,
        STATES => "requests that were made available before the ring started complete after the first kick";
    "data.without-protocol-features" Must [DATA] without_protocol_features,
        STATES => "if bit 30 is not negotiated, \"the ring starts directly in the enabled state\"";
    "data.second-region" Must [DATA, WRITES] second_region,
        "Memory access" =>
            "\"Guest addresses map to the vhost memory region containing that guest address\", not only the first";
    "data.over-two-regions" Should [DATA] over_two_regions,
        "Memory access" => "memory that is contiguous for the guest may be two regions; a buffer may span both";
    "data.added-region" Must [DATA, Need::Protocol(ProtocolFeatures::CONFIGURE_MEM_SLOTS)] added_region,
        "VHOST_USER_ADD_MEM_REG" => "a buffer may be in memory that was hot-plugged";
    "data.removed-region" Must [DATA, Need::Protocol(ProtocolFeatures::CONFIGURE_MEM_SLOTS), Need::Harm] removed_region,
        "VHOST_USER_REM_MEM_REG" => "the backend does not write to memory that was unplugged";
}

fn read(context: &mut Context<'_>) -> Outcome {
    let mut disk = Disk::open(context)?;
    disk.read(0, 4096)?;
    let last = disk.capacity - 8;
    disk.read(last, 4096).map(drop)
}

fn write_read_back(context: &mut Context<'_>) -> Outcome {
    on_scratch(context, &Setup::default(), |disk| {
        let (at, bytes) = (disk.scratch, pattern(1, 8192));
        disk.write(at, &bytes)?;
        disk.require_contents(at, &bytes, "the written sectors")
    })
}

fn write_its_sectors_only(context: &mut Context<'_>) -> Outcome {
    on_scratch(context, &Setup::default(), |disk| {
        let (at, mut bytes) = (disk.scratch, pattern(2, 16 << 10));
        disk.write(at, &bytes)?;
        let inner = pattern(3, 512);
        disk.write(at + 9, &inner)?;
        bytes[9 * 512..10 * 512].copy_from_slice(&inner);
        disk.require_contents(at, &bytes, "the sectors around a write")
    })
}

fn large(context: &mut Context<'_>) -> Outcome {
    on_scratch(context, &Setup::default(), |disk| {
        let (at, bytes) = (disk.scratch, pattern(4, 256 << 10));
        disk.write(at, &bytes)?;
        disk.require_contents(at, &bytes, "256 KiB in one descriptor")
    })
}

fn flush(context: &mut Context<'_>) -> Outcome {
    let mut disk = Disk::open(context)?;
    let (found, _) = disk.request(kind::FLUSH, 0, None)?;
    require_status(found, status::OK, "a flush")
}

fn get_id(context: &mut Context<'_>) -> Outcome {
    let mut disk = Disk::open(context)?;
    let data = Descriptor::writable(disk.data_at(), 20);
    let (found, _) = disk.request(kind::GET_ID, 0, Some(data))?;
    require_status(found, status::OK, "GET_ID")
}

fn unknown_type(context: &mut Context<'_>) -> Outcome {
    let mut disk = Disk::open(context)?;
    let data = Descriptor::writable(disk.data_at(), 512);
    let (found, _) = disk.request(0x7fff_fff0, 0, Some(data))?;
    require_status(found, status::UNSUPP, "a request of type 0x7ffffff0")
}

/// A request that must fail, with a status that shows it.
fn fails(context: &mut Context<'_>, sector: impl Fn(&Disk) -> u64, bytes: u32, write: bool, what: &str) -> Outcome {
    let mut disk = Disk::open(context)?;
    let at = disk.data_at();
    let (kind, data) = match write {
        true => (kind::OUT, Descriptor::readable(at, bytes)),
        false => (kind::IN, Descriptor::writable(at, bytes)),
    };
    let sector = sector(&disk);
    let (found, _) = disk.request(kind, sector, Some(data))?;
    if found != status::UNSUPP {
        require_status(found, status::IOERR, what)?;
    }
    // The queue still works.
    disk.read(0, 512).map(drop)
}

fn read_out_of_range(context: &mut Context<'_>) -> Outcome {
    fails(context, |disk| disk.capacity, 512, false, "a read beyond the end")
}

fn read_over_the_end(context: &mut Context<'_>) -> Outcome {
    fails(context, |disk| disk.capacity - 1, 1024, false, "a read over the end")
}

fn write_out_of_range(context: &mut Context<'_>) -> Outcome {
    fails(context, |disk| disk.capacity.saturating_add(8), 512, true, "a write beyond the end")
}

fn sector_overflow(context: &mut Context<'_>) -> Outcome {
    // 2^55 sectors are 2^64 bytes.
    fails(context, |_| 1 << 55, 512, false, "a read of sector 2^55")
}

fn part_of_a_sector(context: &mut Context<'_>) -> Outcome {
    fails(context, |_| 0, 100, false, "a read of 100 bytes")
}

fn write_to_read_only(context: &mut Context<'_>) -> Outcome {
    fails(context, |disk| disk.scratch, 512, true, "a write to a read-only disk")
}

/// A range as DISCARD and WRITE_ZEROES have it.
fn range(disk: &Disk, sectors: u32) -> Descriptor {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&disk.scratch.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    disk.guest.write(disk.data_at(), &bytes);
    Descriptor::readable(disk.data_at(), 16)
}

fn discard(context: &mut Context<'_>) -> Outcome {
    on_scratch(context, &Setup::default(), |disk| {
        let range = range(disk, 64);
        let (found, _) = disk.request(kind::DISCARD, 0, Some(range))?;
        require_status(found, status::OK, "a discard")
    })
}

fn write_zeroes(context: &mut Context<'_>) -> Outcome {
    on_scratch(context, &Setup::default(), |disk| {
        let at = disk.scratch;
        disk.write(at, &pattern(5, 32 << 10))?;
        let range = range(disk, 64);
        let (found, _) = disk.request(kind::WRITE_ZEROES, 0, Some(range))?;
        require_status(found, status::OK, "a write of zeros")?;
        disk.require_contents(at, &[0; 32 << 10], "the zeroed sectors")
    })
}

fn written_length_at_most(context: &mut Context<'_>) -> Outcome {
    on_scratch(context, &Setup::default(), |disk| {
        let (sector, at) = (disk.scratch, disk.data_at());
        for (kind, data, most) in
            [(kind::IN, Descriptor::writable(at, 512), 513), (kind::OUT, Descriptor::readable(at, 512), 1)]
        {
            let (_, used) = disk.request(kind, sector, Some(data))?;
            if used.written > most {
                return Stop::fail(format!(
                    "the used length is {}, but the device can write only {most} bytes there",
                    used.written
                ));
            }
        }
        Ok(())
    })
}

fn written_length_of_read(context: &mut Context<'_>) -> Outcome {
    let mut disk = Disk::open(context)?;
    let data = Descriptor::writable(disk.data_at(), 512);
    let (_, used) = disk.request(kind::IN, 0, Some(data))?;
    if used.written == 513 {
        Ok(())
    } else {
        Stop::fail(format!("a read of 512 bytes has the used length {}, not 513", used.written))
    }
}

fn written_length_of_write(context: &mut Context<'_>) -> Outcome {
    on_scratch(context, &Setup::default(), |disk| {
        let data = Descriptor::readable(disk.data_at(), 512);
        let sector = disk.scratch;
        let (_, used) = disk.request(kind::OUT, sector, Some(data))?;
        if used.written == 1 {
            Ok(())
        } else {
            Stop::fail(format!("a write of 512 bytes has the used length {}, not 1", used.written))
        }
    })
}

/// Requests of one sector each, laid out in memory, to be made available all at once.
pub(super) struct Batch {
    headers: u64,
    statuses: u64,
}

impl Batch {
    /// Room for as many requests as a ring of this size takes.
    pub(super) fn new(guest: &mut Guest, ring: &SplitRing) -> Self {
        let count = u64::from(ring.size / 3);
        Self { headers: guest.take(16 * count, 16), statuses: guest.take(count, 16) }
    }

    /// How many requests a ring takes.
    pub(super) const fn count(ring: &SplitRing) -> u16 {
        ring.size / 3
    }

    /// Puts a request into the ring and offers it.
    pub(super) fn offer(&self, guest: &Guest, ring: &mut SplitRing, place: u16, kind: u32, sector: u64, data: u64) {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        let header = self.headers + 16 * u64::from(place);
        let status = self.statuses + u64::from(place);
        guest.write(header, &bytes);
        guest.write(status, &[status::UNWRITTEN]);
        let data = if kind == kind::IN { Descriptor::writable(data, 512) } else { Descriptor::readable(data, 512) };
        ring.put_chain(3 * place, &[Descriptor::readable(header, 16), data, Descriptor::writable(status, 1)]);
        ring.offer(3 * place);
    }

    /// The status of a request.
    pub(super) fn status(&self, guest: &Guest, place: u16) -> u8 {
        guest.read(self.statuses + u64::from(place), 1)[0]
    }

    /// Waits until these requests have been used, each once and with OK.
    pub(super) fn complete(&self, disk: &mut Disk, count: u16, timeout: std::time::Duration) -> Outcome {
        let mut is_done = vec![false; usize::from(count)];
        for _ in 0..count {
            let used = disk.ring.wait_used(&mut disk.link, timeout)?;
            let place = used.head / 3;
            match is_done.get_mut(place as usize) {
                Some(done) if !*done && used.head % 3 == 0 => *done = true,
                Some(true) => return Stop::fail(format!("the chain with head {} completed twice", used.head)),
                _ => {
                    return Stop::fail(format!("the used ring names head {}, which was not made available", used.head));
                }
            }
            let place = u16::try_from(place).unwrap_or(u16::MAX);
            require_status(self.status(&disk.guest, place), status::OK, "one request of many")?;
        }
        Ok(())
    }
}

fn many_at_once(context: &mut Context<'_>) -> Outcome {
    let timeout = context.timeout();
    on_scratch(context, &Setup { size: 256, ..Setup::default() }, |disk| {
        let batch = Batch::new(&mut disk.guest, &disk.ring);
        let count = Batch::count(&disk.ring);
        let bytes = pattern(6, usize::from(count) * 512);
        let data = disk.data_at();
        for kind in [kind::OUT, kind::IN] {
            disk.guest.write(data, if kind == kind::OUT { &bytes } else { &[0; 85 * 512] });
            for place in 0..count {
                let (sector, data) = (disk.scratch + u64::from(place), data + SECTOR * u64::from(place));
                batch.offer(&disk.guest, &mut disk.ring, place, kind, sector, data);
            }
            disk.ring.publish();
            disk.ring.kick()?;
            batch.complete(disk, count, timeout)?;
        }
        crate::check::disk::same_bytes(&disk.guest.read(data, bytes.len()), &bytes, "85 requests at once")
    })
}

fn queues_at_once(context: &mut Context<'_>) -> Outcome {
    let queues = u32::try_from(context.facts.queues.min(16)).unwrap_or(1);
    let timeout = context.timeout();
    let mut disk = Disk::open(context)?;
    let mut rings = vec![];
    for index in 1..queues {
        let ring = SplitRing::new(&mut disk.guest, index, 32)?;
        ring.start(&mut disk.link)?;
        rings.push(ring);
    }
    let mut batches = vec![];
    for ring in &mut rings {
        let batch = Batch::new(&mut disk.guest, ring);
        let data = disk.guest.take(512, 512);
        batch.offer(&disk.guest, ring, 0, kind::IN, 0, data);
        ring.publish();
        ring.kick()?;
        batches.push(batch);
    }
    for (ring, batch) in rings.iter_mut().zip(&batches) {
        ring.wait_used(&mut disk.link, timeout)?;
        require_status(batch.status(&disk.guest, 0), status::OK, &format!("a read by ring {}", ring.index))?;
    }
    disk.read(0, 512).map(drop)
}

/// Writes by a ring that is disabled; then looks at the disk by one that is enabled.
fn writes_nothing(disk: &mut Disk, bytes: &[u8]) -> Outcome {
    let before = pattern(7, bytes.len());
    disk.guest.write(disk.data_at(), bytes);
    let header = Descriptor::readable(disk.header(kind::OUT, disk.scratch), 16);
    let data = Descriptor::readable(disk.data_at(), size(bytes.len()));
    let status = Descriptor::writable(disk.status_at(), 1);
    disk.link.done("a write is made available");
    disk.ring.send(0, &[header, data, status])?;
    // It may be used without effect, or not at all; there is no other sign of its having been seen.
    disk.ring.is_quiet_for(std::time::Duration::from_millis(50));
    let was_used = disk.ring.used_index() != disk.ring.taken;
    disk.link.note(if was_used { "it completed" } else { "it did not complete within 50 ms" });
    disk.ring.stop(&mut disk.link)?;
    let mut enabled = SplitRing::new(&mut disk.guest, 0, 64)?;
    std::mem::swap(&mut disk.ring, &mut enabled);
    disk.ring.start(&mut disk.link)?;
    let sector = disk.scratch;
    disk.require_contents(sector, &before, "sectors that a disabled ring must not write")
}

fn disabled_from_the_start(context: &mut Context<'_>) -> Outcome {
    on_scratch(context, &Setup::default(), |disk| {
        let sector = disk.scratch;
        disk.write(sector, &pattern(7, 4096))?;
        disk.ring.stop(&mut disk.link)?;
        disk.link.require(&SetVringEnable(disk.ring.state(0)), &[])?;
        let disabled = SplitRing::new(&mut disk.guest, 0, 64)?;
        disabled.place(&mut disk.link)?;
        disabled.connect(&mut disk.link)?;
        disk.ring = disabled;
        writes_nothing(disk, &pattern(8, 4096))
    })
}

fn disabled_later(context: &mut Context<'_>) -> Outcome {
    on_scratch(context, &Setup::default(), |disk| {
        let sector = disk.scratch;
        disk.write(sector, &pattern(7, 4096))?;
        disk.link.require(&SetVringEnable(disk.ring.state(0)), &[])?;
        writes_nothing(disk, &pattern(8, 4096))
    })
}

fn enabled_again(context: &mut Context<'_>) -> Outcome {
    let mut disk = Disk::open(context)?;
    disk.read(0, 512)?;
    disk.ring.enable(&mut disk.link, false)?;
    disk.ring.enable(&mut disk.link, true)?;
    disk.read(0, 512).map(drop)
}

fn stopped(context: &mut Context<'_>) -> Outcome {
    let mut disk = Disk::open(context)?;
    disk.read(0, 512)?;
    disk.ring.stop(&mut disk.link)?;
    let header = Descriptor::readable(disk.header(kind::IN, 0), 16);
    let (data, status) = (Descriptor::writable(disk.data_at(), 512), Descriptor::writable(disk.status_at(), 1));
    disk.ring.send(0, &[header, data, status])?;
    disk.link.features()?;
    if disk.ring.is_quiet_for(std::time::Duration::from_millis(30)) {
        Ok(())
    } else {
        Stop::fail("a request of a stopped ring completed")
    }
}

fn base_counts(context: &mut Context<'_>) -> Outcome {
    let mut disk = Disk::open(context)?;
    for _ in 0..3 {
        disk.read(0, 512)?;
    }
    match disk.ring.stop(&mut disk.link)? {
        3 => Ok(()),
        base => Stop::fail(format!("after 3 requests from index 0 on, GET_VRING_BASE returned {base}, not 3")),
    }
}

fn stop_and_go_on(context: &mut Context<'_>) -> Outcome {
    let mut disk = Disk::open(context)?;
    for round in 0..3 {
        disk.read(0, 512)?;
        let base = disk.ring.stop(&mut disk.link)?;
        if base != u32::from(disk.ring.offered) {
            return Stop::fail(format!(
                "round {round}: after {} requests GET_VRING_BASE returned {base}",
                disk.ring.offered
            ));
        }
        disk.ring.start(&mut disk.link)?;
    }
    disk.read(0, 512)?;
    // Nothing is done twice.
    match disk.ring.take_used() {
        None => Ok(()),
        Some(used) => Stop::fail(format!("the chain with head {} completed twice", used.head)),
    }
}

fn start_elsewhere(context: &mut Context<'_>) -> Outcome {
    let mut disk = Disk::open(context)?;
    disk.read(0, 512)?;
    disk.ring.stop(&mut disk.link)?;
    disk.ring = SplitRing::new(&mut disk.guest, 0, 16)?;
    disk.ring.start(&mut disk.link)?;
    disk.read(0, 512).map(drop)
}

fn offered_before_start(context: &mut Context<'_>) -> Outcome {
    let mut disk = Disk::open_with(context, &Setup { start: false, ..Setup::default() })?;
    let header = Descriptor::readable(disk.header(kind::IN, 0), 16);
    let (data, at) = (Descriptor::writable(disk.data_at(), 512), Descriptor::writable(disk.status_at(), 1));
    disk.ring.put_chain(0, &[header, data, at]);
    disk.ring.offer(0);
    disk.ring.publish();
    disk.ring.start(&mut disk.link)?;
    disk.ring.kick()?;
    disk.complete(0)?;
    require_status(disk.status(), status::OK, "a read that was made available before the ring started")
}

fn without_protocol_features(context: &mut Context<'_>) -> Outcome {
    let setup = Setup { without: feature::PROTOCOL_FEATURES, start: false, ..Setup::default() };
    let mut disk = Disk::open_with(context, &setup)?;
    disk.ring.place(&mut disk.link)?;
    disk.ring.connect(&mut disk.link)?;
    disk.read(0, 512).map(drop)
}

fn second_region(context: &mut Context<'_>) -> Outcome {
    let setup = Setup { regions: &[(0, Guest::BYTES), (4 << 30, 1 << 20)], ..Setup::default() };
    on_scratch(context, &setup, |disk| {
        let bytes = pattern(9, 4096);
        let there = disk.guest.take_in(1, 4096, 4096);
        disk.guest.write(there, &bytes);
        let sector = disk.scratch;
        let (found, _) = disk.request(kind::OUT, sector, Some(Descriptor::readable(there, 4096)))?;
        require_status(found, status::OK, "a write from the second region")?;
        disk.require_contents(sector, &bytes, "the sectors written from the second region")
    })
}

fn over_two_regions(context: &mut Context<'_>) -> Outcome {
    let setup = Setup { regions: &[(0, Guest::BYTES), (Guest::BYTES, 1 << 20)], ..Setup::default() };
    let mut disk = Disk::open_with(context, &setup)?;
    let expected = disk.read(0, 8192)?;
    let there = Guest::BYTES - 4096;
    let (found, _) = disk.request(kind::IN, 0, Some(Descriptor::writable(there, 8192)))?;
    require_status(found, status::OK, "a read into two regions")?;
    crate::check::disk::same_bytes(&disk.guest.read(there, 8192), &expected, "a read into two regions")
}

/// A disk whose memory came by `ADD_MEM_REG`, and one more region.
fn with_slots(context: &mut Context<'_>) -> Outcome<(Disk, MemoryRegion)> {
    use std::os::fd::AsFd as _;
    let setup = Setup { protocol: ProtocolFeatures::CONFIGURE_MEM_SLOTS, start: false, ..Setup::default() };
    let mut disk = Disk::open_with(context, &setup)?;
    let region = disk.guest.add(4 << 30, DATA_BYTES)?;
    disk.link.require(&AddMemReg(SingleRegion(region)), &[disk.guest.file(1).as_fd()])?;
    disk.ring.start(&mut disk.link)?;
    Ok((disk, region))
}

fn added_region(context: &mut Context<'_>) -> Outcome {
    let (mut disk, region) = with_slots(context)?;
    let expected = disk.read(0, 4096)?;
    let (found, _) = disk.request(kind::IN, 0, Some(Descriptor::writable(region.guest_address, 4096)))?;
    require_status(found, status::OK, "a read into an added region")?;
    crate::check::disk::same_bytes(
        &disk.guest.read(region.guest_address, 4096),
        &expected,
        "a read into an added region",
    )
}

fn removed_region(context: &mut Context<'_>) -> Outcome {
    let (mut disk, region) = with_slots(context)?;
    disk.guest.write(region.guest_address, &[0xee; 512]);
    disk.link.require(&RemMemReg(SingleRegion(region)), &[])?;
    let header = Descriptor::readable(disk.header(kind::IN, 0), 16);
    let (data, at) = (Descriptor::writable(region.guest_address, 512), Descriptor::writable(disk.status_at(), 1));
    disk.link.done("a read into the removed region");
    disk.ring.send(0, &[header, data, at])?;
    disk.ring.is_quiet_for(std::time::Duration::from_millis(50));
    let written = disk.guest.read(region.guest_address, 512) != [0xee; 512];
    if written {
        return Stop::fail("the backend wrote to a removed region");
    }
    context.survives_rings(disk.link)
}

//! The same requests in other descriptors: "The device MUST NOT make assumptions about the particular arrangement of
//! descriptors."

use super::data::Batch;
use super::prelude::*;
use crate::check::disk::{
    Disk, SCRATCH_BYTES, Setup, kind, on_scratch, pattern, require_status, same_bytes, size, status,
};
use crate::check::ring::{Descriptor, INDIRECT, NEXT, WRITE, chained};

const DATA: Need = Need::DataPath;
const WRITES: Need = Need::Writes;
const INDIRECT_OFFERED: Need = Need::Feature(feature::RING_INDIRECT_DESC, "VIRTIO_F_INDIRECT_DESC");
const FRAMING: &str = "VIRTIO 1.2, 2.7.4.1 Device Requirements: Message Framing";
const TABLES: &str = "VIRTIO 1.2, 2.7.5.3.2 Device Requirements: Indirect Descriptors";
const SPLIT: &str = "VIRTIO 1.2, 2.7 Split Virtqueues";

cases! {
    "data.split-header" Must [DATA] split_header,
        FRAMING => "a header in two descriptors is a header";
    "data.header-byte-by-byte" Must [DATA] header_byte_by_byte,
        FRAMING => "a header in 16 descriptors is a header";
    "data.header-with-data" Must [DATA, WRITES] header_with_data,
        FRAMING => "a write may have its header and data in one descriptor";
    "data.status-with-data" Must [DATA] status_with_data,
        FRAMING => "a read may have its data and status in one descriptor";
    "data.many-descriptors" Must [DATA, WRITES] many_descriptors,
        FRAMING => "guests with scattered memory use a descriptor for each page";
    "data.odd-sizes" Must [DATA, WRITES] odd_sizes,
        FRAMING => "a descriptor may end in the middle of a sector";
    "data.unaligned-buffers" Must [DATA, WRITES] unaligned_buffers,
        FRAMING => "buffers begin at any address";
    "data.chain-backwards" Must [DATA] chain_backwards,
        SPLIT => "`next` may point anywhere in the table, not only at the next entry";
    "data.chain-over-the-end" Must [DATA] chain_over_the_end,
        SPLIT => "a chain may begin at the last entry and go on at the first";
    "data.whole-table" Must [DATA] whole_table,
        SPLIT => "one chain may use all descriptors of the ring";
    "data.indirect" Must [DATA, INDIRECT_OFFERED] indirect,
        TABLES => "with INDIRECT_DESC a request may be in an indirect table";
    "data.indirect-large" Must [DATA, WRITES, INDIRECT_OFFERED] indirect_large,
        TABLES => "indirect tables allow requests with many descriptors in a small ring";
    "data.indirect-after-direct" Must [DATA, INDIRECT_OFFERED] indirect_after_direct,
        TABLES =>
            "\"The device MUST handle the case of zero or more normal chained descriptors followed by a single \
             descriptor with flags&VIRTQ_DESC_F_INDIRECT\"";
    "data.indirect-ignores-write" Must [DATA, INDIRECT_OFFERED] indirect_ignores_write,
        TABLES =>
            "\"The device MUST ignore the write-only flag (flags&VIRTQ_DESC_F_WRITE) in the descriptor that refers to \
             an indirect table\"";
    "data.ring-of-2" Should [DATA, INDIRECT_OFFERED] |context| ring_of(context, 2),
        SPLIT => "a small ring works with requests in indirect tables";
    "data.ring-of-1" May [DATA, INDIRECT_OFFERED] |context| ring_of(context, 1),
        SPLIT => "the smallest ring works with requests in indirect tables";
    "data.ring-of-256" Must [DATA] |context| goes_around(context, 256),
        SPLIT => "the most common ring size works, also after the ring wraps";
    "data.ring-of-1024" Should [DATA] |context| goes_around(context, 1024),
        SPLIT => "QEMU's largest ring works, also after the ring wraps";
    "data.ring-of-4" Must [DATA] |context| goes_around(context, 4),
        SPLIT => "a ring that wraps at every other request works";
    "data.index-wraps" Must [DATA] index_wraps,
        SPLIT => "the index after 65535 is 0";
    "data.more-than-65536" Must [DATA] more_than_65536,
        SPLIT => "after 65536 requests every index was used once; reused indices are new requests";
}

/// Reads 4096 bytes of sector 0 with what `layout` makes of header, data and status; compares with an ordinary read.
fn reads(
    context: &mut Context<'_>,
    what: &str,
    layout: impl FnOnce(&mut Disk, u64, u64, u64) -> Outcome<(u16, Vec<Descriptor>)>,
) -> Outcome {
    let mut disk = Disk::open(context)?;
    let expected = disk.read(0, 4096)?;
    let data = disk.data_at();
    disk.guest.write(data, &[0xee; 4096]);
    let (header, at) = (disk.header(kind::IN, 0), disk.status_at());
    let (first, descriptors) = layout(&mut disk, header, data, at)?;
    for (place, descriptor) in (first..).zip(&descriptors) {
        disk.ring.put(place, *descriptor);
    }
    disk.link.done(format!("{what}: {} descriptors from {first} on", descriptors.len()));
    disk.ring.offer(first % disk.ring.size);
    disk.ring.publish();
    disk.ring.kick()?;
    disk.complete(u32::from(first % disk.ring.size))?;
    require_status(disk.status(), status::OK, what)?;
    same_bytes(&disk.guest.read(data, 4096), &expected, what)
}

/// Writes with a chain that `layout` makes of header, data and status; reads back.
fn writes(
    context: &mut Context<'_>,
    bytes: usize,
    what: &str,
    layout: impl FnOnce(&mut Disk, u64, &[u8], u64) -> Vec<Descriptor>,
) -> Outcome {
    on_scratch(context, &Setup::default(), |disk| {
        let contents = pattern(11, bytes);
        let (header, at) = (disk.header(kind::OUT, disk.scratch), disk.status_at());
        let descriptors = layout(disk, header, &contents, at);
        disk.link.done(format!("{what}: {} descriptors", descriptors.len()));
        disk.submit(&descriptors)?;
        require_status(disk.status(), status::OK, what)?;
        let sector = disk.scratch;
        disk.require_contents(sector, &contents, what)
    })
}

fn split_header(context: &mut Context<'_>) -> Outcome {
    reads(context, "a read whose header has two descriptors", |_, header, data, at| {
        let halves = [Descriptor::readable(header, 8), Descriptor::readable(header + 8, 8)];
        Ok((0, chained(0, &[halves[0], halves[1], Descriptor::writable(data, 4096), Descriptor::writable(at, 1)])))
    })
}

fn header_byte_by_byte(context: &mut Context<'_>) -> Outcome {
    reads(context, "a read whose header has 16 descriptors", |_, header, data, at| {
        let mut chain: Vec<_> = (0..16).map(|byte| Descriptor::readable(header + byte, 1)).collect();
        chain.extend([Descriptor::writable(data, 4096), Descriptor::writable(at, 1)]);
        Ok((0, chained(0, &chain)))
    })
}

fn header_with_data(context: &mut Context<'_>) -> Outcome {
    writes(context, 4096, "a write with header and data in one descriptor", |disk, header, contents, at| {
        let header = disk.guest.read(header, 16);
        let both = disk.guest.put(&[&header[..], contents].concat());
        vec![Descriptor::readable(both, 16 + 4096), Descriptor::writable(at, 1)]
    })
}

fn status_with_data(context: &mut Context<'_>) -> Outcome {
    let mut disk = Disk::open(context)?;
    let expected = disk.read(0, 4096)?;
    let data = disk.data_at();
    let unwritten = [[0xee; 4096].as_slice(), &[status::UNWRITTEN]].concat();
    disk.guest.write(data, &unwritten);
    let header = disk.header(kind::IN, 0);
    disk.submit(&[Descriptor::readable(header, 16), Descriptor::writable(data, 4097)])?;
    let what = "a read with data and status in one descriptor";
    require_status(disk.guest.read(data + 4096, 1)[0], status::OK, what)?;
    same_bytes(&disk.guest.read(data, 4096), &expected, what)
}

fn many_descriptors(context: &mut Context<'_>) -> Outcome {
    writes(context, 64 << 10, "a write of 64 KiB in 16 pieces", |disk, header, contents, at| {
        let mut chain = vec![Descriptor::readable(header, 16)];
        for piece in contents.chunks(4096) {
            // Not next to each other.
            disk.guest.take(64, 64);
            chain.push(Descriptor::readable(disk.guest.put(piece), 4096));
        }
        chain.push(Descriptor::writable(at, 1));
        chain
    })
}

fn odd_sizes(context: &mut Context<'_>) -> Outcome {
    writes(context, 1024, "a write in pieces of 1, 510, 3 and 510 bytes", |disk, header, contents, at| {
        let mut chain = vec![Descriptor::readable(header, 16)];
        let mut rest = contents;
        for bytes in [1, 510, 3, 510] {
            let (piece, after) = rest.split_at(bytes);
            chain.push(Descriptor::readable(disk.guest.put(piece), size(bytes)));
            rest = after;
        }
        chain.push(Descriptor::writable(at, 1));
        chain
    })
}

fn unaligned_buffers(context: &mut Context<'_>) -> Outcome {
    writes(context, 4096, "a write from an odd address", |disk, header, contents, at| {
        let place = disk.guest.take(8192, 4096) + 1;
        disk.guest.write(place, contents);
        vec![Descriptor::readable(header, 16), Descriptor::readable(place, 4096), Descriptor::writable(at, 1)]
    })
}

fn chain_backwards(context: &mut Context<'_>) -> Outcome {
    reads(context, "a read whose chain goes backwards", |disk, header, data, at| {
        disk.ring.put(40, Descriptor { flags: NEXT, next: 17, ..Descriptor::readable(header, 16) });
        disk.ring.put(17, Descriptor { flags: WRITE | NEXT, next: 3, ..Descriptor::writable(data, 4096) });
        disk.ring.put(3, Descriptor::writable(at, 1));
        Ok((40, vec![Descriptor { flags: NEXT, next: 17, ..Descriptor::readable(header, 16) }]))
    })
}

fn chain_over_the_end(context: &mut Context<'_>) -> Outcome {
    reads(context, "a read whose chain begins at the last entry", |disk, header, data, at| {
        let last = disk.ring.size - 1;
        let mut chain = chained(
            last,
            &[Descriptor::readable(header, 16), Descriptor::writable(data, 4096), Descriptor::writable(at, 1)],
        );
        chain[0].next = 0;
        chain[1].next = 1;
        Ok((last, chain))
    })
}

fn whole_table(context: &mut Context<'_>) -> Outcome {
    reads(context, "a read of as many descriptors as the ring has", |disk, header, data, at| {
        let pieces = u64::from(disk.ring.size) - 2;
        let mut chain = vec![Descriptor::readable(header, 16)];
        chain.extend((0..pieces - 1).map(|piece| Descriptor::writable(data + piece * 32, 32)));
        let done = (pieces - 1) * 32;
        chain.push(Descriptor::writable(data + done, 4096 - u32::try_from(done).unwrap_or(0)));
        chain.push(Descriptor::writable(at, 1));
        Ok((0, chained(0, &chain)))
    })
}

/// Puts a table into memory; the descriptor that points at it.
fn table(disk: &mut Disk, descriptors: &[Descriptor]) -> Descriptor {
    let bytes: Vec<u8> = chained(0, descriptors).iter().flat_map(|descriptor| descriptor.encode()).collect();
    Descriptor::indirect(disk.guest.put(&bytes), size(descriptors.len()))
}

fn indirect(context: &mut Context<'_>) -> Outcome {
    reads(context, "a read in an indirect table", |disk, header, data, at| {
        let chain = [Descriptor::readable(header, 16), Descriptor::writable(data, 4096), Descriptor::writable(at, 1)];
        Ok((5, vec![table(disk, &chain)]))
    })
}

fn indirect_large(context: &mut Context<'_>) -> Outcome {
    writes(context, 64 << 10, "a write in an indirect table of 66 descriptors", |disk, header, contents, at| {
        let mut chain = vec![Descriptor::readable(header, 16)];
        for piece in contents.chunks(1024) {
            chain.push(Descriptor::readable(disk.guest.put(piece), 1024));
        }
        chain.push(Descriptor::writable(at, 1));
        vec![table(disk, &chain)]
    })
}

fn indirect_after_direct(context: &mut Context<'_>) -> Outcome {
    reads(context, "a read with its header in the ring and the rest in an indirect table", |disk, header, data, at| {
        let rest = table(disk, &[Descriptor::writable(data, 4096), Descriptor::writable(at, 1)]);
        Ok((0, chained(0, &[Descriptor::readable(header, 16), rest])))
    })
}

fn indirect_ignores_write(context: &mut Context<'_>) -> Outcome {
    reads(context, "a read in an indirect table with the WRITE flag", |disk, header, data, at| {
        let chain = [Descriptor::readable(header, 16), Descriptor::writable(data, 4096), Descriptor::writable(at, 1)];
        Ok((0, vec![Descriptor { flags: INDIRECT | WRITE, ..table(disk, &chain) }]))
    })
}

/// A ring that is too small for a request's descriptors.
fn ring_of(context: &mut Context<'_>, entries: u16) -> Outcome {
    let mut disk = Disk::open_with(context, &Setup { size: entries, ..Setup::default() })?;
    let (header, data, at) = (disk.header(kind::IN, 0), disk.data_at(), disk.status_at());
    let chain = [Descriptor::readable(header, 16), Descriptor::writable(data, 512), Descriptor::writable(at, 1)];
    let table = table(&mut disk, &chain);
    for _ in 0..5 {
        disk.status_at();
        disk.submit(&[table])?;
        require_status(disk.status(), status::OK, &format!("a read in a ring of {entries}"))?;
    }
    Ok(())
}

/// More requests than the ring has entries.
fn goes_around(context: &mut Context<'_>, entries: u16) -> Outcome {
    many(context, entries, 2 * u32::from(entries), 0)
}

fn index_wraps(context: &mut Context<'_>) -> Outcome {
    many(context, 128, 300, 65400)
}

fn more_than_65536(context: &mut Context<'_>) -> Outcome {
    many(context, 1024, 65536 + 500, 0)
}

/// Makes so many reads, a full ring at a time, from this index on.
fn many(context: &mut Context<'_>, entries: u16, requests: u32, base: u16) -> Outcome {
    let timeout = context.timeout();
    let mut disk = Disk::open_with(context, &Setup { size: entries, base, ..Setup::default() })?;
    let batch = Batch::new(&mut disk.guest, &disk.ring);
    let at_once = Batch::count(&disk.ring);
    let mut left = requests;
    disk.link.done(format!("{requests} reads, {at_once} at a time, from index {base} on"));
    while left > 0 {
        let now = u16::try_from(left.min(u32::from(at_once))).expect("at most a ring");
        for place in 0..now {
            // Within what the suite needs of any disk.
            let sector = u64::from(place) % (SCRATCH_BYTES as u64 / 512);
            let data = disk.data_at() + 512 * u64::from(place);
            batch.offer(&disk.guest, &mut disk.ring, place, kind::IN, sector, data);
        }
        disk.ring.publish();
        disk.ring.kick()?;
        batch.complete(&mut disk, now, timeout)?;
        left -= u32::from(now);
    }
    let expected = u32::from(base).wrapping_add(requests) & 0xffff;
    match disk.ring.stop(&mut disk.link)? {
        base if base == expected => Ok(()),
        base => Stop::fail(format!("GET_VRING_BASE returned {base}, not {expected}")),
    }
}

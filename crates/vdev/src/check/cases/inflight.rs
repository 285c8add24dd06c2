//! Requests under way that survive a backend, by the memory that records them.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::data::Batch;
use super::prelude::*;
use crate::check::disk::{Disk, Setup, kind, pattern, require_status, status};
use crate::check::process::wait_until;
use crate::memory::{Area, GuestMemory, Region, SharedFile};
use crate::protocol::Inflight;

const INFLIGHT: Need = Need::Protocol(ProtocolFeatures::INFLIGHT_SHMFD);
const ACK: Need = Need::Protocol(ProtocolFeatures::REPLY_ACK);
const DATA: Need = Need::DataPath;
const GET: &str = "VHOST_USER_GET_INFLIGHT_FD";
const SET: &str = "VHOST_USER_SET_INFLIGHT_FD";
const TRACKING: &str = "Inflight I/O tracking";

cases! {
    "inflight.buffer" Must [INFLIGHT] buffer,
        GET => "the reply has a memory descriptor with a region for each queue";
    "inflight.buffer-unused" Should [INFLIGHT] buffer_unused,
        TRACKING => "\"Zero value indicates an uninitialized buffer\": a new buffer records no request in flight";
    "inflight.accepted" Must [INFLIGHT, ACK] accepted,
        SET => "the backend accepts the buffer that it allocated";
    "inflight.too-small" Should [INFLIGHT, ACK] too_small,
        SET => "the backend would write beyond the end of a buffer that is too small for its queues";
    "inflight.without-fd" Should [INFLIGHT, ACK] without_fd,
        SET => "without a descriptor there is no buffer";
    "inflight.recorded" Must [INFLIGHT, DATA] recorded,
        TRACKING =>
            "after all requests complete, the region has version 1, its size, the used index, and no request in flight";
    "inflight.resubmits" Must [INFLIGHT, DATA] resubmits,
        TRACKING =>
            "\"Resubmit inflight DescStateSplit entries\": requests that the last backend popped but did not complete \
             are completed";
    "inflight.last-batch-not-twice" Must [INFLIGHT, DATA] last_batch_not_twice,
        TRACKING => "a request that completed just before the crash is in the last batch list, and is not repeated";
    "inflight.nothing-under-way" Must [INFLIGHT, DATA] nothing_under_way,
        TRACKING => "a new backend with a region without requests in flight continues with the next request";
    "inflight.region-of-noise" Must [INFLIGHT, DATA, Need::Harm] region_of_noise,
        TRACKING => "the region is shared memory: no content of it may end the backend";
    "inflight.killed-under-load" Must [INFLIGHT, DATA, Need::Writes, Need::Spawned] killed_under_load,
        TRACKING => "a backend that is killed and restarted loses no request, repeats none, and tears no write";
}

/// What is recorded of one split ring, as the specification lays it out.
struct Record {
    description: Inflight,
    file: SharedFile,
    area: Area,
}

const VERSION_AT: usize = 8;
const ENTRIES_AT: usize = 10;
const LAST_BATCH_AT: usize = 12;
const USED_INDEX_AT: usize = 14;
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
const SIZE: u16 = 128;

impl Record {
    /// The buffer that the backend gives.
    fn ask(context: &Context<'_>, link: &mut Link) -> Outcome<Self> {
        let queues = u16::try_from(context.facts.queues.min(256)).unwrap_or(1);
        let wish = Inflight { num_queues: queues, queue_size: SIZE, ..Inflight::default() };
        let (description, mut fds) = link.call_with_fds(&GetInflightFd(wish), &[])?;
        let (Some(fd), true) = (fds.pop(), fds.is_empty()) else {
            return Stop::fail("the reply to GET_INFLIGHT_FD does not have exactly one descriptor");
        };
        Self::map(description, fd)
    }

    fn map(description: Inflight, fd: OwnedFd) -> Outcome<Self> {
        let needed = (HEADER_BYTES + ENTRY_BYTES * usize::from(SIZE)) * usize::from(description.num_queues.max(1));
        if description.mmap_size < needed as u64 {
            return Stop::fail(format!("the buffer has {} bytes, but {needed} are needed", description.mmap_size));
        }
        let file = SharedFile::from_peer(fd);
        let place = MemoryRegion {
            size: description.mmap_size,
            mmap_offset: description.mmap_offset,
            ..MemoryRegion::default()
        };
        let region = match Region::map(place, file.try_clone()?) {
            Ok(region) => region,
            Err(error) => return Stop::fail(format!("the buffer of GET_INFLIGHT_FD cannot be mapped: {error}")),
        };
        let memory = GuestMemory::new(vec![std::sync::Arc::new(region)])?;
        let area = memory.area(memory.at_guest(0, needed)?)?;
        if area.check_alignment(8).is_err() {
            return Stop::fail(format!("the buffer's offset {:#x} in its file is not aligned", place.mmap_offset));
        }
        Ok(Self { description, file, area })
    }

    /// Brings it to a backend.
    fn bring(&self, link: &mut Link) -> Outcome {
        link.require(&SetInflightFd(self.description), &[self.file.as_fd()])
    }

    fn number(&self, at: usize) -> u16 {
        self.area.load_u16(at, Ordering::Acquire)
    }

    fn set_number(&self, at: usize, value: u16) {
        self.area.store_u16(at, value, Ordering::Release);
    }

    const fn entry(head: u16) -> usize {
        HEADER_BYTES + ENTRY_BYTES * head as usize
    }

    /// Records a request as under way.
    fn set_under_way(&self, head: u16, counter: u64) {
        self.area.write(Self::entry(head) + 8, counter.to_le_bytes());
        self.area.write(Self::entry(head), 1_u8);
    }

    /// The heads that are recorded as under way.
    fn under_way(&self) -> Vec<u16> {
        (0..SIZE).filter(|head| self.area.read::<u8>(Self::entry(*head)) != 0).collect()
    }

    /// As a backend leaves it that has used it.
    fn initialise(&self, used_index: u16) {
        self.set_number(ENTRIES_AT, SIZE);
        self.set_number(USED_INDEX_AT, used_index);
        self.set_number(VERSION_AT, 1);
    }
}

fn open(context: &mut Context<'_>) -> Outcome<Link> {
    let mut link = context.open_with(USUAL | ProtocolFeatures::INFLIGHT_SHMFD)?;
    let features = usual_features(link.offered);
    link.require(&SetFeatures(features), &[])?;
    Ok(link)
}

fn buffer(context: &mut Context<'_>) -> Outcome {
    let mut link = open(context)?;
    let record = Record::ask(context, &mut link)?;
    let Inflight { num_queues, queue_size, .. } = record.description;
    let queues = context.facts.queues.min(256);
    if u64::from(num_queues) == queues && queue_size == SIZE {
        return Ok(());
    }
    Stop::fail(format!(
        "a buffer for {queues} queues of {SIZE} was requested, one for {num_queues} of {queue_size} returned"
    ))
}

fn buffer_unused(context: &mut Context<'_>) -> Outcome {
    let mut link = open(context)?;
    let record = Record::ask(context, &mut link)?;
    match (record.number(VERSION_AT), record.under_way().len()) {
        // A backend may write the version before it gives the buffer away.
        (0 | 1, 0) => Ok(()),
        (version, count) => Stop::fail(format!("a new buffer has version {version} and {count} requests in flight")),
    }
}

fn accepted(context: &mut Context<'_>) -> Outcome {
    let mut link = open(context)?;
    let record = Record::ask(context, &mut link)?;
    record.bring(&mut link)
}

fn too_small(context: &mut Context<'_>) -> Outcome {
    let mut link = open(context)?;
    let file = SharedFile::new(4096)?;
    let small = Inflight { mmap_size: 4096, mmap_offset: 0, num_queues: 4, queue_size: 1024 };
    link.require_refusal(&SetInflightFd(small), &[file.as_fd()], "4 queues of 1024 in 4096 bytes")
}

fn without_fd(context: &mut Context<'_>) -> Outcome {
    let mut link = open(context)?;
    let message = SetInflightFd(Inflight { mmap_size: 1 << 20, mmap_offset: 0, num_queues: 1, queue_size: SIZE });
    link.require_refusal(&message, &[], "SET_INFLIGHT_FD without a descriptor")
}

/// A disk with a record of the same session, whose ring is not started.
fn disk(context: &mut Context<'_>) -> Outcome<(Disk, Record)> {
    let mut disk = Disk::open_with(context, &setup())?;
    let record = Record::ask(context, &mut disk.link)?;
    Ok((disk, record))
}

/// A disk with a record that a backend before has made, whose ring is not started.
fn disk_of_another(context: &mut Context<'_>) -> Outcome<(Disk, Record)> {
    let mut link = open(context)?;
    let record = Record::ask(context, &mut link)?;
    drop(link);
    if context.facts.ends_with_client {
        context.target.start()?;
    } else {
        drop(context.connect_again()?);
    }
    Ok((Disk::open_with(context, &setup())?, record))
}

fn setup() -> Setup {
    Setup { size: SIZE, protocol: ProtocolFeatures::INFLIGHT_SHMFD, start: false, ..Setup::default() }
}

fn recorded(context: &mut Context<'_>) -> Outcome {
    let (mut disk, record) = disk(context)?;
    record.bring(&mut disk.link)?;
    disk.ring.start(&mut disk.link)?;
    for _ in 0..5 {
        disk.read(0, 512)?;
    }
    // The record is brought up to date after the used ring.
    let is_done = || record.under_way().is_empty() && record.number(USED_INDEX_AT) == 5;
    wait_until(context.timeout(), is_done);
    let found = (record.number(VERSION_AT), record.number(ENTRIES_AT), record.number(USED_INDEX_AT));
    if found != (1, SIZE, 5) {
        return Stop::fail(format!("after 5 requests version, size and used index are {found:?}, not (1, {SIZE}, 5)"));
    }
    match record.under_way()[..] {
        [] => Ok(()),
        ref heads => Stop::fail(format!("all requests completed, but {heads:?} are recorded as in flight")),
    }
}

/// Three reads that a backend before had taken. It had done some, in this order, and recorded so many of these as
/// done. The ring is started by a frontend that has no more than the used index.
fn left_behind(context: &mut Context<'_>, done: &[u16], recorded: usize) -> Outcome<(Disk, Record, Batch)> {
    let (mut disk, record) = disk_of_another(context)?;
    let batch = Batch::new(&mut disk.guest, &disk.ring);
    for place in 0..3 {
        let data = disk.data_at() + 512 * u64::from(place);
        batch.offer(&disk.guest, &mut disk.ring, place, kind::IN, 0, data);
    }
    disk.ring.publish();
    let count = |done: usize| u16::try_from(done).unwrap_or(u16::MAX);
    record.initialise(count(recorded));
    for place in (0..3).filter(|place| !done[..recorded].contains(place)) {
        record.set_under_way(3 * place, u64::from(place) + 1);
    }
    for (slot, place) in (0..).zip(done) {
        disk.ring.put_used(slot, u32::from(3 * place), 513);
    }
    for place in &done[recorded..] {
        record.set_number(LAST_BATCH_AT, 3 * place);
    }
    disk.ring.set_used_index(count(done.len()));
    disk.ring.taken = count(done.len());
    disk.link.done(format!(
        "3 requests were popped, {done:?} of them completed, {recorded} of these recorded as completed; then a new \
         backend started"
    ));
    record.bring(&mut disk.link)?;
    disk.ring.start(&mut disk.link)?;
    disk.ring.kick()?;
    Ok((disk, record, batch))
}

/// Exactly those requests are done that were not, each once.
fn are_done(context: &Context<'_>, disk: &mut Disk, batch: &Batch, done_before: &[u16]) -> Outcome {
    let left: Vec<u16> = (0..3).filter(|place| !done_before.contains(place)).collect();
    let mut places = Vec::new();
    for _ in &left {
        places.push(disk.ring.wait_used(&mut disk.link, context.timeout())?.head / 3);
    }
    places.sort_unstable();
    if !places.iter().copied().eq(left.iter().map(|place| u32::from(*place))) {
        return Stop::fail(format!("the requests {left:?} were in flight, but {places:?} completed"));
    }
    for place in left {
        require_status(batch.status(&disk.guest, place), status::OK, "a resubmitted request")?;
    }
    // A fourth, and nothing else.
    disk.read_at(100, 0)?;
    disk.link.features()?;
    match disk.ring.take_used() {
        None => Ok(()),
        Some(used) => Stop::fail(format!("the request {} completed twice", used.head / 3)),
    }
}

/// Out of order: the used index alone does not show where the ring continues.
const SECOND_DONE: &[u16] = &[1];

fn resubmits(context: &mut Context<'_>) -> Outcome {
    let (mut disk, _record, batch) = left_behind(context, SECOND_DONE, 1)?;
    are_done(context, &mut disk, &batch, SECOND_DONE)
}

fn last_batch_not_twice(context: &mut Context<'_>) -> Outcome {
    let (mut disk, _record, batch) = left_behind(context, SECOND_DONE, 0)?;
    are_done(context, &mut disk, &batch, SECOND_DONE)
}

fn nothing_under_way(context: &mut Context<'_>) -> Outcome {
    let (mut disk, _record, batch) = left_behind(context, &[2, 0, 1], 3)?;
    are_done(context, &mut disk, &batch, &[0, 1, 2])
}

fn region_of_noise(context: &mut Context<'_>) -> Outcome {
    let (mut disk, record) = disk(context)?;
    for (at, byte) in pattern(41, HEADER_BYTES + ENTRY_BYTES * usize::from(SIZE)).into_iter().enumerate() {
        record.area.write(at, byte);
    }
    record.initialise(0);
    disk.link.done("the region is filled with random bytes");
    disk.link.send(&SetInflightFd(record.description), &[record.file.as_fd()])?;
    match disk.ring.start(&mut disk.link).and_then(|()| disk.ring.kick()) {
        Ok(()) | Err(Stop::Closed(_) | Stop::Fail(_)) => {}
        Err(stop) => return Err(stop),
    }
    context.survives_rings(disk.link)
}

fn killed_under_load(context: &mut Context<'_>) -> Outcome {
    let (mut disk, record) = disk(context)?;
    record.bring(&mut disk.link)?;
    disk.ring.start(&mut disk.link)?;
    let count = Batch::count(&disk.ring);
    let kept = disk.read(disk.scratch, usize::from(count) * 512)?;
    let batch = Batch::new(&mut disk.guest, &disk.ring);
    for round in 0..5_u64 {
        let contents = pattern(50 + round, usize::from(count) * 512);
        let data = disk.data_at();
        disk.guest.write(data, &contents);
        for place in 0..count {
            let offset = u64::from(place);
            batch.offer(&disk.guest, &mut disk.ring, place, kind::OUT, disk.scratch + offset, data + 512 * offset);
        }
        disk.ring.publish();
        disk.ring.kick()?;
        // Somewhere between no request and all of them done, at another point each time.
        let target = disk.ring.taken.wrapping_add(u16::try_from(round * 8).unwrap_or(0));
        let ring = &disk.ring;
        wait_until(Duration::from_millis(100), || ring.used_index().wrapping_sub(target) < u16::MAX / 2);
        disk.link.done(format!("{count} writes are in flight; kill -9; a new backend"));
        context.target.kill_and_start()?;
        let done_before = disk.ring.used_index().wrapping_sub(disk.ring.taken);
        let mut is_done = vec![false; usize::from(count)];
        mark_used(&mut disk, &mut is_done)?;
        disk.link = context.open_with(USUAL | ProtocolFeatures::INFLIGHT_SHMFD)?;
        let features = usual_features(disk.link.offered);
        disk.link.require(&SetFeatures(features), &[])?;
        disk.link.note(format!("{done_before} completed before"));
        disk.guest.share(&mut disk.link)?;
        record.bring(&mut disk.link)?;
        disk.ring.start(&mut disk.link)?;
        disk.ring.kick()?;
        let all_done = |ring: &crate::check::ring::SplitRing| ring.used_index() == ring.offered;
        if !wait_until(context.timeout(), || all_done(&disk.ring)) {
            let missing = disk.ring.offered.wrapping_sub(disk.ring.used_index());
            return Stop::fail(format!("{missing} of {count} requests are lost"));
        }
        mark_used(&mut disk, &mut is_done)?;
        if let Some(place) = is_done.iter().position(|done| !done) {
            return Stop::fail(format!("request {place} is lost"));
        }
        let sector = disk.scratch;
        disk.require_contents(sector, &contents, "the sectors written around a kill")?;
    }
    let sector = disk.scratch;
    disk.write(sector, &kept)
}

/// Takes what was used; each request once only.
fn mark_used(disk: &mut Disk, is_done: &mut [bool]) -> Outcome {
    while let Some(used) = disk.ring.take_used() {
        match is_done.get_mut((used.head / 3) as usize) {
            Some(done) if !*done && used.head % 3 == 0 => *done = true,
            Some(true) => return Stop::fail(format!("request {} completed twice", used.head / 3)),
            _ => return Stop::fail(format!("the used ring names head {}", used.head)),
        }
    }
    Ok(())
}

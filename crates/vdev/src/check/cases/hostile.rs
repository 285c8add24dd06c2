//! Messages that no frontend sends. A backend may refuse, ignore or close; it must go on serving.

use std::os::fd::{AsFd as _, OwnedFd};

use super::prelude::*;
use crate::check::guest::Guest;
use crate::check::ring::SplitRing;
use crate::memory::SharedFile;
use crate::protocol::{Header, Inflight, Log};
use crate::socket::Event;

const HARM: Need = Need::Harm;
const MESSAGES: &str = "Message Specification";
const HEADER: &str = "Header";
const STATE: &str = "A vring state description";
const SURVIVES: &str = "no message may end a backend: its guests would lose their disk or network";

cases! {
    "hostile.unknown-request" Must [HARM] |context| message(context, 200, Flags::request(), &[0; 8]),
        MESSAGES => SURVIVES;
    "hostile.unknown-request-asks" Must [HARM] |context| message(context, 200, Flags::request_with_reply(), &[0; 8]),
        "VHOST_USER_PROTOCOL_F_REPLY_ACK" => SURVIVES;
    "hostile.request-zero" Must [HARM] |context| message(context, 0, Flags::request(), &[]),
        MESSAGES => SURVIVES;
    "hostile.request-largest" Must [HARM] |context| message(context, u32::MAX, Flags::request(), &[]),
        MESSAGES => SURVIVES;
    "hostile.version-zero" Must [HARM] |context| message(context, 1, Flags::from_bits(0), &[]),
        HEADER => SURVIVES;
    "hostile.version-two" Must [HARM] |context| message(context, 1, Flags::from_bits(2), &[]),
        HEADER => SURVIVES;
    "hostile.reserved-flags" Must [HARM] |context| message(context, 1, Flags::from_bits(0xffff_fff1), &[]),
        HEADER => SURVIVES;
    "hostile.reply-flag" Must [HARM] |context| message(context, 1, Flags::reply(), &[]),
        HEADER => SURVIVES;
    "hostile.payload-missing" Must [HARM] payload_missing,
        MESSAGES => SURVIVES;
    "hostile.payload-short" Must [HARM] payload_short,
        MESSAGES => SURVIVES;
    "hostile.payload-long" Must [HARM] payload_long,
        MESSAGES => SURVIVES;
    "hostile.payload-on-question" Must [HARM] |context| message(context, 1, Flags::request(), &[0xff; 64]),
        MESSAGES => SURVIVES;
    "hostile.size-huge" Must [HARM] size_huge,
        MESSAGES => SURVIVES;
    "hostile.size-largest" Must [HARM]
        |context| bytes(context, &Header { request: 5, flags: Flags::request(), payload_bytes: u32::MAX }.encode()),
        MESSAGES => SURVIVES;
    "hostile.half-a-header" Must [HARM] |context| bytes(context, &[1, 0, 0, 0, 1]),
        MESSAGES => SURVIVES;
    "hostile.half-a-message" Must [HARM] half_a_message,
        MESSAGES => SURVIVES;
    "hostile.noise" Must [HARM] |context| bytes(context, &crate::check::disk::pattern(99, 4096)),
        MESSAGES => SURVIVES;
    "hostile.zeros" Must [HARM] |context| bytes(context, &[0; 4096]),
        MESSAGES => SURVIVES;
    "hostile.every-request-empty" Must [HARM] |context| every_request(context, &[]),
        MESSAGES => SURVIVES;
    "hostile.every-request-ones" Must [HARM] |context| every_request(context, &[0xff; 40]),
        MESSAGES => SURVIVES;
    "hostile.every-request-zeros" Must [HARM] |context| every_request(context, &[0; 40]),
        MESSAGES => SURVIVES;
    "hostile.index-set-vring-num" Must [HARM] |context| index(context, 8),
        STATE => SURVIVES;
    "hostile.index-set-vring-base" Must [HARM] |context| index(context, 10),
        STATE => SURVIVES;
    "hostile.index-get-vring-base" Must [HARM] |context| index(context, 11),
        STATE => SURVIVES;
    "hostile.index-set-vring-enable" Must [HARM] |context| index(context, 18),
        STATE => SURVIVES;
    "hostile.index-set-vring-addr" Must [HARM] index_address,
        "A vring address description" => SURVIVES;
    "hostile.index-set-vring-kick" Must [HARM] |context| index_file(context, 12),
        "VHOST_USER_SET_VRING_KICK" => SURVIVES;
    "hostile.index-set-vring-call" Must [HARM] |context| index_file(context, 13),
        "VHOST_USER_SET_VRING_CALL" => SURVIVES;
    "hostile.index-set-vring-err" Must [HARM] |context| index_file(context, 14),
        "VHOST_USER_SET_VRING_ERR" => SURVIVES;
    "hostile.index-negative" Must [HARM]
        |context| message(context, 8, Flags::request(), &[0xff, 0xff, 0xff, 0xff, 64, 0, 0, 0]),
        STATE => SURVIVES;
    "hostile.regions-count" Must [HARM] regions_count,
        "Memory regions description" => SURVIVES;
    "hostile.regions-overflow" Must [HARM] regions_overflow,
        "Memory regions description" => SURVIVES;
    "hostile.region-in-a-pipe" Must [HARM] region_in_a_pipe,
        "Memory regions description" => SURVIVES;
    "hostile.region-is-the-socket" Must [HARM] region_is_the_socket,
        "Memory regions description" => SURVIVES;
    "hostile.memory-gone-under-ring" Must [HARM] memory_gone,
        "Memory access" => SURVIVES;
    "hostile.enable-nothing" Must [HARM] |context| message(context, 18, Flags::request(), &[0, 0, 0, 0, 1, 0, 0, 0]),
        "VHOST_USER_SET_VRING_ENABLE" => SURVIVES;
    "hostile.enable-with-wild-value" Must [HARM]
        |context| message(context, 18, Flags::request(), &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
        "VHOST_USER_SET_VRING_ENABLE" => SURVIVES;
    "hostile.kick-before-address" Must [HARM] kick_before_address,
        "Ring states" => SURVIVES;
    "hostile.kick-is-a-file" Must [HARM] kick_is_a_file,
        "VHOST_USER_SET_VRING_KICK" => SURVIVES;
    "hostile.kick-has-ended" Must [HARM] kick_has_ended,
        "VHOST_USER_SET_VRING_KICK" => SURVIVES;
    "hostile.call-is-a-file" Must [HARM] call_is_a_file,
        "VHOST_USER_SET_VRING_CALL" => SURVIVES;
    "hostile.config-size-lies" Must [HARM] config_size_lies,
        "Virtio device config space" => SURVIVES;
    "hostile.config-huge" Must [HARM] config_huge,
        "Virtio device config space" => SURVIVES;
    "hostile.inflight-wild" Must [HARM] inflight_wild,
        "Inflight description" => SURVIVES;
    "hostile.inflight-no-memory" Must [HARM] inflight_no_memory,
        "VHOST_USER_SET_INFLIGHT_FD" => SURVIVES;
    "hostile.log-past-file" Must [HARM] log_past_file,
        "Log description" => SURVIVES;
    "hostile.log-without-memory" Must [HARM] log_without_memory,
        "Log description" => SURVIVES;
    "hostile.backend-channel-no-socket" Must [HARM] backend_channel_no_socket,
        "Back-end communication" => SURVIVES;
    "hostile.set-features-all" Must [HARM] |context| message(context, 2, Flags::request(), &u64::MAX.to_ne_bytes()),
        "VHOST_USER_SET_FEATURES" => SURVIVES;
    "hostile.set-protocol-features-all" Must [HARM]
        |context| message(context, 16, Flags::request(), &u64::MAX.to_ne_bytes()),
        "VHOST_USER_SET_PROTOCOL_FEATURES" => SURVIVES;
    "hostile.postcopy-uninvited" Must [HARM] postcopy_uninvited,
        "VHOST_USER_POSTCOPY_LISTEN" => SURVIVES;
    "hostile.many-descriptors" Must [HARM] many_descriptors,
        "Communication" => SURVIVES;
    "hostile.flood-unread" Must [HARM] flood_unread,
        "Communication" => SURVIVES;
}

/// A message, on a session that has negotiated the usual.
fn message(context: &mut Context<'_>, request: u32, flags: Flags, payload: &[u8]) -> Outcome {
    let mut link = context.open_device()?;
    link.send_raw(request, flags, payload, &[])?;
    context.survives_messages(link)
}

/// Bytes, and then the end: a backend that waits for more must see it.
fn bytes(context: &mut Context<'_>, bytes: &[u8]) -> Outcome {
    let mut link = context.open_device()?;
    link.send_bytes(bytes, &[], &format!("{} bytes that are not a message", bytes.len()))?;
    drop(link);
    context.serves_again()
}

fn payload_missing(context: &mut Context<'_>) -> Outcome {
    for request in [2, 5, 8, 9, 12, 24, 37] {
        let mut link = context.open_again_device()?;
        link.send_raw(request, Flags::request(), &[], &[])?;
        context.survives_messages(link)?;
        if context.facts.ends_with_client {
            break;
        }
    }
    Ok(())
}

fn payload_short(context: &mut Context<'_>) -> Outcome {
    message(context, 9, Flags::request(), &[0; 20])
}

fn payload_long(context: &mut Context<'_>) -> Outcome {
    message(context, 8, Flags::request(), &[0; 2048])
}

fn size_huge(context: &mut Context<'_>) -> Outcome {
    let header = Header { request: 25, flags: Flags::request(), payload_bytes: 0x0fff_fff0 }.encode();
    bytes(context, &[&header[..], &[0; 1024]].concat())
}

fn half_a_message(context: &mut Context<'_>) -> Outcome {
    let header = Header { request: 5, flags: Flags::request(), payload_bytes: 264 }.encode();
    bytes(context, &[&header[..], &[1, 0, 0, 0]].concat())
}

/// Every request there is with this payload, each on a connection of its own if the one before was closed.
fn every_request(context: &mut Context<'_>, payload: &[u8]) -> Outcome {
    let mut link = context.open_device()?;
    for request in 1..=46 {
        // Postcopy with a real userfaultfd would stop the backend at its own memory.
        if (28..=30).contains(&request) {
            continue;
        }
        link.send_raw(request, Flags::request(), payload, &[]).or_else(closed_is_fine)?;
        if link.is_alive()? {
            continue;
        }
        drop(link);
        context.serves_again()?;
        if context.facts.ends_with_client {
            return Ok(());
        }
        link = context.open_again_device()?;
    }
    context.survives_messages(link)
}

fn closed_is_fine(stop: Stop) -> Outcome {
    if matches!(stop, Stop::Closed(_)) { Ok(()) } else { Err(stop) }
}

/// A ring that no device has: the first beyond 8 bits, and one far beyond any array.
fn index(context: &mut Context<'_>, request: u32) -> Outcome {
    let mut payload = 9999_u32.to_ne_bytes().to_vec();
    payload.extend_from_slice(&64_u32.to_ne_bytes());
    message(context, request, Flags::request(), &payload)
}

fn index_address(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let mut guest = Guest::new()?;
    guest.share(&mut link)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    let address = VringAddress { index: 9999, ..ring.address() };
    link.send(&SetVringAddr(address), &[])?;
    context.survives_messages(link)
}

fn index_file(context: &mut Context<'_>, request: u32) -> Outcome {
    let mut link = context.open_device()?;
    let event = Event::new()?;
    link.send_raw(request, Flags::request(), &255_u64.to_ne_bytes(), &[event.as_fd()])?;
    context.survives_messages(link)
}

fn regions_count(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let file = SharedFile::new(1 << 20)?;
    let mut payload = u32::MAX.to_ne_bytes().to_vec();
    payload.resize(8 + 8 * 32, 0);
    link.send_raw(5, Flags::request(), &payload, &[file.as_fd(); 8])?;
    context.survives_messages(link)
}

fn regions_overflow(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let file = SharedFile::new(1 << 20)?;
    let region =
        MemoryRegion { guest_address: u64::MAX, size: u64::MAX, user_address: u64::MAX, mmap_offset: u64::MAX };
    link.send(&SetMemTable(MemoryTable(vec![region; 2])), &[file.as_fd(); 2])?;
    context.survives_messages(link)
}

fn region_in_a_pipe(context: &mut Context<'_>) -> Outcome {
    let (pipe, _other) = std::io::pipe()?;
    region_in(context, &OwnedFd::from(pipe))
}

fn region_is_the_socket(context: &mut Context<'_>) -> Outcome {
    let (one, _other) = std::os::unix::net::UnixStream::pair()?;
    region_in(context, &OwnedFd::from(one))
}

fn region_in(context: &mut Context<'_>, fd: &OwnedFd) -> Outcome {
    let mut link = context.open_device()?;
    let region = MemoryRegion { guest_address: 0, size: 1 << 20, user_address: 1 << 32, mmap_offset: 0 };
    link.send(&SetMemTable(MemoryTable(vec![region])), &[fd.as_fd()])?;
    context.survives_messages(link)
}

/// A ring that runs in memory that is taken away.
fn memory_gone(context: &mut Context<'_>) -> Outcome {
    let (mut link, _guest, ring) = started(context)?;
    let other = Guest::with_regions(&[(1 << 32, 1 << 20)])?;
    link.send(&other.table(), &other.fds())?;
    ring.kick()?;
    context.survives_rings(link)
}

/// A session with a ring that runs.
fn started(context: &mut Context<'_>) -> Outcome<(Link, Guest, SplitRing)> {
    let mut link = context.open_device()?;
    let mut guest = Guest::new()?;
    guest.share(&mut link)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    ring.start(&mut link)?;
    Ok((link, guest, ring))
}

fn kick_before_address(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let mut guest = Guest::new()?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    link.send(&SetVringKick(VringFile::with_descriptor(0)), &[ring.kick.as_fd()])?;
    link.send(&SetVringEnable(ring.state(1)), &[]).or_else(closed_is_fine)?;
    ring.kick()?;
    context.survives_rings(link)
}

/// A kick or call that is something else than an eventfd.
fn odd_event(context: &mut Context<'_>, fd: &OwnedFd, request: u32) -> Outcome {
    let mut link = context.open_device()?;
    let mut guest = Guest::new()?;
    guest.share(&mut link)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    ring.place(&mut link)?;
    link.send_raw(request, Flags::request(), &0_u64.to_ne_bytes(), &[fd.as_fd()])?;
    link.send(&SetVringEnable(ring.state(1)), &[]).or_else(closed_is_fine)?;
    context.survives_rings(link)
}

fn kick_is_a_file(context: &mut Context<'_>) -> Outcome {
    odd_event(context, &tempfile::tempfile()?.into(), 12)
}

fn kick_has_ended(context: &mut Context<'_>) -> Outcome {
    let (reader, writer) = std::io::pipe()?;
    drop(writer);
    odd_event(context, &reader.into(), 12)
}

fn call_is_a_file(context: &mut Context<'_>) -> Outcome {
    odd_event(context, &std::fs::File::open("/dev/null")?.into(), 13)
}

fn config_size_lies(context: &mut Context<'_>) -> Outcome {
    let mut payload = [0_u8; 12 + 8];
    payload[4..8].copy_from_slice(&4096_u32.to_ne_bytes());
    message(context, 25, Flags::request(), &payload)?;
    if context.facts.ends_with_client {
        return Ok(());
    }
    let mut link = context.open_again_device()?;
    link.send_raw(24, Flags::request(), &payload, &[])?;
    context.survives_messages(link)
}

fn config_huge(context: &mut Context<'_>) -> Outcome {
    let mut payload = [0xff_u8; 12 + 256];
    payload[..4].copy_from_slice(&(u32::MAX - 10).to_ne_bytes());
    payload[4..8].copy_from_slice(&256_u32.to_ne_bytes());
    message(context, 25, Flags::request(), &payload)
}

fn inflight_wild(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_with(USUAL | ProtocolFeatures::INFLIGHT_SHMFD)?;
    // More than any device has; a backend that allocates all of it uses 64 MiB, which harms no host.
    let wild = Inflight { mmap_size: u64::MAX, mmap_offset: u64::MAX, num_queues: 4096, queue_size: 1024 };
    link.send(&GetInflightFd(wild), &[])?;
    context.survives_messages(link)
}

fn inflight_no_memory(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_with(USUAL | ProtocolFeatures::INFLIGHT_SHMFD)?;
    let file = SharedFile::new(4096)?;
    let wild = Inflight { mmap_size: 1 << 40, mmap_offset: 12345, num_queues: 1, queue_size: 128 };
    link.send(&SetInflightFd(wild), &[file.as_fd()])?;
    context.survives_messages(link)
}

fn log_past_file(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_with(USUAL | ProtocolFeatures::LOG_SHMFD)?;
    let file = SharedFile::new(4096)?;
    link.send(&SetLogBase(Log { size: 1 << 40, offset: 1 << 20 }), &[file.as_fd()])?;
    context.survives_messages(link)
}

fn log_without_memory(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_with(USUAL | ProtocolFeatures::LOG_SHMFD)?;
    link.send(&SetLogBase(Log { size: 4096, offset: 0 }), &[])?;
    context.survives_messages(link)
}

fn backend_channel_no_socket(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_with(USUAL | ProtocolFeatures::BACKEND_REQ)?;
    let file = tempfile::tempfile()?;
    link.send(&SetBackendReqFd(Empty), &[file.as_fd()])?;
    context.survives_messages(link)
}

fn postcopy_uninvited(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    for request in [29, 30] {
        link.send_raw(request, Flags::request(), &[], &[]).or_else(closed_is_fine)?;
    }
    context.survives_messages(link)
}

fn many_descriptors(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let event = Event::new()?;
    for _ in 0..4 {
        // As many as one message of ours can have.
        link.send_raw(1, Flags::request(), &[], &[event.as_fd(); 64]).or_else(closed_is_fine)?;
    }
    context.survives_messages(link)
}

/// Requests whose replies are not read until the socket is full or time is up; then all are read.
fn flood_unread(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    link.note("GET_FEATURES is sent until the backend reads no more");
    let before = context.resources().ok();
    link.channel().set_timeout(std::time::Duration::from_millis(100));
    let question = Header { request: 1, flags: Flags::request(), payload_bytes: 0 }.encode().repeat(64);
    let mut asked = 0_u32;
    while asked < 2000 && link.channel().send_bytes(&question, &[]).is_ok() {
        asked += 1;
    }
    let after = context.resources().ok();
    drop(link);
    if let (Some(before), Some(after)) = (before, after)
        && after.resident_kib > before.resident_kib + (32 << 10)
    {
        return Stop::fail(format!(
            "unread replies made its memory grow from {} to {} KiB",
            before.resident_kib, after.resident_kib
        ));
    }
    context.serves_again()
}

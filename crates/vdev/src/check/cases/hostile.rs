//! Messages that no frontend sends. A backend may refuse, ignore or close; it must go on serving.

use std::os::fd::{AsFd as _, OwnedFd};

use super::prelude::*;
use crate::check::guest::Guest;
use crate::check::ring::SplitRing;
use crate::memory::SharedFile;
use crate::protocol::{Header, Inflight, Log};
use crate::socket::Event;

const HARM: &[Need] = &[Need::Harm];
const MESSAGES: &str = "Message Specification";
const HEADER: &str = "Header";
const STATE: &str = "A vring state description";
const SURVIVES: &str =
    "no message ends a backend: it would end a guest's disk or network, and those of others that it serves";

macro_rules! hostile {
    ($($id:literal, $section:expr, $run:expr;)*) => {
        &[$(Case { id: concat!("hostile.", $id), level: Must, section: $section, reason: SURVIVES, needs: HARM, run: $run }),*]
    };
}

#[rustfmt::skip]
pub const CASES: &[Case] = hostile! {
    "unknown-request", MESSAGES, |context| message(context, 200, Flags::request(), &[0; 8]);
    "unknown-request-asks", "VHOST_USER_PROTOCOL_F_REPLY_ACK", |context| message(context, 200, Flags::request_with_reply(), &[0; 8]);
    "request-zero", MESSAGES, |context| message(context, 0, Flags::request(), &[]);
    "request-largest", MESSAGES, |context| message(context, u32::MAX, Flags::request(), &[]);
    "version-zero", HEADER, |context| message(context, 1, Flags::from_bits(0), &[]);
    "version-two", HEADER, |context| message(context, 1, Flags::from_bits(2), &[]);
    "reserved-flags", HEADER, |context| message(context, 1, Flags::from_bits(0xffff_fff1), &[]);
    "reply-flag", HEADER, |context| message(context, 1, Flags::reply(), &[]);
    "payload-missing", MESSAGES, payload_missing;
    "payload-short", MESSAGES, payload_short;
    "payload-long", MESSAGES, payload_long;
    "payload-on-question", MESSAGES, |context| message(context, 1, Flags::request(), &[0xff; 64]);
    "size-huge", MESSAGES, size_huge;
    "size-largest", MESSAGES, |context| bytes(context, &Header { request: 5, flags: Flags::request(), payload_bytes: u32::MAX }.encode());
    "half-a-header", MESSAGES, |context| bytes(context, &[1, 0, 0, 0, 1]);
    "half-a-message", MESSAGES, half_a_message;
    "noise", MESSAGES, |context| bytes(context, &crate::check::disk::pattern(99, 4096));
    "zeros", MESSAGES, |context| bytes(context, &[0; 4096]);
    "every-request-empty", MESSAGES, |context| every_request(context, &[]);
    "every-request-ones", MESSAGES, |context| every_request(context, &[0xff; 40]);
    "every-request-zeros", MESSAGES, |context| every_request(context, &[0; 40]);
    "index-set-vring-num", STATE, |context| index(context, 8);
    "index-set-vring-base", STATE, |context| index(context, 10);
    "index-get-vring-base", STATE, |context| index(context, 11);
    "index-set-vring-enable", STATE, |context| index(context, 18);
    "index-set-vring-addr", "A vring address description", index_address;
    "index-set-vring-kick", "VHOST_USER_SET_VRING_KICK", |context| index_file(context, 12);
    "index-set-vring-call", "VHOST_USER_SET_VRING_CALL", |context| index_file(context, 13);
    "index-set-vring-err", "VHOST_USER_SET_VRING_ERR", |context| index_file(context, 14);
    "index-negative", STATE, |context| message(context, 8, Flags::request(), &[0xff, 0xff, 0xff, 0xff, 64, 0, 0, 0]);
    "regions-count", "Memory regions description", regions_count;
    "regions-overflow", "Memory regions description", regions_overflow;
    "region-in-a-pipe", "Memory regions description", region_in_a_pipe;
    "region-is-the-socket", "Memory regions description", region_is_the_socket;
    "memory-gone-under-ring", "Memory access", memory_gone;
    "enable-nothing", "VHOST_USER_SET_VRING_ENABLE", |context| message(context, 18, Flags::request(), &[0, 0, 0, 0, 1, 0, 0, 0]);
    "enable-with-wild-value", "VHOST_USER_SET_VRING_ENABLE", |context| message(context, 18, Flags::request(), &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    "kick-before-address", "Ring states", kick_before_address;
    "kick-is-a-file", "VHOST_USER_SET_VRING_KICK", kick_is_a_file;
    "kick-has-ended", "VHOST_USER_SET_VRING_KICK", kick_has_ended;
    "call-is-a-file", "VHOST_USER_SET_VRING_CALL", call_is_a_file;
    "config-size-lies", "Virtio device config space", config_size_lies;
    "config-huge", "Virtio device config space", config_huge;
    "inflight-wild", "Inflight description", inflight_wild;
    "inflight-no-memory", "VHOST_USER_SET_INFLIGHT_FD", inflight_no_memory;
    "log-past-file", "Log description", log_past_file;
    "log-without-memory", "Log description", log_without_memory;
    "backend-channel-no-socket", "Back-end communication", backend_channel_no_socket;
    "set-features-all", "VHOST_USER_SET_FEATURES", |context| message(context, 2, Flags::request(), &u64::MAX.to_ne_bytes());
    "set-protocol-features-all", "VHOST_USER_SET_PROTOCOL_FEATURES", |context| message(context, 16, Flags::request(), &u64::MAX.to_ne_bytes());
    "postcopy-uninvited", "VHOST_USER_POSTCOPY_LISTEN", postcopy_uninvited;
    "many-descriptors", "Communication", many_descriptors;
    "flood-unread", "Communication", flood_unread;
};

/// A message, on a session that has negotiated the usual.
fn message(context: &mut Context<'_>, request: u32, flags: Flags, payload: &[u8]) -> Outcome {
    let mut link = context.open_device()?;
    link.send_raw(request, flags, payload, &[])?;
    context.survives_messages(link)
}

/// Bytes, and then the end: whoever waits for more must see it.
fn bytes(context: &mut Context<'_>, bytes: &[u8]) -> Outcome {
    let mut link = context.open_device()?;
    link.send_bytes(bytes, &[], &format!("{} bytes that are no message", bytes.len()))?;
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

/// Every request there is with this payload, each on a connection of its own where the one before was closed.
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

/// A ring that nobody has: the first beyond 8 bits, and one far beyond any array.
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
    let ring = SplitRing::new(&mut guest, 0, 128)?;
    ring.start(&mut link)?;
    Ok((link, guest, ring))
}

fn kick_before_address(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let mut guest = Guest::new()?;
    let ring = SplitRing::new(&mut guest, 0, 128)?;
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
    let ring = SplitRing::new(&mut guest, 0, 128)?;
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
    // More than anybody has; a backend that makes all of it takes 64 MiB, which ends no host.
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

/// Questions whose answers nobody reads, until the socket is full or time is up; then all are read.
fn flood_unread(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    link.note("GET_FEATURES is asked until the backend takes no more");
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
            "unread answers made it grow from {} to {} KiB",
            before.resident_kib, after.resident_kib
        ));
    }
    context.serves_again()
}

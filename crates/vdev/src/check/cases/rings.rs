//! Rings without requests: sizes, places, indices, and the states that they go through.

use std::os::fd::{AsFd as _, BorrowedFd};

use super::prelude::*;
use crate::check::guest::Guest;
use crate::check::ring::SplitRing;
use crate::socket::Event;

const ACK: Need = Need::Protocol(ProtocolFeatures::REPLY_ACK);
const PROTOCOL: Need = Need::Feature(feature::PROTOCOL_FEATURES, "VHOST_USER_F_PROTOCOL_FEATURES");
const NUM: &str = "VHOST_USER_SET_VRING_NUM";
const ADDR: &str = "VHOST_USER_SET_VRING_ADDR";
const GET_BASE: &str = "VHOST_USER_GET_VRING_BASE";
const STATES: &str = "Ring states";
const SIZES: &str = "VIRTIO 1.2, 2.7 Split Virtqueues";

cases! {
    "rings.size-64" Must [ACK] |context| takes_size(context, 64),
        NUM =>
            "QEMU uses rings of 64 for devices that it does not know; vhost-user has no message by which a backend \
             could request smaller ones";
    "rings.size-128" Should [ACK] |context| takes_size(context, 128),
        NUM => "QEMU uses this size for disks and consoles";
    "rings.size-256" Should [ACK] |context| takes_size(context, 256),
        NUM => "most rings have this size; \"the maximum Queue Size\" of a device may be smaller";
    "rings.size-2" Should [ACK] |context| takes_size(context, 2),
        NUM => "a queue size is any power of 2 up to what the device allows";
    "rings.size-1" May [ACK] |context| takes_size(context, 1),
        SIZES => "1 is a power of 2, and the smallest ring";
    "rings.size-1024" Should [ACK] |context| takes_size(context, 1024),
        NUM => "this is QEMU's largest ring, and its default on virtio-mmio forevery backend";
    "rings.size-zero" Should [ACK] |context| refuses_size(context, 0),
        SIZES => "a ring without entries holds no descriptor, and an index modulo 0 is a division by zero";
    "rings.size-no-power-of-2" Should [ACK] |context| refuses_size(context, 100),
        SIZES =>
            "\"Queue Size value is always a power of 2\" in a split ring; with another size, indices are wrong after \
             they wrap";
    "rings.size-too-large" Should [ACK] |context| refuses_size(context, 65536),
        SIZES => "\"The maximum Queue Size value is 32768\"; indices have 16 bits";
    "rings.every-queue" Must [ACK] every_queue,
        "Multiple queue support" => "a frontend may set up as many queues as GET_QUEUE_NUM returns";
    "rings.queues-apart" Must [ACK, Need::Queues(2)] queues_apart,
        "Multiple queue support" =>
            "\"the front-end uses a unique index for each queue\": a message for one queue does not change another";
    "rings.beyond-queue-num" Should [ACK, Need::Protocol(ProtocolFeatures::MQ)] beyond_queue_num,
        "VHOST_USER_GET_QUEUE_NUM" => "a frontend would wait forever for a ring that the backend does not serve";
    "rings.base-kept" Must [ACK] base_kept,
        GET_BASE =>
            "a migrated device continues at the index from SET_VRING_BASE; any other index repeats or loses requests";
    "rings.base-at-the-end" Must [ACK] base_at_the_end,
        GET_BASE => "an available index has 16 bits, independent of the size of its ring";
    "rings.stop-answers-for-its-ring" Must [ACK] stop_answers,
        GET_BASE => "the reply is a vring state description: the ring's index and its next available index";
    "rings.stop-before-start" Must [ACK] stop_before_start,
        "Communication" =>
            "GET_VRING_BASE is in the list of messages that have a reply, in every state of the ring";
    "rings.stop-twice" Should [ACK] stop_twice,
        GET_BASE => "a ring that is already stopped still has an available index";
    "rings.start-again" Must [ACK] start_again,
        STATES => "a guest that reboots stops its rings and starts them at other addresses";
    "rings.stop-forgets-kick" Should [ACK] stop_forgets_kick,
        STATES => "a stopped ring is started by its next kick descriptor, so the backend must not use the old one";
    "rings.enable-and-disable" Must [ACK, PROTOCOL] enable_and_disable,
        "VHOST_USER_SET_VRING_ENABLE" => "\"Rings can be enabled or disabled by VHOST_USER_SET_VRING_ENABLE\"";
    "rings.enable-before-kick" Should [ACK, PROTOCOL] enable_before_kick,
        STATES => "a stopped ring keeps its enabled state";
    "rings.kick-without-fd" Should [ACK] |context| without_fd(context, 12),
        "VHOST_USER_SET_VRING_KICK" => "bit 8: \"polling should be used instead of waiting for the kick\"";
    "rings.call-without-fd" Must [ACK] |context| without_fd(context, 13),
        "VHOST_USER_SET_VRING_CALL" =>
            "bit 8: \"polling will be used instead of waiting for the call\"; guests that poll do this";
    "rings.err-without-fd" Should [ACK] |context| without_fd(context, 14),
        "VHOST_USER_SET_VRING_ERR" => "bit 8: \"there is no file descriptor in the ancillary data\"";
    "rings.fd-promised" Should [ACK] fd_promised,
        "VHOST_USER_SET_VRING_CALL" =>
            "without bit 8 the message has a descriptor; if it is missing, calls are lost";
    "rings.call-before-size" Should [ACK] call_before_size,
        "VHOST_USER_SET_VRING_CALL" => "QEMU sends SET_VRING_CALL long before it sets up the ring";
    "rings.call-changed-while-running" Must [ACK] call_changed,
        STATES =>
            "while processing rings \"the back-end must support changing some configuration aspects on the fly\"; \
             guests mask interrupts this way";
    "rings.outside-memory" Should [ACK] outside_memory,
        ADDR =>
            "\"User addresses map to the vhost memory region containing that user address\"; an address outside all \
             regions is an error";
    "rings.partly-outside-memory" Should [ACK] partly_outside_memory,
        ADDR => "a ring that ends beyond its memory region makes the backend read and write outside it";
    "rings.unaligned" May [ACK] unaligned,
        SIZES =>
            "the descriptor table is aligned to 16 bytes, the used ring to 4, the available ring to 2";
    "rings.address-before-memory" May [ACK] address_before_memory,
        ADDR => "an address cannot be valid before there is memory, so success would be wrong";
    "rings.endian-value" Should [ACK, Need::Protocol(ProtocolFeatures::CROSS_ENDIAN)] endian_value,
        "VHOST_USER_SET_VRING_ENDIAN" => "0 and 1 are byte orders, \"Other values are invalid\"";
    "rings.reset-device" Must [ACK, Need::Protocol(ProtocolFeatures::RESET_DEVICE)] reset_device,
        "VHOST_USER_RESET_DEVICE" => "after a reset the device is \"ready to be reinitialized\"";
    "rings.features-enable-all" Must [ACK, PROTOCOL] legacy_start,
        STATES => "if bit 30 is not negotiated, rings start enabled, without SET_VRING_ENABLE";
}

/// A session with memory.
fn open(context: &mut Context<'_>) -> Outcome<(Link, Guest)> {
    let mut link = context.open_device()?;
    let guest = Guest::new()?;
    guest.share(&mut link)?;
    Ok((link, guest))
}

/// A session with a ring that runs.
fn running(context: &mut Context<'_>) -> Outcome<(Link, Guest, SplitRing)> {
    let (mut link, mut guest) = open(context)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    ring.start(&mut link)?;
    Ok((link, guest, ring))
}

fn takes_size(context: &mut Context<'_>, size: u16) -> Outcome {
    let (mut link, mut guest) = open(context)?;
    let ring = SplitRing::new(&mut guest, 0, size)?;
    ring.start(&mut link)?;
    ring.stop(&mut link).map(drop)
}

fn refuses_size(context: &mut Context<'_>, size: u32) -> Outcome {
    let (mut link, _guest) = open(context)?;
    link.require_refusal(&SetVringNum(VringState { index: 0, num: size }), &[], &format!("a ring of {size} entries"))
}

fn every_queue(context: &mut Context<'_>) -> Outcome {
    let (mut link, mut guest) = open(context)?;
    let queues = context.facts.queues.min(256);
    let rings = (0..queues).map(|index| SplitRing::new(&mut guest, u32::try_from(index).unwrap_or(0), 64));
    let rings = rings.collect::<Outcome<Vec<_>>>()?;
    for ring in &rings {
        ring.start(&mut link)?;
    }
    for ring in &rings {
        ring.stop(&mut link)?;
    }
    Ok(())
}

fn queues_apart(context: &mut Context<'_>) -> Outcome {
    let (mut link, mut guest) = open(context)?;
    let mut rings = [SplitRing::new(&mut guest, 0, 64)?, SplitRing::new(&mut guest, 1, 32)?];
    rings[0].start_at(7);
    rings[1].start_at(19);
    for ring in &rings {
        ring.start(&mut link)?;
    }
    for ring in &rings {
        let base = ring.stop(&mut link)?;
        if base != u32::from(ring.offered) {
            return Stop::fail(format!(
                "ring {}: SET_VRING_BASE set the available index to {}, GET_VRING_BASE returned {base}",
                ring.index, ring.offered
            ));
        }
    }
    Ok(())
}

fn beyond_queue_num(context: &mut Context<'_>) -> Outcome {
    let (mut link, _guest) = open(context)?;
    // QEMU and DPDK take the number of a network card for that of pairs, others for that of rings.
    let rings_each = if context.device == Some(DeviceKind::Net) { 2 } else { 1 };
    let index = u32::try_from(context.facts.queues.saturating_mul(rings_each)).unwrap_or(u32::MAX);
    link.require_refusal(&SetVringNum(VringState { index, num: 64 }), &[], &format!("ring {index} of {index} queues"))
}

fn base_kept(context: &mut Context<'_>) -> Outcome {
    keeps_base(context, 5)
}

fn base_at_the_end(context: &mut Context<'_>) -> Outcome {
    keeps_base(context, 65535)
}

fn keeps_base(context: &mut Context<'_>, base: u16) -> Outcome {
    let (mut link, mut guest) = open(context)?;
    let mut ring = SplitRing::new(&mut guest, 0, 64)?;
    ring.start_at(base);
    ring.start(&mut link)?;
    let found = ring.stop(&mut link)?;
    if found == u32::from(base) {
        return Ok(());
    }
    Stop::fail(format!(
        "SET_VRING_BASE set the available index to {base}, the ring had no requests, and GET_VRING_BASE returned \
         {found}"
    ))
}

fn stop_answers(context: &mut Context<'_>) -> Outcome {
    let (mut link, _guest, ring) = running(context)?;
    // `stop` checks whose reply it is.
    ring.stop(&mut link).map(drop)
}

fn stop_before_start(context: &mut Context<'_>) -> Outcome {
    let (mut link, mut guest) = open(context)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    ring.place(&mut link)?;
    ring.stop(&mut link).map(drop)
}

fn stop_twice(context: &mut Context<'_>) -> Outcome {
    let (mut link, _guest, ring) = running(context)?;
    let first = ring.stop(&mut link)?;
    let second = ring.stop(&mut link)?;
    if first == second { Ok(()) } else { Stop::fail(format!("GET_VRING_BASE returned {first}, then {second}")) }
}

fn start_again(context: &mut Context<'_>) -> Outcome {
    let (mut link, mut guest, ring) = running(context)?;
    ring.stop(&mut link)?;
    let elsewhere = SplitRing::new(&mut guest, 0, 64)?;
    elsewhere.start(&mut link)?;
    elsewhere.stop(&mut link).map(drop)
}

fn stop_forgets_kick(context: &mut Context<'_>) -> Outcome {
    let (mut link, _guest, ring) = running(context)?;
    ring.stop(&mut link)?;
    ring.kick()?;
    link.features()?;
    // The backend must not take the signal: one that waits on a stopped ring would start it.
    if ring.kick.take()? { Ok(()) } else { Stop::fail("the backend read the kick of a stopped ring") }
}

fn enable_and_disable(context: &mut Context<'_>) -> Outcome {
    let (mut link, _guest, ring) = running(context)?;
    for enabled in [false, false, true, true, false] {
        ring.enable(&mut link, enabled)?;
    }
    ring.stop(&mut link).map(drop)
}

fn enable_before_kick(context: &mut Context<'_>) -> Outcome {
    let (mut link, mut guest) = open(context)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    ring.enable(&mut link, true)?;
    ring.place(&mut link)?;
    ring.connect(&mut link)?;
    ring.stop(&mut link).map(drop)
}

/// Sends one of `SET_VRING_KICK`, `_CALL`, `_ERR` without a descriptor.
fn without_fd(context: &mut Context<'_>, request: u32) -> Outcome {
    let (mut link, mut guest) = open(context)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    ring.place(&mut link)?;
    if request != 12 {
        ring.connect(&mut link)?;
    }
    let polled = VringFile::polled(0);
    match request {
        12 => link.require(&SetVringKick(polled), &[]),
        13 => link.require(&SetVringCall(polled), &[]),
        _ => link.require(&SetVringErr(polled), &[]),
    }
}

fn fd_promised(context: &mut Context<'_>) -> Outcome {
    let (mut link, mut guest) = open(context)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    ring.place(&mut link)?;
    let promised = SetVringCall(VringFile::with_descriptor(0));
    link.require_refusal(&promised, &[], "SET_VRING_CALL without bit 8 and without a descriptor")
}

fn call_before_size(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let call = Event::new()?;
    link.require(&SetVringCall(VringFile::with_descriptor(0)), &[call.as_fd()])
}

fn call_changed(context: &mut Context<'_>) -> Outcome {
    let (mut link, _guest, _ring) = running(context)?;
    let calls = [Event::new()?, Event::new()?];
    let fds: [BorrowedFd<'_>; 2] = calls.each_ref().map(|call| call.as_fd());
    for fd in fds {
        link.require(&SetVringCall(VringFile::with_descriptor(0)), &[fd])?;
    }
    Ok(())
}

fn outside_memory(context: &mut Context<'_>) -> Outcome {
    let (mut link, mut guest) = open(context)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    link.require(&SetVringNum(ring.state(64)), &[])?;
    let outside =
        VringAddress { index: 0, descriptor: 0x1000, used: 0x3000, available: 0x2000, ..VringAddress::default() };
    link.require_refusal(&SetVringAddr(outside), &[], "a ring outside guest memory")
}

fn partly_outside_memory(context: &mut Context<'_>) -> Outcome {
    let (mut link, mut guest) = open(context)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    link.require(&SetVringNum(ring.state(64)), &[])?;
    let region = guest.region(0);
    let descriptor = region.user_address + region.size - 64;
    let outside = VringAddress { descriptor, ..ring.address() };
    link.require_refusal(
        &SetVringAddr(outside),
        &[],
        "a descriptor table of which 4 entries are in memory and 60 are not",
    )
}

fn unaligned(context: &mut Context<'_>) -> Outcome {
    let (mut link, mut guest) = open(context)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    link.require(&SetVringNum(ring.state(64)), &[])?;
    let address = ring.address();
    let unaligned = VringAddress { used: address.used + 1, ..address };
    link.require_refusal(&SetVringAddr(unaligned), &[], "a used ring at an odd address")
}

fn address_before_memory(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let mut guest = Guest::new()?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    link.require(&SetVringNum(ring.state(64)), &[])?;
    link.require_refusal(&SetVringAddr(ring.address()), &[], "a ring without guest memory")
}

fn endian_value(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_with(USUAL | ProtocolFeatures::CROSS_ENDIAN)?;
    link.require_refusal(&SetVringEndian(VringState { index: 0, num: 2 }), &[], "byte order 2")
}

fn reset_device(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_with(USUAL | ProtocolFeatures::RESET_DEVICE)?;
    let features = usual_features(link.offered);
    for _ in 0..2 {
        link.require(&SetFeatures(features), &[])?;
        let mut guest = Guest::new()?;
        guest.share(&mut link)?;
        let ring = SplitRing::new(&mut guest, 0, 64)?;
        ring.start(&mut link)?;
        link.require(&ResetDevice(Empty), &[])?;
    }
    Ok(())
}

fn legacy_start(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open()?;
    let features = usual_features(link.offered) & !feature::PROTOCOL_FEATURES;
    link.require(&SetFeatures(features), &[])?;
    let mut guest = Guest::new()?;
    guest.share(&mut link)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    ring.place(&mut link)?;
    ring.connect(&mut link)?;
    ring.stop(&mut link).map(drop)
}

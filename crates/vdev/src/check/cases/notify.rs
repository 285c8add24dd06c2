//! Kicks and calls: who notifies whom, when, and how notifications are disabled.

use std::os::fd::AsFd as _;
use std::time::Duration;

use super::data::Batch;
use super::prelude::*;
use crate::check::disk::{Disk, Setup, kind};
use crate::check::ring::NO_INTERRUPT;
use crate::socket::Event;

const DATA: Need = Need::DataPath;
const EVENT_IDX: Need = Need::Feature(feature::RING_EVENT_IDX, "VIRTIO_F_EVENT_IDX");
const SUPPRESSION: &str = "VIRTIO 1.2, 2.7.7.2 Device Requirements: Used Buffer Notification Suppression";
/// How long a call is waited for that shall not come.
const QUIET: Duration = Duration::from_millis(20);

cases! {
    "data.call" Must [DATA] call,
        "VHOST_USER_SET_VRING_CALL" => "the call descriptor is signalled \"when buffers are used\"";
    "data.call-changed" Must [DATA] call_changed,
        "Ring states" =>
            "a VMM may change the call descriptor while the ring runs; the backend then signals the new one";
    "data.call-not-wanted" Should [DATA] call_not_wanted,
        SUPPRESSION => "with flags 1 in the available ring \"the device SHOULD NOT send a notification\"";
    "data.call-without-fd" Must [DATA] call_without_fd,
        "VHOST_USER_SET_VRING_CALL" => "bit 8: the driver polls the used ring, and requests still complete";
    "data.call-again-after-polling" Must [DATA] call_again,
        "VHOST_USER_SET_VRING_CALL" =>
            "the backend signals a call descriptor from when it is set, also if it is set late";
    "data.kick-without-fd" Should [DATA] kick_without_fd,
        "VHOST_USER_SET_VRING_KICK" => "bit 8: \"polling should be used instead of waiting for the kick\"";
    "data.one-kick-for-many" Must [DATA] one_kick_for_many,
        "VIRTIO 1.2, 2.7.13 Supplying Buffers to The Device" =>
            "one kick covers all requests that were made available before it";
    "data.kick-without-request" Must [DATA] kick_without_request,
        "VIRTIO 1.2, 2.7.13 Supplying Buffers to The Device" => "a kick may come without a new request";
    "data.offered-while-working" Must [DATA] offered_while_working,
        "VIRTIO 1.2, 2.7.13 Supplying Buffers to The Device" =>
            "a request that is made available while others complete is not lost";
    "data.event-idx" Must [DATA, EVENT_IDX] event_idx,
        SUPPRESSION => "with EVENT_IDX the device \"MUST send a notification\" when the used index passes `used_event`";
    "data.event-idx-quiet" Should [DATA, EVENT_IDX] event_idx_quiet,
        SUPPRESSION => "with EVENT_IDX the device SHOULD NOT notify before the used index passes `used_event`";
    "data.event-idx-ignores-flags" Must [DATA, EVENT_IDX] event_idx_ignores_flags,
        SUPPRESSION => "with EVENT_IDX \"the device MUST ignore the lower bit of flags\"";
    "data.event-idx-wraps" Must [DATA, EVENT_IDX] event_idx_wraps,
        SUPPRESSION => "`used_event` is passed at index 65535 too";
}

/// A read that is done and found by polling.
fn polled_read(disk: &mut Disk, timeout: Duration) -> Outcome {
    let batch = Batch::new(&mut disk.guest, &disk.ring);
    let data = disk.data_at();
    batch.offer(&disk.guest, &mut disk.ring, 0, kind::IN, 0, data);
    disk.ring.publish();
    disk.ring.kick()?;
    if disk.ring.is_quiet_for(timeout) {
        return Err(Stop::Hang(format!("a request did not complete within {timeout:?}")));
    }
    disk.ring.take_used();
    Ok(())
}

/// Fails unless the call comes.
fn must_call(call: &Event, timeout: Duration, what: &str) -> Outcome {
    if call.wait(timeout)? {
        Ok(())
    } else {
        Stop::fail(format!("{what}: a request completed, but no call came within {timeout:?}"))
    }
}

/// Fails if a call comes.
fn must_not_call(call: &Event, what: &str) -> Outcome {
    if call.wait(QUIET)? { Stop::fail(format!("{what}: an unexpected call came")) } else { Ok(()) }
}

fn call(context: &mut Context<'_>) -> Outcome {
    let timeout = context.timeout();
    let mut disk = Disk::open(context)?;
    for _ in 0..3 {
        polled_read(&mut disk, timeout)?;
        must_call(&disk.ring.call, timeout, "a read")?;
    }
    Ok(())
}

fn call_changed(context: &mut Context<'_>) -> Outcome {
    let timeout = context.timeout();
    let mut disk = Disk::open(context)?;
    polled_read(&mut disk, timeout)?;
    must_call(&disk.ring.call, timeout, "a read")?;
    let old = std::mem::replace(&mut disk.ring.call, Event::new()?);
    disk.link.require(&SetVringCall(VringFile::with_descriptor(0)), &[disk.ring.call.as_fd()])?;
    // One more call for a new descriptor is allowed: the driver may have missed what was used before.
    disk.ring.call.take()?;
    old.take()?;
    polled_read(&mut disk, timeout)?;
    must_call(&disk.ring.call, timeout, "a read after the call descriptor changed")?;
    must_not_call(&old, "the old call descriptor")
}

fn call_not_wanted(context: &mut Context<'_>) -> Outcome {
    let timeout = context.timeout();
    let mut disk = Disk::open(context)?;
    disk.ring.set_available_flags(NO_INTERRUPT);
    disk.ring.call.take()?;
    polled_read(&mut disk, timeout)?;
    must_not_call(&disk.ring.call, "the driver disabled calls")?;
    disk.ring.set_available_flags(0);
    polled_read(&mut disk, timeout)?;
    must_call(&disk.ring.call, timeout, "a read after calls were enabled again")
}

fn call_without_fd(context: &mut Context<'_>) -> Outcome {
    let timeout = context.timeout();
    let mut disk = Disk::open(context)?;
    disk.link.require(&SetVringCall(VringFile::polled(0)), &[])?;
    for _ in 0..3 {
        polled_read(&mut disk, timeout)?;
    }
    Ok(())
}

fn call_again(context: &mut Context<'_>) -> Outcome {
    let timeout = context.timeout();
    let mut disk = Disk::open(context)?;
    disk.link.require(&SetVringCall(VringFile::polled(0)), &[])?;
    polled_read(&mut disk, timeout)?;
    disk.link.require(&SetVringCall(VringFile::with_descriptor(0)), &[disk.ring.call.as_fd()])?;
    disk.ring.call.take()?;
    polled_read(&mut disk, timeout)?;
    must_call(&disk.ring.call, timeout, "a read after the call descriptor was set")
}

fn kick_without_fd(context: &mut Context<'_>) -> Outcome {
    let mut disk = Disk::open_with(context, &Setup { start: false, ..Setup::default() })?;
    disk.ring.place(&mut disk.link)?;
    disk.link.require(&SetVringCall(VringFile::with_descriptor(0)), &[disk.ring.call.as_fd()])?;
    disk.link.require(&SetVringKick(VringFile::polled(0)), &[])?;
    disk.ring.enable(&mut disk.link, true)?;
    match polled_read(&mut disk, Duration::from_millis(500)) {
        Err(Stop::Hang(_)) => Stop::fail(
            "the backend does not poll a ring without a kick descriptor: a request did not complete within 500 ms",
        ),
        outcome => outcome,
    }
}

fn one_kick_for_many(context: &mut Context<'_>) -> Outcome {
    let timeout = context.timeout();
    let mut disk = Disk::open(context)?;
    let batch = Batch::new(&mut disk.guest, &disk.ring);
    let count = Batch::count(&disk.ring);
    for place in 0..count {
        let data = disk.data_at() + 512 * u64::from(place);
        batch.offer(&disk.guest, &mut disk.ring, place, kind::IN, 0, data);
        disk.ring.publish();
    }
    disk.ring.kick()?;
    batch.complete(&mut disk, count, timeout)
}

fn kick_without_request(context: &mut Context<'_>) -> Outcome {
    let mut disk = Disk::open(context)?;
    for _ in 0..10 {
        disk.ring.kick()?;
        disk.link.features()?;
    }
    if disk.ring.used_index() != 0 {
        return Stop::fail("a kick without a request produced a used buffer");
    }
    disk.read(0, 512).map(drop)
}

fn offered_while_working(context: &mut Context<'_>) -> Outcome {
    let timeout = context.timeout();
    let mut disk = Disk::open(context)?;
    let batch = Batch::new(&mut disk.guest, &disk.ring);
    let count = Batch::count(&disk.ring);
    for _ in 0..20 {
        for place in 0..count {
            let data = disk.data_at() + 512 * u64::from(place);
            batch.offer(&disk.guest, &mut disk.ring, place, kind::IN, 0, data);
            // One by one, each with its kick, while the device works on those before.
            disk.ring.publish();
            disk.ring.kick()?;
        }
        batch.complete(&mut disk, count, timeout)?;
    }
    Ok(())
}

/// A disk whose ring has event indices.
fn with_events(context: &mut Context<'_>, base: u16) -> Outcome<Disk> {
    Disk::open_with(context, &Setup { features: feature::RING_EVENT_IDX, base, ..Setup::default() })
}

fn event_idx(context: &mut Context<'_>) -> Outcome {
    calls_at_the_third(context, 0, false)
}

fn event_idx_wraps(context: &mut Context<'_>) -> Outcome {
    calls_at_the_third(context, 65534, false)
}

fn event_idx_quiet(context: &mut Context<'_>) -> Outcome {
    calls_at_the_third(context, 0, true)
}

/// A read; then three, for only the last of which the driver requests a call.
fn calls_at_the_third(context: &mut Context<'_>, base: u16, quiet_before: bool) -> Outcome {
    let timeout = context.timeout();
    let mut disk = with_events(context, base)?;
    // A call for the first is allowed in any case: the device does not remember its calls.
    disk.ring.set_used_event(base);
    polled_read(&mut disk, timeout)?;
    must_call(&disk.ring.call, timeout, "the first read")?;
    disk.ring.set_used_event(base.wrapping_add(3));
    disk.ring.call.take()?;
    for place in 0..3 {
        polled_read(&mut disk, timeout)?;
        if place < 2 && quiet_before {
            must_not_call(&disk.ring.call, "the used index has not passed `used_event`")?;
        } else if place < 2 {
            disk.ring.call.take()?;
        }
    }
    must_call(&disk.ring.call, timeout, "the used index has passed `used_event`")
}

fn event_idx_ignores_flags(context: &mut Context<'_>) -> Outcome {
    let timeout = context.timeout();
    let mut disk = with_events(context, 0)?;
    disk.ring.set_available_flags(NO_INTERRUPT);
    disk.ring.set_used_event(0);
    polled_read(&mut disk, timeout)?;
    must_call(&disk.ring.call, timeout, "the used index has passed `used_event`, flags are 1")
}

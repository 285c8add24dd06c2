//! Block devices that break the protocol of their ring, or do nothing there: reported, not followed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Standin, TIMEOUT};
use crate::frontend::blk::{BlkDriver, BlkOptions, BlkRequest, BlkStatus, Done};
use crate::frontend::{Frontend, FrontendError, Options, Wish};
use crate::memory::{GuestMemory, Region, SharedFile};
use crate::protocol::{ProtocolFeatures, frontend as message};
use crate::queue::{Chain, DeviceRing, QueueError, RingKind, RingLayout};
use crate::socket::{Channel, Event};
use crate::virtio::feature;

const FEATURES: u64 = feature::VERSION_1 | feature::PROTOCOL_FEATURES;
const LAYOUT: RingLayout = RingLayout { kind: RingKind::Split, size: 8, event_idx: false, indirect: false };
/// A block's bytes, and its status.
const WRITTEN: u32 = 513;

/// The device's side of one ring, with the first request in it.
struct Device {
    standin: Standin,
    ring: DeviceRing,
    chain: Chain,
    call: Event,
    err: Event,
}

impl Device {
    /// Takes a session until its ring is enabled and the first request is in it.
    fn take(mut standin: Standin) -> Self {
        standin.handshake(FEATURES, ProtocolFeatures::REPLY_ACK);
        let (table, raw) = standin.done::<message::SetMemTable>();
        let regions = table.0.0.into_iter().zip(raw.fds);
        let regions = regions.map(|(region, fd)| Region::map(region, SharedFile::from_peer(fd)).expect("maps"));
        let memory = GuestMemory::new(regions.map(Arc::new).collect()).expect("no overlap");
        standin.done::<message::SetVringNum>();
        let (address, _) = standin.done::<message::SetVringAddr>();
        let (base, _) = standin.done::<message::SetVringBase>();
        let event = |raw: crate::socket::RawMessage| {
            Event::from_peer(raw.fds.into_iter().next().expect("an event")).expect("is one")
        };
        let call = event(standin.done::<message::SetVringCall>().1);
        let err = event(standin.done::<message::SetVringErr>().1);
        let kick = event(standin.done::<message::SetVringKick>().1);
        standin.done::<message::SetVringEnable>();
        let mut ring = DeviceRing::new(0, LAYOUT, &address.0, base.0.num, memory).expect("lies in memory");
        let mut chain = Chain::new();
        while !ring.pop(&mut chain).expect("is right") {
            kick.wait(TIMEOUT).expect("polls");
        }
        Self { standin, ring, chain, call, err }
    }

    fn finish(&mut self, status: Option<u8>, written: u32) {
        if let Some(status) = status {
            self.chain.write_from(512, &[status]);
        }
        self.ring.push(&self.chain, written);
        let _wanted = self.ring.publish();
        self.call.signal().expect("is told");
    }
}

/// What a read of one block comes to on this device.
fn read_from(device: impl FnOnce(&mut Device) + Send + 'static) -> Result<Done, FrontendError> {
    let (ours, theirs) = Channel::pair(TIMEOUT).expect("two sockets");
    let thread = std::thread::spawn(move || {
        let mut taken = Device::take(Standin { channel: theirs, acknowledge: false });
        device(&mut taken);
        taken
    });
    let frontend = Frontend::from_channel(ours, &Options::default());
    let options = BlkOptions {
        queue_size: LAYOUT.size,
        depth: 2,
        request_bytes: 4096,
        timeout: Duration::from_millis(200),
        ..BlkOptions::default()
    };
    let mut driver = BlkDriver::start(frontend, &Wish::default(), &options).expect("starts");
    let queue = &mut driver.queues_mut()[0];
    let slot = queue.reserve().expect("is free");
    queue.submit(slot, BlkRequest::Read { sector: 0, bytes: 512 }).expect("has room");
    queue.publish().expect("kicks");
    let done = queue.next_done();
    drop(driver);
    drop(thread.join().expect("the device saw what it expected"));
    done
}

/// Two bytes of the used ring as the device has them.
fn write_used(device: &Device, at: usize, value: u16) {
    device.ring.areas().device.store_u16(at, value, Ordering::Release);
}

#[test]
fn a_request_that_is_done_says_what_was_written() {
    let done = read_from(|device| device.finish(Some(0), WRITTEN)).expect("comes back");
    assert_eq!((done.status, done.written, done.is_short()), (BlkStatus::Ok, WRITTEN, false));
}

#[test]
fn errors_of_the_device_are_told_as_its_answer() {
    let done = read_from(|device| device.finish(Some(1), 1)).expect("comes back");
    assert_eq!((done.status, done.is_short()), (BlkStatus::IoError, false));
    let done = read_from(|device| device.finish(Some(2), 1)).expect("comes back");
    assert_eq!(done.status, BlkStatus::Unsupported);
}

#[test]
fn a_length_that_is_too_small_is_seen() {
    assert!(read_from(|device| device.finish(Some(0), 1)).expect("comes back").is_short());
}

#[test]
fn a_length_that_has_no_room_is_refused() {
    let error = read_from(|device| device.finish(Some(0), WRITTEN + 1)).expect_err("has no room");
    assert!(matches!(error, FrontendError::Queue { what: QueueError::UsedLength { ring: 0, .. }, .. }), "{error}");
    assert!(error.to_string().contains("`one end`") && error.to_string().contains("ring 0"), "{error}");
}

#[test]
fn an_undefined_or_missing_status_is_refused() {
    let error = read_from(|device| device.finish(Some(7), WRITTEN)).expect_err("means nothing");
    assert!(error.to_string().ends_with("ring 0: the device completed read with the undefined status 7"));
    let error = read_from(|device| device.finish(None, WRITTEN)).expect_err("is not a status");
    assert!(error.to_string().ends_with("ring 0: the device completed read with no status"), "{error}");
}

#[test]
fn an_index_that_jumps_and_an_id_that_is_unknown_are_refused() {
    let error = read_from(|device| write_used(device, 2, 2)).expect_err("one is outstanding");
    assert!(matches!(error, FrontendError::Queue { what: QueueError::UsedJump { to: 2, .. }, .. }), "{error}");
    for id in [1, 7, 8, u16::MAX] {
        let unknown = move |device: &mut Device| {
            write_used(device, 4, id);
            write_used(device, 2, 1);
        };
        let error = read_from(unknown).expect_err("is not in flight");
        assert!(matches!(error, FrontendError::Queue { what: QueueError::UnknownId { .. }, .. }), "{error}");
    }
}

#[test]
fn what_was_done_without_a_call_is_found_when_time_is_up() {
    let done = read_from(|device| {
        device.chain.write_from(512, &[0]);
        device.ring.push(&device.chain, WRITTEN);
        let _wanted = device.ring.publish();
    });
    assert_eq!(done.expect("was done").status, BlkStatus::Ok);
}

#[test]
fn a_device_that_says_nothing_is_given_up_in_time() {
    let error = read_from(|_| {}).expect_err("is mute");
    assert!(error.is_timeout(), "{error}");
    assert!(error.to_string().contains("none of 1 requests of ring 0 within 200ms"), "{error}");
}

#[test]
fn a_device_that_reports_an_error_of_the_ring_or_hangs_up_is_named() {
    let error = read_from(|device| device.err.signal().expect("is told")).expect_err("can't go on");
    assert!(matches!(error, FrontendError::RingFailed { ring: 0, .. }), "{error}");
    let error = read_from(|device| device.standin.channel.shut_down()).expect_err("has gone");
    assert!(matches!(error, FrontendError::RingLost { ring: 0, outstanding: 1, .. }), "{error}");
}

#[test]
fn what_was_done_before_the_device_hung_up_counts() {
    let done = read_from(|device| {
        device.finish(Some(0), WRITTEN);
        device.standin.channel.shut_down();
    });
    assert_eq!(done.expect("was done").status, BlkStatus::Ok);
}

//! The life of a ring: what starts it, what it may do while it is disabled, and that it does nothing once it was stopped.

use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
use kiln_vdev::memory::DirtyLog;
use kiln_vdev::protocol::frontend::*;
use kiln_vdev::protocol::{Empty, Flags, ProtocolFeatures, VringAddress, VringFile, VringState};
use kiln_vdev::socket::{Channel, Event};
use kiln_vdev::virtio::feature;

use super::frontend::{ARENA_START, Frontend, Served, TIMEOUT, eventually};

/// Long enough for what must not happen to happen.
const A_WHILE: Duration = Duration::from_millis(60);

fn served() -> Served {
    Served::new(Blk::open(&BlkOptions::new(Backing::Null { bytes: 1 << 20 })).expect("a disk"))
}

fn ready(served: &Served) -> Frontend {
    let mut frontend = served.frontend();
    frontend.negotiate();
    frontend.share_memory();
    frontend
}

/// Puts one read into a ring, and kicks it.
fn submit(ring: &mut super::frontend::Ring) {
    ring.put(0, &[0; 16]);
    let buffers = [ring.buffer(4096, 512), ring.buffer(64, 1)];
    ring.submit(&[ring.buffer(0, 16)], &buffers, 1);
}

#[test]
fn a_ring_that_is_not_enabled_waits_and_goes_on_when_it_is() {
    let served = served();
    let mut frontend = ready(&served);
    let mut ring = frontend.prepare(0, 8);
    frontend.must(&SetVringKick(VringFile::with_descriptor(0)), &[ring.kick.as_fd()]);
    submit(&mut ring);
    std::thread::sleep(A_WHILE);
    assert_eq!(ring.driver.take_used(), Ok(None));
    frontend.must(&SetVringEnable(VringState { index: 0, num: 1 }), &[]);
    assert_eq!(ring.wait().written, 513);
    frontend.must(&SetVringEnable(VringState { index: 0, num: 0 }), &[]);
    submit(&mut ring);
    std::thread::sleep(A_WHILE);
    assert_eq!(ring.driver.take_used(), Ok(None));
    frontend.must(&SetVringEnable(VringState { index: 0, num: 1 }), &[]);
    assert_eq!(ring.wait().written, 513);
}

#[test]
fn without_protocol_features_a_ring_starts_enabled() {
    let served = served();
    let mut frontend = served.frontend();
    let without = !(feature::PROTOCOL_FEATURES | feature::RING_PACKED | feature::LOG_ALL);
    frontend.negotiate_as(without, ProtocolFeatures::REPLY_ACK);
    frontend.share_memory();
    let mut ring = frontend.prepare(0, 8);
    frontend.must(&SetVringKick(VringFile::with_descriptor(0)), &[ring.kick.as_fd()]);
    assert_eq!(ring.request(0, 0, 0, 512), (0, 513));
    frontend.refused(&SetVringEnable(VringState { index: 0, num: 1 }), &[]);
}

#[test]
fn a_ring_may_be_enabled_before_features_are_set_as_qemu_does() {
    let served = served();
    let mut frontend = served.frontend();
    frontend.ask(&SetOwner(Empty));
    frontend.ask(&SetProtocolFeatures(ProtocolFeatures::REPLY_ACK.bits()));
    frontend.must(&SetVringEnable(VringState { index: 0, num: 1 }), &[]);
    frontend.features = feature::VERSION_1 | feature::PROTOCOL_FEATURES;
    frontend.must(&SetFeatures(frontend.features), &[]);
    frontend.share_memory();
    let mut ring = frontend.prepare(0, 8);
    frontend.must(&SetVringKick(VringFile::with_descriptor(0)), &[ring.kick.as_fd()]);
    assert_eq!(ring.request(0, 0, 0, 512), (0, 513));
}

#[test]
fn a_ring_whose_kick_comes_before_its_addresses_starts_when_all_is_known() {
    let served = served();
    let mut frontend = served.frontend();
    frontend.negotiate();
    frontend.share_memory();
    let driver = {
        let layout = frontend.layout(8);
        kiln_vdev::queue::DriverRing::create(0, layout, &mut frontend.arena).expect("a ring")
    };
    let [kick, call, error] = [(); 3].map(|()| Event::new().expect("an event"));
    frontend.must(&SetVringKick(VringFile::with_descriptor(0)), &[kick.as_fd()]);
    frontend.must(&SetVringCall(VringFile::with_descriptor(0)), &[call.as_fd()]);
    frontend.must(&SetVringEnable(VringState { index: 0, num: 1 }), &[]);
    frontend.must(&SetVringNum(VringState { index: 0, num: 8 }), &[]);
    frontend.must(&SetVringAddr(driver.address()), &[]);
    let data = frontend.arena.allocate(1 << 20, 4096).expect("has room");
    let mut ring = super::frontend::Ring { index: 0, driver, kick, call, error, data };
    submit(&mut ring);
    assert_eq!(ring.wait().written, 513);
}

#[test]
fn a_ring_that_was_stopped_says_where_it_stands_and_does_nothing_more() {
    let served = served();
    let mut frontend = ready(&served);
    let mut ring = frontend.ring(0, 8);
    for _ in 0..5 {
        assert_eq!(ring.request(0, 0, 0, 512), (0, 513));
    }
    assert_eq!(frontend.base(0), 5);
    submit(&mut ring);
    ring.kick.signal().expect("kicks");
    std::thread::sleep(A_WHILE);
    assert_eq!(ring.driver.take_used(), Ok(None));
    assert_eq!(frontend.base(0), 5, "it can be asked again");
    frontend.must(&SetVringBase(VringState { index: 0, num: 5 }), &[]);
    frontend.start(&ring);
    assert_eq!(ring.wait().written, 513, "what was added meanwhile");
    assert_eq!(frontend.base(0), 6);
    served.events.wait_for("ring 0 stopped at 6");
}

#[test]
fn a_ring_that_runs_keeps_its_size_place_and_base() {
    let served = served();
    let mut frontend = ready(&served);
    let mut ring = frontend.ring(0, 8);
    let address = ring.driver.address();
    frontend.refused(&SetVringNum(VringState { index: 0, num: 16 }), &[]);
    frontend.must(&SetVringNum(VringState { index: 0, num: 8 }), &[]);
    frontend.refused(&SetVringBase(VringState { index: 0, num: 0 }), &[]);
    frontend.refused(&SetVringAddr(VringAddress { used: address.used + 64, ..address }), &[]);
    frontend.must(&SetVringAddr(address), &[]);
    frontend.refused(&SetFeatures(frontend.features & !feature::RING_EVENT_IDX), &[]);
    frontend.must(&SetFeatures(frontend.features), &[]);
    assert_eq!(ring.request(0, 0, 0, 512), (0, 513));
}

#[test]
fn kick_and_call_may_be_changed_while_a_ring_runs() {
    let served = served();
    let mut frontend = ready(&served);
    let mut ring = frontend.ring(0, 8);
    assert_eq!(ring.request(0, 0, 0, 512), (0, 513));
    [ring.kick, ring.call] = [(); 2].map(|()| Event::new().expect("an event"));
    let file = VringFile::with_descriptor(0);
    frontend.must(&SetVringKick(file), &[ring.kick.as_fd()]);
    frontend.must(&SetVringCall(file), &[ring.call.as_fd()]);
    ring.call.take().expect("a call too many is harmless");
    assert!(!ring.driver.enable_calls(), "nothing is there yet");
    submit(&mut ring);
    assert!(ring.call.wait(TIMEOUT).expect("waits"), "the new one is told");
    assert_eq!(ring.wait().written, 513);
}

#[test]
fn a_ring_without_a_kick_is_polled_and_one_without_a_call_is_not_called() {
    let served = served();
    let mut frontend = ready(&served);
    let mut ring = frontend.prepare(0, 8);
    frontend.must(&SetVringCall(VringFile::polled(0)), &[]);
    frontend.must(&SetVringKick(VringFile::polled(0)), &[]);
    frontend.must(&SetVringEnable(VringState { index: 0, num: 1 }), &[]);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(ring.request(0, 0, 0, 512), (0, 513));
    }
    assert!(!ring.call.take().expect("reads"));
    assert_eq!(frontend.base(0), 3);
}

#[test]
fn a_ring_that_can_not_be_believed_is_left_alone_and_its_error_signalled() {
    let served = served();
    let mut frontend = ready(&served);
    let mut ring = frontend.ring(0, 8);
    assert_eq!(ring.request(0, 0, 0, 512), (0, 513));
    ring.driver.areas().driver.store_u16(2, 999, Ordering::Release);
    ring.kick.signal().expect("kicks");
    assert!(ring.error.wait(TIMEOUT).expect("waits"), "the error is signalled");
    served.events.wait_for("ring 0 broke: the available index of ring 0 jumped from 1 to 999");
    assert_eq!(frontend.base(0), 1, "it stands where it stood");
    let mut other = frontend.ring(1, 8);
    assert_eq!(other.request(0, 0, 0, 512), (0, 513), "others go on");
}

#[test]
fn a_kick_that_is_no_event_does_not_keep_a_processor_busy() {
    let served = served();
    let mut frontend = ready(&served);
    let ring = frontend.prepare(0, 8);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    frontend.must(&SetVringKick(VringFile::with_descriptor(0)), &[reader.as_fd()]);
    drop(writer);
    assert!(ring.error.wait(TIMEOUT).expect("waits"), "the kick has come to its end");
    assert_eq!(frontend.base(0), 0);
}

#[test]
fn packed_rings_guest_addresses_and_messages_instead_of_events_work_together() {
    let served = served();
    let mut frontend = served.frontend();
    let protocol = ProtocolFeatures::ALL.difference(ProtocolFeatures::INFLIGHT_SHMFD);
    frontend.negotiate_as(!feature::LOG_ALL, protocol);
    frontend.share_memory();
    let (ours, theirs) = Channel::pair(TIMEOUT).expect("a pair");
    frontend.must(&SetBackendReqFd(Empty), &[theirs.as_fd()]);
    drop(theirs);
    let layout = frontend.layout(6);
    let driver = kiln_vdev::queue::DriverRing::create(0, layout, &mut frontend.arena).expect("a ring");
    frontend.must(&SetVringNum(VringState { index: 0, num: 6 }), &[]);
    let moved = ARENA_START.wrapping_sub(frontend.arena.region().description().user_address);
    let address = driver.address();
    let address = VringAddress {
        descriptor: address.descriptor.wrapping_add(moved),
        available: address.available.wrapping_add(moved),
        used: address.used.wrapping_add(moved),
        ..address
    };
    frontend.must(&SetVringAddr(address), &[]);
    frontend.must(&SetVringBase(VringState { index: 0, num: driver.base() }), &[]);
    frontend.must(&SetVringEnable(VringState { index: 0, num: 1 }), &[]);
    let data = frontend.arena.allocate(1 << 20, 4096).expect("has room");
    let [kick, call, error] = [(); 3].map(|()| Event::new().expect("an event"));
    let mut ring = super::frontend::Ring { index: 0, driver, kick, call, error, data };

    let mut ours = ours;
    let served_calls = std::thread::spawn(move || {
        let mut calls = 0;
        while let Ok(message) = ours.receive() {
            assert_eq!(message.header.request, 4);
            ours.acknowledge(4, 0).expect("is sent");
            calls += 1;
        }
        calls
    });
    for round in 1..=20_u32 {
        submit(&mut ring);
        frontend.must(&VringKick(VringState { index: 0, num: 0 }), &[]);
        assert_eq!(ring.wait().written, 513, "round {round}");
    }
    frontend.refused(&VringKick(VringState { index: 0, num: 1 }), &[]);
    drop(frontend);
    served.events.wait_for("ended");
    assert!(served_calls.join().expect("no panic") > 0, "calls come as messages");
}

#[test]
fn what_a_device_writes_is_in_the_dirty_log() {
    let served = served();
    let mut frontend = served.frontend();
    frontend.negotiate_as(
        !feature::RING_PACKED,
        ProtocolFeatures::ALL.difference(ProtocolFeatures::INBAND_NOTIFICATIONS | ProtocolFeatures::GPA_ADDRESSES),
    );
    frontend.must(&SetFeatures(frontend.features & !feature::LOG_ALL), &[]);
    frontend.share_memory();
    let mut ring = frontend.ring(0, 8);
    assert_eq!(ring.request(0, 0, 0, 512), (0, 513));
    let (log, description, file) = DirtyLog::create(ARENA_START + (16 << 20)).expect("a log");
    let flags = Flags::request_with_reply();
    frontend.channel.send_with(&SetLogBase(description), flags, &[file.as_fd()]).expect("is sent");
    assert_eq!(frontend.channel.reply_to::<SetLogBase>().expect("an answer").0, 0);
    let changed = Event::new().expect("an event");
    frontend.must(&SetLogFd(Empty), &[changed.as_fd()]);
    // A migration begins while the ring runs.
    frontend.must(&SetFeatures(frontend.features), &[]);
    let used = ring.driver.areas().device.guest_address();
    let address = VringAddress { flags: VringAddress::LOG, log: used, ..ring.driver.address() };
    frontend.must(&SetVringAddr(address), &[]);
    log.take();
    assert_eq!(ring.request(0, 0, 0, 512), (0, 513));
    eventually("the log is told of", || changed.take().expect("reads"));
    let dirty = log.take();
    let page = |address: u64| address & !4095;
    assert!(dirty.contains(&page(ring.data.guest_address() + 4096)), "the data: {dirty:x?}");
    assert!(dirty.contains(&page(used)), "the used ring: {dirty:x?}");
    frontend.must(&SetFeatures(frontend.features & !feature::LOG_ALL), &[]);
    // A worker that went to sleep before that enabled kicks, which is a write as well.
    log.take();
    assert_eq!(ring.request(0, 0, 0, 512), (0, 513));
    assert_eq!(log.take(), [0_u64; 0]);
}

#[test]
fn a_reset_stops_all_rings_and_the_device_can_be_set_up_again() {
    let served = served();
    let mut frontend = ready(&served);
    for by_status in [false, true] {
        let mut ring = frontend.ring(0, 8);
        assert_eq!(ring.request(0, 0, 0, 512), (0, 513));
        frontend.must(&SetStatus(15), &[]);
        assert_eq!(frontend.get(&GetStatus(Empty)), 15);
        if by_status {
            frontend.must(&SetStatus(0), &[]);
        } else {
            frontend.must(&ResetDevice(Empty), &[]);
        }
        assert_eq!(frontend.get(&GetStatus(Empty)), 0);
        submit(&mut ring);
        std::thread::sleep(A_WHILE);
        assert_eq!(ring.driver.take_used(), Ok(None));
        frontend.must(&SetFeatures(frontend.features), &[]);
    }
    frontend.refused(&SetStatus(256), &[]);
}

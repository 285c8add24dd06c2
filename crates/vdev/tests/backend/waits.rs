//! Frontends that change descriptors which they have passed, so that their use would block forever: no thread blocks.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
use kiln_vdev::devices::net::{Net, NetOptions};
use kiln_vdev::protocol::frontend::{CheckDeviceState, SetBackendReqFd, SetDeviceStateFd};
use kiln_vdev::protocol::{DeviceStateTransfer, Empty, ProtocolFeatures};
use kiln_vdev::virtio::feature;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::frontend::{Frontend, Ring, Served, eventually};

fn disk() -> Served {
    Served::new(Blk::open(&BlkOptions::new(Backing::Null { bytes: 1 << 20 })).expect("a disk"))
}

fn ready(served: &Served) -> (Frontend, Ring) {
    let mut frontend = served.frontend();
    frontend.negotiate();
    frontend.share_memory();
    let ring = frontend.ring(0, 8);
    (frontend, ring)
}

/// A flush whose completion is not awaited.
fn submit(ring: &mut Ring) {
    ring.put(0, &[&4_u32.to_le_bytes()[..], &[0; 12]].concat());
    let (header, status) = (ring.buffer(0, 16), ring.buffer(64, 1));
    ring.submit(&[header], &[status], 1);
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("is there").count()
}

#[test]
fn a_call_that_takes_no_more_holds_up_neither_its_ring_nor_the_next_frontend() {
    let served = disk();
    let before = threads();
    for _ in 0..2 {
        let (mut frontend, mut ring) = ready(&served);
        rustix::io::write(&ring.call, &(u64::MAX - 1).to_ne_bytes()).expect("fits");
        fcntl_setfl(&ring.call, OFlags::RDWR).expect("waits from now on");
        submit(&mut ring);
        eventually("the request is done", || ring.driver.enable_calls());
        let started = Instant::now();
        assert_eq!(frontend.base(0), 1);
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    eventually("no worker is left behind", || threads() <= before);
}

#[test]
fn a_state_that_never_comes_is_waited_for_no_longer_than_a_message() {
    let served = disk();
    let mut frontend = served.frontend();
    frontend.negotiate();
    let (read, _write) = std::io::pipe().expect("a pipe");
    let load = SetDeviceStateFd(DeviceStateTransfer { direction: 1, phase: 0 });
    let (begun, _) = frontend.channel.call(&load, &[read.as_fd()]).expect("is answered");
    assert_eq!(begun & 0xff, 0);
    fcntl_setfl(&read, OFlags::RDONLY).expect("waits from now on");
    assert_ne!(frontend.get(&CheckDeviceState(Empty)), 0);
}

#[test]
fn a_channel_whose_time_never_runs_out_is_given_up_like_any_other() {
    let served = disk();
    let mut frontend = served.frontend();
    let without = ProtocolFeatures::GPA_ADDRESSES;
    frontend.negotiate_as(!feature::RING_PACKED & !feature::LOG_ALL, ProtocolFeatures::ALL.difference(without));
    frontend.share_memory();
    let (_silent, theirs) = UnixStream::pair().expect("sockets");
    frontend.must(&SetBackendReqFd(Empty), &[theirs.as_fd()]);
    let mut ring = frontend.in_band_ring(0, 8);
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&theirs, direction, None).expect("is set");
    }
    // The call is a message without a reply, however often.
    for _ in 0..3 {
        submit(&mut ring);
        frontend.kick_in_band(0);
        eventually("the request is done", || ring.driver.take_used().expect("is true").is_some());
    }
    assert_eq!(frontend.base(0), 3);
}

#[test]
fn a_ring_that_lies_is_the_one_that_is_given_up() {
    let served = Served::new(Net::new(NetOptions::default()).expect("a card"));
    let mut frontend = served.frontend();
    frontend.negotiate();
    frontend.share_memory();
    let receive = frontend.ring(0, 8);
    let mut transmit = frontend.ring(1, 8);
    // Far more than there is, in the ring into which the reflection of a frame goes.
    receive.driver.areas().driver.store_u16(2, 1000, std::sync::atomic::Ordering::Release);
    for token in 0..2 {
        let frame = transmit.buffer(0, 80);
        transmit.submit(&[frame], &[], token);
        assert_eq!(transmit.wait().token, token);
    }
    assert!(served.events.wait_for("broke").contains("ring 0 broke"));
}

#[test]
fn a_kick_that_never_ends_takes_little_of_a_processor() {
    let served = disk();
    let mut frontend = served.frontend();
    frontend.negotiate();
    frontend.share_memory();
    let mut ring = frontend.prepare(0, 8);
    // Read, it is one less each time, and there to be read again.
    let flags = EventfdFlags::SEMAPHORE | EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
    ring.kick = kiln_vdev::socket::Event::from_peer(eventfd(u32::MAX, flags).expect("an event")).expect("is one");
    frontend.start(&ring);
    // The processor time of all threads of this process, from the system, in hundredths of a second.
    let used = || {
        let stat = std::fs::read_to_string("/proc/self/stat").expect("is there");
        let numbers: Vec<u64> =
            stat.rsplit(')').next().expect("is there").split_whitespace().flat_map(str::parse).collect();
        numbers[10] + numbers[11]
    };
    submit(&mut ring);
    eventually("the request is done", || ring.driver.take_used().expect("is true").is_some());
    std::thread::sleep(Duration::from_millis(300));
    let before = used();
    std::thread::sleep(Duration::from_secs(1));
    assert!(used() - before < 50, "of a second of one processor");
    assert_eq!(frontend.base(0), 1);
}

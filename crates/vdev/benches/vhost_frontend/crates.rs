//! The other side: `vhost` for the handshake, `virtio-driver` for the rings.

#![expect(unsafe_code, reason = "the crate reads into memory by its address")]

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::time::{Duration, Instant};

use kiln_vdev::bench::Histogram;
use kiln_vdev::memory::Region;
use kiln_vdev::random::Random;
use kiln_vdev::socket::wait_readable;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_driver::{VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};
use vmm_sys_util::eventfd::EventFd;

use crate::{BLOCK_BYTES, QUEUE_SIZE, TIME, WARM_UP};

/// Memory of a session with one request under way: rings and a slot, as much as ours shares.
const MEMORY_BYTES: u64 = 256 << 10;
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// The same messages as ours, up to a ring that is enabled; either each is acknowledged, or only the last is answered.
pub fn handshake(socket: &Path, acknowledged: bool) -> Duration {
    let started = Instant::now();
    let mut frontend = Frontend::connect(socket, 1).expect("connects");
    frontend.set_owner().expect("is taken");
    let features = frontend.get_features().expect("is answered");
    let protocol = frontend.get_protocol_features().expect("is answered");
    let wanted = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
    frontend.set_protocol_features(protocol & wanted).expect("is taken");
    if acknowledged {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    frontend.get_queue_num().expect("is answered");
    frontend.get_max_mem_slots().expect("is answered");
    let flags = VhostUserConfigFlags::WRITABLE;
    frontend.get_config(0, 60, flags, &[0; 60]).expect("is answered");
    let (_own, theirs) = std::os::unix::net::UnixStream::pair().expect("two sockets");
    frontend.set_backend_request_fd(&theirs).expect("is taken");
    let wanted = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_INDIRECT_DESC;
    let wanted = wanted | VirtioFeatureFlags::RING_EVENT_IDX;
    frontend.set_features(features & (wanted.bits() | PROTOCOL_FEATURES)).expect("is taken");
    let (region, file) = Region::create(0, MEMORY_BYTES).expect("memory");
    let start = region.description().user_address;
    let shared = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES,
        userspace_addr: start,
        mmap_offset: 0,
        mmap_handle: file.as_fd().as_raw_fd(),
    };
    frontend.add_mem_region(&shared).expect("is taken");
    let [kick, call, err] = std::array::from_fn(|_| EventFd::new(0).expect("an eventfd"));
    frontend.set_vring_num(0, QUEUE_SIZE).expect("is taken");
    let ring = VringConfigData {
        queue_max_size: QUEUE_SIZE,
        queue_size: QUEUE_SIZE,
        flags: 0,
        desc_table_addr: start,
        used_ring_addr: start + 0x3000,
        avail_ring_addr: start + 0x2000,
        log_addr: None,
    };
    frontend.set_vring_addr(0, &ring).expect("is taken");
    frontend.set_vring_base(0, 0).expect("is taken");
    frontend.set_vring_call(0, &call).expect("is taken");
    frontend.set_vring_err(0, &err).expect("is taken");
    frontend.set_vring_kick(0, &kick).expect("is taken");
    frontend.set_vring_enable(0, true).expect("is taken");
    if !acknowledged {
        frontend.get_features().expect("is answered");
    }
    let took = started.elapsed();
    drop(frontend);
    took
}

/// Reads anywhere until time is up. It looks for `spin` before it sleeps.
pub fn reads(socket: &Path, depth: u16, seed: u64, spin: Duration) -> (f64, String) {
    let wanted =
        VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_INDIRECT_DESC | VirtioFeatureFlags::RING_EVENT_IDX;
    let path = socket.to_str().expect("is a name");
    let transport = VhostUser::new(path, wanted.bits()).expect("connects");
    let mut transport: Box<VirtioBlkTransport> = Box::new(transport);
    let bytes = usize::from(depth) * BLOCK_BYTES as usize;
    let (region, file) = Region::create(0, bytes as u64).expect("memory");
    let start = region.description().user_address as usize;
    transport.map_mem_region(start, bytes, file.as_fd().as_raw_fd(), 0).expect("is taken");
    let capacity = transport.get_config().expect("is told").capacity.to_native() * 512;
    let mut queues = VirtioBlkQueue::<(usize, Instant)>::setup_queues(&mut *transport, 1, QUEUE_SIZE).expect("start");
    let queue = &mut queues[0];
    let (kick, call) = (transport.get_submission_notifier(0), transport.get_completion_fd(0));
    let mut random = Random::new(seed);
    let blocks = capacity / u64::from(BLOCK_BYTES);
    let mut submit = |queue: &mut VirtioBlkQueue<'_, _>, slot: usize, now: Instant| {
        let offset = random.below(blocks) * u64::from(BLOCK_BYTES);
        let into = (start + slot * BLOCK_BYTES as usize) as *mut u8;
        // SAFETY: the region is mapped until the end of this function, and each slot's part is read by one request.
        unsafe { queue.read_raw(offset, into, BLOCK_BYTES as usize, (slot, now)) }.expect("has room");
    };
    let begin = Instant::now() + WARM_UP;
    let end = begin + TIME;
    let mut histogram = Histogram::default();
    (0..usize::from(depth)).for_each(|slot| submit(queue, slot, Instant::now()));
    queue.set_used_notif_enabled(true);
    kick.notify().expect("kicks");
    let mut done = Vec::with_capacity(usize::from(depth));
    let mut under_way = usize::from(depth);
    while under_way > 0 {
        done.extend(queue.completions().map(|completion| (completion.context, completion.ret)));
        if done.is_empty() {
            wait(queue, &call, spin);
            continue;
        }
        let now = Instant::now();
        under_way -= done.len();
        for ((slot, submitted), ret) in done.drain(..) {
            assert_eq!(ret, 0, "a read failed");
            if now >= begin && now <= end {
                histogram.record(now - submitted);
            }
            if now < end {
                submit(queue, slot, now);
                under_way += 1;
            }
        }
        if queue.avail_notif_needed() {
            kick.notify().expect("kicks");
        }
    }
    let [p50, p95, p99] = [50.0, 95.0, 99.0].map(|percent| histogram.percentile(percent).as_secs_f64() * 1e6);
    let latency = format!("p50 {p50:.1} µs, p95 {p95:.1}, p99 {p99:.1}, n {}", histogram.count());
    (histogram.count() as f64 / TIME.as_secs_f64(), latency)
}

fn wait(queue: &mut VirtioBlkQueue<'_, (usize, Instant)>, call: &virtio_driver::EventFd, spin: Duration) {
    if !spin.is_zero() {
        queue.set_used_notif_enabled(false);
        let started = Instant::now();
        while started.elapsed() < spin {
            if queue.completions().has_next() {
                return;
            }
            std::hint::spin_loop();
        }
        queue.set_used_notif_enabled(true);
        if queue.completions().has_next() {
            return;
        }
    }
    let [called] = wait_readable([call.as_fd()], Some(Duration::from_secs(5))).expect("polls");
    assert!(called, "the daemon does not call");
    // The daemon makes the event non-blocking; that there is something was just seen.
    let _ = call.read();
}

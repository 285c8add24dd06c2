//! Our driver's split rings against a device that others wrote: `virtio-queue`, which backends in Rust are made of.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;

use kiln_vdev::queue::{Arena, Buffer, DriverRing, RingKind};
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::layouts;

const START: u64 = 0x10_0000;
const BYTES: u64 = 1 << 20;

#[test]
fn a_device_that_others_wrote_finds_what_our_driver_asks() {
    for layout in layouts(16).filter(|layout| layout.kind == RingKind::Split) {
        let (mut arena, file) = Arena::new(START, BYTES).expect("memory");
        let mut driver = DriverRing::create(0, layout, &mut arena).expect("a ring");
        let data = arena.allocate(4096, 8).expect("has room");
        let file = File::from(file.as_fd().try_clone_to_owned().expect("clones"));
        let place = (GuestAddress(START), BYTES as usize, Some(FileOffset::new(file, 0)));
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges_with_files([place]).expect("maps");
        let mut queue = Queue::new(layout.size).expect("a size that it has");
        queue.set_size(layout.size);
        let areas = driver.areas();
        let address = |area: &kiln_vdev::memory::Area| GuestAddress(area.guest_address());
        queue.try_set_desc_table_address(address(&areas.descriptors)).expect("is aligned");
        queue.try_set_avail_ring_address(address(&areas.driver)).expect("is aligned");
        queue.try_set_used_ring_address(address(&areas.device)).expect("is aligned");
        queue.set_event_idx(layout.event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(&memory));

        let buffer = |at: u64, bytes| Buffer { guest_address: data.guest_address() + at, bytes };
        let mut token = 0_u64;
        for round in 0..5_000_u64 {
            let batch = 1 + round % 5;
            for slot in 0..batch {
                data.write(slot as usize * 16, (token + slot).to_le());
                let writable = [buffer(slot * 16 + 8, 3), buffer(slot * 16 + 11, 5)];
                driver.add(&[buffer(slot * 16, 8)], &writable, token + slot).expect("has room");
            }
            assert!(driver.publish(), "{layout:?} {round}: it asked for a kick");
            queue.disable_notification(&memory).expect("is right");
            while let Some(chain) = queue.pop_descriptor_chain(&memory) {
                let head = chain.head_index();
                let mut asked = [0; 8];
                chain.clone().reader::<()>(&memory).expect("is right").read_exact(&mut asked).expect("is whole");
                let answer = u64::from_le_bytes(asked).wrapping_mul(7);
                chain.writer::<()>(&memory).expect("is right").write_all(&answer.to_le_bytes()).expect("has room");
                queue.add_used(&memory, head, 8).expect("is right");
            }
            assert!(!queue.enable_notification(&memory).expect("is right"), "there is no more");
            assert!(queue.needs_notification(&memory).expect("is right"), "{layout:?} {round}: we asked for a call");
            for slot in 0..batch {
                let used = driver.take_used().expect("it is honest").expect("all were used");
                assert_eq!((used.token, used.written), (token + slot, 8));
                assert_eq!(u64::from_le(data.read(slot as usize * 16 + 8)), used.token.wrapping_mul(7));
            }
            assert!(!driver.enable_calls(), "there is no more");
            token += batch;
        }
    }
}

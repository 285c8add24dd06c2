//! Rings and buffers in memory that is in pieces, moves, is cut short, or is watched.

use std::sync::Arc;

use kiln_vdev::memory::{DirtyLog, GuestMemory, Region, SharedFile, Span};
use kiln_vdev::protocol::{MemoryRegion, VringAddress};
use kiln_vdev::queue::{AddressSpace, Arena, Buffer, Chain, DeviceRing, DriverRing, QueueError, RingKind, RingLayout};

use super::{Pair, layouts, packed, split};

#[test]
fn a_buffer_and_a_table_may_lie_over_a_border() {
    for layout in layouts(8) {
        let mut pair = Pair::new(layout);
        let first = Arc::clone(pair.arena.region());
        let end = first.description().guest_address + first.description().size;
        let next = Region::create(end, 0x2000).expect("memory").0;
        let memory = pair.arena.memory().with(next).expect("has room");
        pair.device.set_memory(memory).expect("is still there");
        let over = Buffer { guest_address: end - 3, bytes: 8 };
        let beyond = Buffer { guest_address: end + 0x1fff, bytes: 1 };
        pair.driver.add(&[over], &[over, beyond], 1).expect("has room");
        let _ = pair.driver.publish();
        let mut chain = Chain::new();
        assert_eq!(pair.device.pop(&mut chain), Ok(true), "{layout:?}");
        assert_eq!((chain.readable().len(), chain.writable().len()), (2, 3));
        assert_eq!(chain.write_from(0, b"over it!"), 8);
        let mut bytes = [0; 6];
        assert_eq!(chain.read_into(2, &mut bytes), 6);
        assert_eq!(&bytes, b"er it!");
        let lengths = |parts: Vec<Span>| parts.iter().map(|span| span.bytes()).collect::<Vec<_>>();
        assert_eq!(lengths(chain.writable_part(2, 100).collect()), [1, 5, 1]);
        assert_eq!(lengths(chain.writable_part(3, 5).collect()), [5]);
        assert_eq!(lengths(chain.writable_part(9, 1).collect()), [0_usize; 0]);
        // A table whose one descriptor crosses the border.
        if layout.indirect && layout.kind == RingKind::Split {
            let table = end - 8;
            let ring = &pair.driver.areas().descriptors;
            let span = pair.device.memory().at_guest(end - 16, 16).expect("is there");
            let left = pair.device.memory().area(span).expect("is there");
            left.write(8, (end - 4096).to_le());
            let span = pair.device.memory().at_guest(end, 16).expect("is there");
            pair.device.memory().area(span).expect("is there").write(0, 77_u64.to_le());
            ring.write(16 * 5, table.to_le());
            ring.write(16 * 5 + 8, 16_u32.to_le());
            ring.write(16 * 5 + 12, 4_u32.to_le());
            pair.driver.areas().driver.write(6, 5_u16.to_le());
            pair.driver.areas().driver.write(2, 2_u16.to_le());
            assert_eq!(pair.device.pop(&mut chain), Ok(true), "{layout:?}");
            assert_eq!(chain.readable_bytes(), 77);
        }
    }
}

#[test]
fn a_chain_stays_in_the_memory_that_it_came_from() {
    for layout in layouts(8) {
        let mut pair = Pair::new(layout);
        let _ = pair.ask(1);
        let mut chain = Chain::new();
        assert_eq!(pair.device.pop(&mut chain), Ok(true));
        // The same ring, and a region in front of it that the spans would otherwise be taken for.
        let other = Arc::new(Region::create(0, 0x10_0000).expect("memory").0);
        let regions = vec![other, Arc::clone(pair.arena.region())];
        pair.device.set_memory(GuestMemory::new(regions).expect("no overlap")).expect("is still there");
        assert_eq!(chain.write_from(0, b"still it"), 8);
        let mut bytes = [0; 8];
        pair.data.slice(8, 8).copy_to(&mut bytes);
        assert_eq!(&bytes, b"still it");
        pair.device.push(&chain, 8);
        let _ = pair.device.publish();
        let _ = pair.ask(2);
        let _ = pair.serve();
        assert_eq!(pair.taken(), [1, 2]);
        let gone = pair.device.set_memory(GuestMemory::default());
        assert!(matches!(gone, Err(QueueError::RingOutside { ring: 7, part: "descriptors", .. })));
        let _ = pair.ask(3);
        let _ = pair.serve();
        assert_eq!(pair.taken(), [3], "the ring stays where it was");
    }
}

#[test]
fn memory_that_is_cut_short_is_not_believed() {
    for layout in [split(8), packed(8)] {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(0x10000).expect("grows");
        let description = MemoryRegion { guest_address: 0, size: 0x10000, user_address: 0, mmap_offset: 0 };
        let shared = SharedFile::from_peer(file.try_clone().expect("clones").into());
        let region = Region::map(description, shared).expect("maps");
        let memory = GuestMemory::new(vec![Arc::new(region)]).expect("one region");
        let address = VringAddress { descriptor: 0x8000, available: 0x9000, used: 0xa000, ..VringAddress::default() };
        let mut device = DeviceRing::new(7, layout, &address, 0, memory).expect("a ring");
        let mut chain = Chain::new();
        assert_eq!(device.pop(&mut chain), Ok(false));
        file.set_len(0x1000).expect("shrinks");
        assert_eq!(device.pop(&mut chain), Err(QueueError::Cut { ring: 7 }));
        assert_eq!(device.pop(&mut chain), Err(QueueError::Cut { ring: 7 }));
        assert!(!device.publish());
    }
}

#[test]
fn a_ring_that_is_nowhere_or_crooked_is_refused() {
    let (mut arena, _file) = Arena::new(0x1000, 0x10000).expect("memory");
    for layout in [split(8), packed(8)] {
        let driver = DriverRing::create(7, layout, &mut arena).expect("a ring");
        let right = driver.address();
        let new = |address: VringAddress, layout: RingLayout, base: u32| {
            DeviceRing::new(7, layout, &address, base, arena.memory().clone()).map(|ring| ring.base())
        };
        assert_eq!(new(right, layout, 0), Ok(0));
        let end = arena.region().description().user_address + 0x10000;
        let outside = |address| matches!(new(address, layout, 0), Err(QueueError::RingOutside { ring: 7, .. }));
        assert!(outside(VringAddress { descriptor: end - 0x70, ..right }));
        assert!(outside(VringAddress { used: end - 2, ..right }));
        assert!(outside(VringAddress { available: u64::MAX - 1, ..right }));
        assert!(outside(VringAddress { available: 0, ..right }));
        let crooked = |address| matches!(new(address, layout, 0), Err(QueueError::Unaligned { ring: 7, .. }));
        assert!(crooked(VringAddress { descriptor: right.descriptor + 8, ..right }));
        assert!(crooked(VringAddress { used: right.used + 2, ..right }));
        assert!(crooked(VringAddress { available: right.available + 1, ..right }));
        for size in [0, 0x8001, 0xffff] {
            let refused = new(right, RingLayout { size, ..layout }, 0);
            assert_eq!(refused, Err(QueueError::Size { ring: 7, size }));
        }
        let other_base = if layout.kind == RingKind::Split { 0x1_0000 } else { 8 };
        assert_eq!(new(right, layout, other_base), Err(QueueError::Base { ring: 7, base: other_base }));
        let guest = VringAddress {
            descriptor: driver.areas().descriptors.guest_address(),
            available: driver.areas().driver.guest_address(),
            used: driver.areas().device.guest_address(),
            ..right
        };
        assert!(outside(guest), "these are no user addresses");
        let memory = arena.memory().clone();
        assert!(DeviceRing::new_in(AddressSpace::Guest, 7, layout, &guest, 0, memory).is_ok());
    }
    let uneven = DeviceRing::new(7, split(12), &VringAddress::default(), 0, arena.memory().clone());
    assert_eq!(uneven.map(|_| ()), Err(QueueError::Size { ring: 7, size: 12 }));
    assert!(matches!(DriverRing::create(7, split(2048), &mut arena), Err(QueueError::ArenaFull { .. })));
}

#[test]
fn a_ring_without_events_ends_with_its_entries() {
    let (arena, _file) = Arena::new(0, 0x1000).expect("memory");
    let end = arena.region().description().user_address + 0x1000;
    let start = end - 0x1000;
    let at = |available, used| VringAddress { descriptor: start, available, used, ..VringAddress::default() };
    let new = |address: VringAddress, event_idx| {
        let layout = RingLayout { event_idx, ..split(4) };
        DeviceRing::new(0, layout, &address, 0, arena.memory().clone()).is_ok()
    };
    assert!(new(at(end - 12, end - 36), false));
    assert!(!new(at(end - 12, end - 40), true));
    assert!(new(at(end - 14, end - 40), true));
}

#[test]
fn a_packed_base_says_where_both_sides_are() {
    let new = |base: u32| {
        let pair = Pair::new(packed(4));
        let memory = pair.arena.memory().clone();
        DeviceRing::new(7, packed(4), &pair.driver.address(), base, memory).map(|ring| ring.base())
    };
    assert_eq!(new(0x8000_8000), Ok(0x8000_8000));
    assert_eq!(new(0x8001_8003), Ok(0x8001_8003));
    assert_eq!(new(0x8003_0002), Ok(0x8003_0002), "the next lap");
    assert_eq!(new(0x0000_8002), Ok(0x8002_8002), "a frontend that says nothing of the used half");
    assert!(new(0x8002_0003).is_err(), "more than a lap apart");
    assert!(new(0x8003_8002).is_err(), "used before it was available");
    assert!(new(0x8004_8000).is_err());
}

#[test]
fn a_ring_goes_on_where_another_device_has_left_it() {
    for layout in layouts(4) {
        let mut pair = Pair::new(layout);
        for token in 0..30 {
            let _ = pair.ask(token);
            let _ = pair.serve();
            assert_eq!(pair.taken(), [token], "{layout:?}");
            let _ = pair.ask(100);
            let _ = pair.serve();
            assert_eq!(pair.driver.base(), pair.device.base(), "{layout:?}");
            let memory = pair.arena.memory().clone();
            let address = pair.driver.address();
            pair.device = DeviceRing::new(7, layout, &address, pair.device.base(), memory).expect("a ring");
            assert_eq!(pair.taken(), [100], "{layout:?}");
        }
    }
}

#[test]
fn writes_are_marked_and_nothing_else() {
    for layout in layouts(64) {
        let mut pair = Pair::new(layout);
        let end = pair.data.guest_address() + pair.data.bytes() as u64;
        let log = Arc::new(DirtyLog::create(end).expect("a log").0);
        let page = |address: u64| address & !4095;
        let _ = pair.ask(0);
        let mut chain = Chain::new();
        assert_eq!(pair.device.pop(&mut chain), Ok(true));
        // The log comes while a request is under way.
        let used = 0x3000_u64;
        pair.device.set_log(Some((Arc::clone(&log), Some(used))));
        pair.device.push(&chain, 0);
        let data = page(pair.data.guest_address());
        assert_eq!(log.take(), if layout.kind == RingKind::Split { vec![used, data] } else { vec![data] });
        let _ = pair.device.publish();
        let ring = match layout.kind {
            RingKind::Split => used,
            RingKind::Packed => page(pair.driver.areas().descriptors.guest_address()),
        };
        assert_eq!(log.take(), [ring]);
        let _ = pair.device.enable_kicks();
        assert_eq!(log.take(), [used]);
        assert_eq!(pair.taken(), [0]);
        let [readable, writable] = [0x4000, 0x6000].map(|at| [pair.buffer(at, 0x1800)]);
        pair.driver.add(&readable, &writable, 1).expect("has room");
        let _ = pair.driver.publish();
        pair.device.set_log(Some((Arc::clone(&log), None)));
        let _ = pair.serve();
        assert_eq!(log.take(), [data + 0x6000, data + 0x7000], "{layout:?}");
        pair.device.set_log(None);
        let _ = pair.ask(2);
        let _ = pair.serve();
        assert_eq!(log.take(), [0_u64; 0]);
    }
}

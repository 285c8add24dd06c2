//! Each wrong value that one side can give the other has its error; nothing is taken of it, and it is the same the
//! next time.

use kiln_vdev::memory::Area;
use kiln_vdev::queue::{
    Arena, Chain, ChainId, DeviceRing, DriverRing, InflightRegion, QueueError, RingKind, RingLayout,
};

use super::{Pair, packed, split};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const GIB: u32 = 1 << 30;

/// A descriptor: offset in the data, bytes, and the two numbers behind them.
type Raw = (u64, u32, u16, u16);

fn write(area: &Area, index: usize, address: u64, (offset, bytes, first, second): Raw) {
    let at = index * 16;
    area.write(at, (address + offset).to_le());
    area.write(at + 8, bytes.to_le());
    area.write(at + 12, first.to_le());
    area.write(at + 14, second.to_le());
}

/// The device's error for a ring in which chain 0 is available, made of these descriptors, and of this table at the
/// start of the data.
fn device_finds(layout: RingLayout, descriptors: &[Raw], table: &[Raw]) -> Result<bool, QueueError> {
    let Pair { driver, mut device, data, .. } = Pair::new(layout);
    let start = data.guest_address();
    for (index, raw) in descriptors.iter().enumerate() {
        write(&driver.areas().descriptors, index, start, *raw);
    }
    for (index, raw) in table.iter().enumerate() {
        write(&data, index, start, *raw);
    }
    if layout.kind == RingKind::Split {
        driver.areas().driver.write(2, 1_u16.to_le());
    }
    let before = (device.base(), device.in_flight());
    let mut chain = Chain::new();
    let found = device.pop(&mut chain);
    if found.is_err() {
        assert_eq!(device.pop(&mut chain), found, "it is the same the next time");
        assert_eq!((device.base(), device.in_flight()), before, "nothing was taken");
        assert!(chain.readable().is_empty() && chain.writable().is_empty());
    }
    found
}

#[test]
fn a_driver_that_lies_in_a_split_ring_is_found_out() {
    let finds = |descriptors: &[Raw], table: &[Raw]| device_finds(split(4), descriptors, table);
    let far = u64::MAX - 0x10_0000 - (1 << 30);
    assert_eq!(finds(&[(0, 1, NEXT, 4)], &[]), Err(QueueError::Descriptor { ring: 7, descriptor: 4, size: 4 }));
    assert_eq!(finds(&[(0, 1, NEXT, 1), (0, 1, NEXT, 0)], &[]), Err(QueueError::Endless { ring: 7, head: 0 }));
    assert_eq!(finds(&[(0, 1, NEXT, 0)], &[]), Err(QueueError::Endless { ring: 7, head: 0 }));
    let behind = Err(QueueError::ReadableBehindWritable { ring: 7, head: 0 });
    assert_eq!(finds(&[(0, 1, WRITE | NEXT, 1), (0, 1, 0, 0)], &[]), behind);
    assert_eq!(finds(&[(0, 0, WRITE | NEXT, 1), (0, 0, 0, 0)], &[]), behind);
    assert!(matches!(finds(&[(8 << 20, 1, 0, 0)], &[]), Err(QueueError::BufferOutside { bytes: 1, .. })));
    assert!(matches!(finds(&[(far, u32::MAX, 0, 0)], &[]), Err(QueueError::BufferOutside { bytes: u32::MAX, .. })));
    assert!(matches!(finds(&[(0, 4 << 20, 0, 0)], &[]), Err(QueueError::BufferOutside { .. })));

    let table = |bytes| Err(QueueError::IndirectSize { ring: 7, bytes, max: 1024 });
    for bytes in [0, 8, 17, 1025 * 16, u32::MAX] {
        assert_eq!(finds(&[(0, bytes, INDIRECT, 0)], &[]), table(bytes));
    }
    assert!(finds(&[(0, 1024 * 16, INDIRECT, 0)], &[(0, 1, 0, 0)]).is_ok());
    let address = 8 << 20;
    assert!(matches!(finds(&[(address, 16, INDIRECT, 0)], &[]), Err(QueueError::BufferOutside { bytes: 16, .. })));
    let with_next = Err(QueueError::IndirectWithNext { ring: 7 });
    assert_eq!(finds(&[(0, 16, INDIRECT | NEXT, 1), (0, 1, 0, 0)], &[(0, 1, 0, 0)]), with_next);
    let nested = Err(QueueError::IndirectNested { ring: 7 });
    assert_eq!(finds(&[(0, 16, INDIRECT, 0)], &[(0, 16, INDIRECT, 0)]), nested);
    assert_eq!(finds(&[(0, 32, INDIRECT, 0)], &[(0, 1, NEXT, 1), (0, 16, INDIRECT, 0)]), nested);
    let entry = Err(QueueError::Descriptor { ring: 7, descriptor: 2, size: 2 });
    assert_eq!(finds(&[(0, 32, INDIRECT, 0)], &[(0, 1, NEXT, 2)]), entry);
    let endless = Err(QueueError::Endless { ring: 7, head: 0 });
    assert_eq!(finds(&[(0, 32, INDIRECT, 0)], &[(0, 1, NEXT, 1), (0, 1, NEXT, 0)]), endless);
    assert_eq!(finds(&[(0, 48, INDIRECT, 0)], &[(0, 1, WRITE | NEXT, 2), (0, 1, 0, 0), (0, 1, 0, 0)]), behind);
    let plain = RingLayout { indirect: false, ..split(4) };
    let refused = device_finds(plain, &[(0, 16, INDIRECT, 0)], &[(0, 1, 0, 0)]);
    assert_eq!(refused, Err(QueueError::IndirectNotNegotiated { ring: 7 }));
}

#[test]
fn a_driver_that_lies_in_a_packed_ring_is_found_out() {
    let a = AVAILABLE;
    let finds = |descriptors: &[Raw], table: &[Raw]| device_finds(packed(3), descriptors, table);
    let chain = |last_flags| [(0, 1, 0, a | NEXT), (0, 1, 0, a | NEXT), (0, 1, 0, last_flags)];
    let unfinished = Err(QueueError::Unfinished { ring: 7, head: 0 });
    assert_eq!(finds(&[(0, 1, 0, a | NEXT)], &[]), unfinished);
    assert_eq!(finds(&chain(0), &[]), unfinished);
    assert_eq!(finds(&chain(a | USED), &[]), unfinished);
    assert_eq!(finds(&chain(a), &[]), Ok(true));
    assert_eq!(finds(&chain(a | NEXT), &[]), Err(QueueError::Endless { ring: 7, head: 0 }));
    let behind = Err(QueueError::ReadableBehindWritable { ring: 7, head: 0 });
    assert_eq!(finds(&[(0, 1, 0, a | WRITE | NEXT), (0, 1, 0, a)], &[]), behind);
    assert!(matches!(finds(&[(8 << 20, 1, 0, a)], &[]), Err(QueueError::BufferOutside { bytes: 1, .. })));
    for bytes in [0, 8, 17, 1025 * 16] {
        let refused = finds(&[(0, bytes, 0, a | INDIRECT)], &[]);
        assert_eq!(refused, Err(QueueError::IndirectSize { ring: 7, bytes, max: 1024 }));
    }
    let with_next = Err(QueueError::IndirectWithNext { ring: 7 });
    assert_eq!(finds(&[(0, 16, 0, a | INDIRECT | NEXT), (0, 1, 0, a)], &[]), with_next);
    assert_eq!(finds(&[(0, 1, 0, a | NEXT), (0, 16, 0, a | INDIRECT)], &[]), with_next);
    let table = [(0, 1, 0, WRITE), (0, 1, 0, 0)];
    assert_eq!(finds(&[(0, 32, 0, a | INDIRECT)], &table), behind);
    let plain = RingLayout { indirect: false, ..packed(4) };
    let refused = device_finds(plain, &[(0, 16, 0, a | INDIRECT)], &[(0, 1, 0, 0)]);
    assert_eq!(refused, Err(QueueError::IndirectNotNegotiated { ring: 7 }));
}

#[test]
fn what_is_unusual_and_allowed_is_taken() {
    let a = AVAILABLE;
    assert_eq!(device_finds(split(4), &[(u64::MAX / 2, 0, 0, 0)], &[]), Ok(true), "an empty buffer is nowhere");
    let normal_then_table = [(0, 1, NEXT, 1), (0, 16, INDIRECT | WRITE, 0)];
    assert_eq!(device_finds(split(4), &normal_then_table, &[(0, 1, WRITE, 0)]), Ok(true));
    let reserved_flags = [(0, 1, 9, NEXT | INDIRECT | AVAILABLE), (0, 1, 9, WRITE | USED)];
    assert_eq!(device_finds(packed(4), &[(0, 32, 0, a | INDIRECT | WRITE)], &reserved_flags), Ok(true));
    assert_eq!(device_finds(packed(1), &[(0, 1, 0xffff, a)], &[]), Ok(true), "an id is the driver's own");
}

#[test]
fn a_chain_of_more_than_4_gib_is_refused() {
    for layout in [split(8), packed(8)] {
        // Files of zeros take no room, and buffers may overlap.
        let (mut arena, _file) = Arena::new(0, 2 << 30).expect("memory");
        let driver = DriverRing::create(7, layout, &mut arena).expect("a ring");
        let memory = arena.memory().clone();
        let mut device = DeviceRing::new(7, layout, &driver.address(), driver.base(), memory).expect("a ring");
        let last = if layout.kind == RingKind::Split { 3 } else { 4 };
        for (index, bytes) in [GIB, GIB, GIB, GIB, 1].into_iter().enumerate() {
            let next = if index < last { NEXT } else { 0 };
            let raw = match layout.kind {
                RingKind::Split => (0, bytes, next, index as u16 + 1),
                RingKind::Packed => (0, bytes, 0, AVAILABLE | next),
            };
            write(&driver.areas().descriptors, index, 0, raw);
        }
        driver.areas().driver.write(2, 1_u16.to_le());
        let mut chain = Chain::new();
        match layout.kind {
            RingKind::Split => {
                assert_eq!(device.pop(&mut chain), Ok(true));
                assert_eq!(chain.readable_bytes(), 4 << 30);
            }
            RingKind::Packed => assert_eq!(device.pop(&mut chain), Err(QueueError::TooLong { ring: 7, head: 0 })),
        }
    }
}

#[test]
fn a_chain_of_more_buffers_than_a_device_takes_is_refused() {
    for layout in [split(2048), packed(2048)] {
        for (buffers, expected) in [
            (1024, Ok(true)),
            (1025, Err(QueueError::TooManyBuffers { ring: 7, head: 0, max: 1024 })),
            (2048, Err(QueueError::TooManyBuffers { ring: 7, head: 0, max: 1024 })),
        ] {
            let raw = |index: u16| {
                let next = if index + 1 < buffers { NEXT } else { 0 };
                match layout.kind {
                    RingKind::Split => (0, 1, next, index + 1),
                    RingKind::Packed => (0, 1, 0, AVAILABLE | next),
                }
            };
            assert_eq!(device_finds(layout, &(0..buffers).map(raw).collect::<Vec<_>>(), &[]), expected);
        }
    }
}

#[test]
fn an_available_index_that_jumps_is_found_out() {
    let Pair { driver, mut device, .. } = Pair::new(split(4));
    let mut chain = Chain::new();
    for to in [5_u16, 0xffff, 0x8000] {
        driver.areas().driver.write(2, to.to_le());
        let jump = QueueError::AvailableJump { ring: 7, from: 0, to, size: 4 };
        assert_eq!(device.pop(&mut chain), Err(jump));
    }
    driver.areas().driver.write(4, 4_u16.to_le());
    driver.areas().driver.write(2, 1_u16.to_le());
    assert_eq!(device.pop(&mut chain), Err(QueueError::Descriptor { ring: 7, descriptor: 4, size: 4 }));
}

#[test]
fn what_is_in_flight_is_not_available_again() {
    let Pair { driver, mut device, .. } = Pair::new(split(4));
    driver.areas().driver.write(2, 2_u16.to_le());
    let mut chain = Chain::new();
    assert_eq!(device.pop(&mut chain), Ok(true));
    assert_eq!(device.pop(&mut chain), Err(QueueError::AvailableTwice { ring: 7, head: 0 }));

    let Pair { driver, mut device, data, .. } = Pair::new(packed(2));
    let descriptors = &driver.areas().descriptors;
    write(descriptors, 0, data.guest_address(), (0, 1, 0, AVAILABLE));
    write(descriptors, 1, data.guest_address(), (0, 1, 1, AVAILABLE | NEXT));
    assert_eq!(device.pop(&mut chain), Ok(true));
    write(descriptors, 0, data.guest_address(), (0, 1, 0, USED));
    assert_eq!(device.pop(&mut chain), Err(QueueError::AvailableTwice { ring: 7, head: 1 }));
}

/// The driver's error if two requests are published, a third is not, and this was done to what the device writes.
fn driver_finds(layout: RingLayout, lie: impl FnOnce(&mut DeviceRing)) -> QueueError {
    let mut pair = Pair::new(layout);
    let _ = pair.ask(0);
    let _ = pair.ask(1);
    let one = [pair.buffer(0, 1)];
    pair.driver.add(&one, &[], 2).expect("has room");
    lie(&mut pair.device);
    let free = pair.driver.free_descriptors();
    let found = pair.driver.take_used().expect_err("it is a lie");
    assert_eq!(pair.driver.take_used(), Err(found.clone()), "it is the same the next time");
    assert_eq!((pair.driver.outstanding(), pair.driver.free_descriptors()), (3, free), "nothing was taken");
    found
}

#[test]
fn a_device_that_lies_is_found_out() {
    for (layout, descriptors) in [(split(8), [0, 1, 2]), (packed(8), [0, 1, 2])] {
        let finds = |id: u16, written: u32| {
            driver_finds(layout, |device| {
                device.push_id(ChainId::forged(id, 1), written);
                let _ = device.publish();
            })
        };
        assert_eq!(finds(7, 0), QueueError::UnknownId { ring: 7, id: 7 });
        assert_eq!(finds(8, 0), QueueError::UnknownId { ring: 7, id: 8 });
        assert_eq!(finds(0xffff, 0), QueueError::UnknownId { ring: 7, id: 0xffff });
        let id = descriptors[2];
        assert_eq!(finds(id, 0), QueueError::UnknownId { ring: 7, id: id.into() }, "it was not published");
        let long = |written| QueueError::UsedLength { ring: 7, id: 0, written, writable: 8 };
        assert_eq!(finds(0, 9), long(9));
        assert_eq!(finds(0, u32::MAX), long(u32::MAX));
    }
    let jump = |to: u16| driver_finds(split(8), |device| device.areas().device.write(2, to.to_le()));
    for to in [3, 8, 0x8000, 0xffff] {
        assert_eq!(jump(to), QueueError::UsedJump { ring: 7, from: 0, to, outstanding: 2 });
    }
    let wide = driver_finds(split(8), |device| {
        device.areas().device.write(4, 0x1_0000_u32.to_le());
        device.areas().device.write(2, 1_u16.to_le());
    });
    assert_eq!(wide, QueueError::UnknownId { ring: 7, id: 0x1_0000 });
}

#[test]
fn what_came_back_does_not_come_back_again() {
    for layout in [split(8), packed(8)] {
        let mut pair = Pair::new(layout);
        let _ = pair.ask(5);
        let _ = pair.ask(6);
        let mut chain = Chain::new();
        assert_eq!(pair.device.pop(&mut chain), Ok(true));
        pair.device.push(&chain, 0);
        pair.device.push(&chain, 0);
        let _ = pair.device.publish();
        assert_eq!(pair.driver.take_used().expect("is right").map(|used| used.token), Some(5));
        assert_eq!(pair.driver.take_used(), Err(QueueError::UnknownId { ring: 7, id: chain.id().number().into() }));
    }
}

#[test]
fn a_recorded_device_that_gives_back_what_it_has_not_goes_on() {
    for layout in [split(4), packed(4)] {
        let mut pair = Pair::new(layout);
        let (region, _file) = InflightRegion::create(layout.kind, 1, layout.size).expect("memory");
        pair.device.set_inflight(region.queue(0).expect("is there")).expect("is right");
        let descriptors = &pair.driver.areas().descriptors;
        let mut chain = Chain::new();
        let mut popped = 0;
        for lap in 0..8_u16 {
            for slot in 0..4 {
                let available = if lap % 2 == 0 { AVAILABLE } else { USED };
                let raw = if layout.kind == RingKind::Split { (0, 1, 0, 0) } else { (0, 1, slot, available) };
                write(descriptors, usize::from(slot), pair.data.guest_address(), raw);
                if layout.kind == RingKind::Split {
                    pair.driver.areas().driver.write(4 + usize::from(slot) * 2, slot.to_le());
                }
            }
            if layout.kind == RingKind::Split {
                pair.driver.areas().driver.write(2, (4 * (lap + 1)).to_le());
            }
            while pair.device.pop(&mut chain) == Ok(true) {
                popped += 1;
            }
            (0..4).for_each(|_| pair.device.push_id(ChainId::forged(77, 1), 0));
            let _ = pair.device.publish();
        }
        assert_eq!(popped, 4, "it has no more than the ring has");
    }
}

#[test]
fn a_device_writes_what_it_likes_and_the_driver_goes_on() {
    for layout in [split(8), packed(8)] {
        let mut pair = Pair::new(layout);
        for lap in 0..20 {
            let _ = pair.ask(lap);
            let _ = pair.ask(lap + 100);
            let _ = pair.serve();
            // The descriptors are not the driver's memory: it has its own list of free ones.
            if layout.kind == RingKind::Split {
                let descriptors = &pair.driver.areas().descriptors;
                (0..descriptors.bytes()).for_each(|at| descriptors.write(at, 0xa5_u8));
            }
            assert_eq!(pair.taken(), [lap, lap + 100]);
        }
    }
}

#[test]
fn the_written_length_counts_where_a_packed_ring_says_that_any_was() {
    let mut pair = Pair::new(packed(4));
    let _ = pair.ask(1);
    let mut chain = Chain::new();
    assert_eq!(pair.device.pop(&mut chain), Ok(true));
    pair.device.push(&chain, 0);
    let _ = pair.device.publish();
    pair.driver.areas().descriptors.write(8, 0x1234_5678_u32);
    assert_eq!(pair.driver.take_used().expect("is right").map(|used| used.written), Some(0));
}

//! Rings full of random bytes, that change while they are worked on: no panic, and every loop ends.

use kiln_vdev::memory::Area;
use kiln_vdev::queue::{Chain, DeviceRing, RingKind, RingLayout};
use proptest::prelude::*;

use super::{Pair, layouts};

/// Descriptors that are made up at most.
const PLAUSIBLE: usize = 2048;

fn fill(area: &Area, bytes: &[u8]) {
    for (at, byte) in (0..area.bytes()).zip(bytes.iter().cycle()) {
        area.write(at, *byte);
    }
}

/// Descriptors that are nearly right, so that more than the first check is met.
fn plausible(layout: RingLayout, start: u64, numbers: &[u32], area: &Area) {
    for (index, number) in (0..(area.bytes() / 16).min(PLAUSIBLE)).zip(numbers.iter().cycle()) {
        let at = index * 16;
        let [first, second, third, fourth] = number.to_le_bytes();
        area.write(at, (start + u64::from(first & 0xf) * 0x801).to_le());
        area.write(at + 8, u32::from(second) << (third & 0xf));
        let flags = u16::from(third & 7) | u16::from(third & 0x10) << 3 | u16::from(third & 0x20) << 10;
        let next = u16::from(fourth) % (layout.size + 1);
        let small = if layout.kind == RingKind::Split { [flags, next] } else { [next, flags] };
        area.write(at + 12, small[0].to_le());
        area.write(at + 14, small[1].to_le());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_device_survives_any_bytes_of_a_driver(
        descriptors in prop::collection::vec(any::<u8>(), 1..600),
        driver in prop::collection::vec(any::<u8>(), 1..100),
        tables in prop::collection::vec(any::<u32>(), 1..300),
        is_plausible in any::<bool>(),
        index in 0..40_u16,
        gives_back in any::<bool>(),
    ) {
        for layout in layouts(32) {
            let mut pair = Pair::new(layout);
            let areas = pair.driver.areas().clone();
            plausible(layout, pair.data.guest_address(), &tables, &pair.data);
            if is_plausible {
                plausible(layout, pair.data.guest_address(), &tables, &areas.descriptors);
            } else {
                fill(&areas.descriptors, &descriptors);
            }
            fill(&areas.driver, &driver);
            if layout.kind == RingKind::Split {
                areas.driver.write(2, index.to_le());
            }
            let mut chain = Chain::new();
            let mut popped = 0_u32;
            while let Ok(true) = pair.device.pop(&mut chain) {
                popped += 1;
                let mut bytes = [0; 64];
                chain.read_into(0, &mut bytes);
                chain.write_from(chain.writable_bytes() / 2, &bytes);
                if gives_back {
                    pair.device.push(&chain, 1);
                    let _ = pair.device.publish() | pair.device.enable_kicks();
                }
                prop_assert!(gives_back || popped <= 32, "more is in flight than the ring has");
                // A ring that gives back what it is given goes on as long as its driver does.
                if popped > 1000 {
                    break;
                }
            }
            pair.device.disable_kicks();
        }
    }

    #[test]
    fn a_driver_survives_any_bytes_of_a_device(
        written in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 1..8),
        indices in prop::collection::vec(0..12_u16, 8),
    ) {
        for layout in layouts(16) {
            let mut pair = Pair::new(layout);
            let areas = pair.driver.areas().clone();
            for (token, (bytes, index)) in written.iter().zip(&indices).enumerate() {
                for _ in 0..3 {
                    let readable = [pair.buffer(0, 8), pair.buffer(8, 8)];
                    // It may be full by now: the device returns no requests.
                    let _ = pair.driver.add(&readable, &[pair.buffer(16, 1 << 16)], token as u64);
                }
                let _ = pair.driver.publish();
                match layout.kind {
                    RingKind::Split => {
                        fill(&areas.device, bytes);
                        areas.device.write(2, index.to_le());
                    }
                    RingKind::Packed => fill(&areas.descriptors, bytes),
                }
                let before = pair.driver.outstanding();
                let taken = std::iter::from_fn(|| pair.driver.take_used().ok().flatten()).count();
                prop_assert_eq!(usize::from(before), taken + usize::from(pair.driver.outstanding()));
                prop_assert_eq!(pair.driver.outstanding_tokens().count(), usize::from(pair.driver.outstanding()));
                let _ = pair.driver.enable_calls();
                let _ = pair.driver.base();
            }
            pair.driver.reset();
            let memory = pair.arena.memory().clone();
            let address = pair.driver.address();
            pair.device = DeviceRing::new(7, layout, &address, pair.driver.base(), memory).expect("is a ring again");
            let _ = pair.ask(9);
            let _ = pair.serve();
            prop_assert_eq!(pair.taken(), [9]);
        }
    }
}

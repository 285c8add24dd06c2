//! What a request costs in a ring: both sides, from adding it to having it back, without the device's own work.

use divan::counter::ItemsCount;
use kiln_vdev::queue::{Arena, Buffer, Chain, DeviceRing, DriverRing, InflightRegion, RingKind, RingLayout};

fn main() {
    divan::main();
}

const KINDS: [&str; 6] = ["split", "split indirect", "split recorded", "packed", "packed indirect", "packed recorded"];
const REQUESTS: usize = 32;

/// A batch of requests as a block device has them: a header, a page, a status.
#[divan::bench(args = KINDS, consts = [1, 32])]
fn requests<const DEPTH: usize>(bencher: divan::Bencher<'_, '_>, kind: &str) {
    let layout = RingLayout {
        kind: if kind.starts_with("packed") { RingKind::Packed } else { RingKind::Split },
        size: 128,
        event_idx: true,
        indirect: kind.ends_with("indirect"),
    };
    let (mut arena, _file) = Arena::new(0, 4 << 20).expect("memory");
    let mut driver = DriverRing::create(0, layout, &mut arena).expect("a ring");
    let data = arena.allocate(1 << 16, 4096).expect("has room").guest_address();
    let memory = arena.memory().clone();
    let mut device = DeviceRing::new(0, layout, &driver.address(), driver.base(), memory).expect("a ring");
    let (region, _file) = InflightRegion::create(layout.kind, 1, layout.size).expect("memory");
    if kind.ends_with("recorded") {
        device.set_inflight(region.queue(0).expect("is there")).expect("is right");
    }
    let readable = [Buffer { guest_address: data, bytes: 16 }];
    let writable = [4096, 1].map(|bytes| Buffer { guest_address: data + 4096, bytes });
    let mut chain = Chain::new();
    bencher.counter(ItemsCount::new(REQUESTS)).bench_local(|| {
        for _ in 0..REQUESTS / DEPTH {
            for token in 0..DEPTH {
                driver.add(&readable, &writable, token as u64).expect("has room");
            }
            let _ = driver.publish();
            while device.pop(&mut chain).expect("is right") {
                device.push(&chain, 4097);
            }
            let _ = device.enable_kicks();
            let _ = device.publish();
            while driver.take_used().expect("is right").is_some() {}
            let _ = driver.enable_calls();
        }
    });
}

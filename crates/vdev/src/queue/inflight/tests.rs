//! A device that is lost behind any of its writes, and the one that comes after it: the driver gets each request back once.

use std::collections::HashSet;

use proptest::prelude::*;

use super::InflightRegion;
use super::region::VERSION_AT;
use crate::memory::Area;
use crate::queue::crash::{self, Lost};
use crate::queue::{Arena, Buffer, Chain, DeviceRing, DriverRing, QueueError, RingKind, RingLayout};

#[derive(Debug, Clone)]
enum Step {
    Add { buffers: usize },
    Publish,
    Pop,
    PopAndGiveBack,
    Push { which: usize },
    PublishUsed,
    TakeUsed,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..4_usize).prop_map(|buffers| Step::Add { buffers }),
        3 => Just(Step::Publish),
        5 => Just(Step::Pop),
        1 => Just(Step::PopAndGiveBack),
        4 => any::<usize>().prop_map(|which| Step::Push { which }),
        3 => Just(Step::PublishUsed),
        2 => Just(Step::TakeUsed),
    ]
}

/// What outlives a device.
struct World {
    arena: Arena,
    data: Area,
    driver: DriverRing,
    region: InflightRegion,
    added: u64,
    /// Tokens that the driver got back.
    taken: HashSet<u64>,
    /// Tokens that devices have popped and the driver did not get back, in order.
    popped: Vec<u64>,
}

impl World {
    fn new(layout: RingLayout) -> Self {
        let (mut arena, _file) = Arena::new(0, 1 << 20).expect("memory");
        let driver = DriverRing::create(1, layout, &mut arena).expect("a ring");
        let data = arena.allocate(4096, 8).expect("has room");
        let (region, _file) = InflightRegion::create(layout.kind, 2, 16).expect("memory");
        Self { arena, data, driver, region, added: 0, taken: HashSet::new(), popped: Vec::new() }
    }

    /// A device comes, takes up what was left, and does these steps, each of which is taken off before it is done.
    fn live(&mut self, steps: &mut Vec<Step>) {
        let memory = self.arena.memory().clone();
        let mut device = DeviceRing::new(1, self.driver.layout(), &self.driver.address(), self.driver.base(), memory)
            .expect("a ring");
        device.set_inflight(self.region.queue(1).expect("is there")).expect("is right");
        let mut chains = Vec::new();
        let mut chain = Chain::new();
        while device.resubmit(&mut chain).expect("is right") {
            chains.push(std::mem::take(&mut chain));
        }
        let left: Vec<u64> = chains.iter().map(token).collect();
        let more = left.strip_prefix(&self.popped[..]).expect("what was popped comes again, in its order");
        assert!(more.len() <= 1, "{left:?} {:?}", self.popped);
        self.popped.clone_from(&left);
        while let Some(step) = steps.pop() {
            self.step(&mut device, &mut chains, &step);
        }
        self.finish(&mut device, &mut chains);
    }

    fn step(&mut self, device: &mut DeviceRing, chains: &mut Vec<Chain>, step: &Step) {
        match step {
            Step::Add { buffers } => {
                let place = self.added % 512 * 8;
                let buffer = |bytes| Buffer { guest_address: self.data.guest_address() + place, bytes };
                let all = [buffer(8), buffer(0), buffer(8)];
                if self.driver.add(&all[..1], &all[1..*buffers], self.added).is_ok() {
                    self.data.write(usize::try_from(place).expect("is small"), self.added);
                    self.added += 1;
                }
            }
            Step::Publish => _ = self.driver.publish(),
            Step::Pop => {
                let mut chain = Chain::new();
                if device.pop(&mut chain).expect("is right") {
                    self.popped.push(token(&chain));
                    chains.push(chain);
                }
            }
            Step::PopAndGiveBack => {
                let mut chain = Chain::new();
                if device.pop(&mut chain).expect("is right") {
                    device.unpop(&chain);
                }
            }
            Step::Push { which } if !chains.is_empty() => {
                let chain = chains.remove(which % chains.len());
                device.push(&chain, u32::try_from(chain.writable_bytes()).expect("is small"));
            }
            Step::PublishUsed => _ = device.publish(),
            Step::TakeUsed => self.take_used(),
            Step::Push { .. } => {}
        }
    }

    fn take_used(&mut self) {
        while let Some(used) = self.driver.take_used().expect("no device lies") {
            assert!(self.taken.insert(used.token), "{} came back twice", used.token);
            self.popped.retain(|token| *token != used.token);
        }
    }

    fn finish(&mut self, device: &mut DeviceRing, chains: &mut Vec<Chain>) {
        for _ in 0..=2 * device.layout().size {
            for step in [Step::Publish, Step::Pop, Step::Push { which: 0 }, Step::PublishUsed, Step::TakeUsed] {
                self.step(device, chains, &step);
            }
        }
        assert_eq!(self.taken.len() as u64, self.added, "a request was lost");
        assert_eq!((self.driver.outstanding(), device.in_flight()), (0, 0));
        assert_eq!(self.region.queue(1).expect("is there").recorded().count(), 0);
        assert_eq!(self.region.queue(0).expect("is there").area().read::<u16>(VERSION_AT), 0, "another's was written");
    }
}

fn token(chain: &Chain) -> u64 {
    let mut bytes = [0; 8];
    assert_eq!(chain.read_into(0, &mut bytes), 8);
    u64::from_ne_bytes(bytes)
}

fn layouts(split_size: u16, packed_size: u16) -> [RingLayout; 4] {
    [(RingKind::Split, split_size), (RingKind::Packed, packed_size)]
        .map(|(kind, size)| [false, true].map(|indirect| RingLayout { kind, size, event_idx: indirect, indirect }))
        .concat()
        .try_into()
        .expect("two of each")
}

/// Devices that are lost behind so many writes each, and a last one that is not.
fn survive(layout: RingLayout, mut steps: Vec<Step>, losses: &[usize]) {
    let mut world = World::new(layout);
    for writes in losses {
        match crash::after(*writes, || world.live(&mut steps)) {
            Ok(()) => return,
            Err(Lost) => world.take_used(),
        }
    }
    world.live(&mut steps);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_survives_any_losses(
        split_size_log in 0..4_u32,
        packed_size in 1..9_u16,
        steps in prop::collection::vec(step(), 0..200),
        losses in prop::collection::vec(0..300_usize, 0..5),
    ) {
        for layout in layouts(1 << split_size_log, packed_size) {
            survive(layout, steps.clone(), &losses);
        }
    }
}

#[test]
fn every_request_survives_a_loss_behind_every_write_and_another_in_the_recovery() {
    let lap = [
        Step::Add { buffers: 3 },
        Step::Add { buffers: 1 },
        Step::Publish,
        Step::Pop,
        Step::PopAndGiveBack,
        Step::Pop,
        Step::Push { which: 1 },
        Step::Push { which: 0 },
        Step::PublishUsed,
        Step::TakeUsed,
    ];
    let steps: Vec<Step> = lap.iter().rev().cycle().take(3 * lap.len()).cloned().collect();
    for layout in layouts(4, 3) {
        for first in 0..200 {
            for second in [usize::MAX, 0, 1, 2, 3, 5, 8, 13, 21] {
                survive(layout, steps.clone(), &[first, second]);
            }
        }
    }
}

/// A ring with nothing in flight, and the queue's part of a region.
fn device(layout: RingLayout) -> (World, DeviceRing) {
    let world = World::new(layout);
    let memory = world.arena.memory().clone();
    let device = DeviceRing::new(1, layout, &world.driver.address(), world.driver.base(), memory).expect("a ring");
    (world, device)
}

#[test]
fn the_layout_is_that_of_all_backends() {
    let [split, _, packed, _] = layouts(4, 4);
    let (mut world, mut ring) = device(split);
    assert_eq!(world.region.description().mmap_size, 2 * (16 + 16 * 16_u64).next_multiple_of(64));
    ring.set_inflight(world.region.queue(1).expect("is there")).expect("is right");
    let queue = world.region.queue(1).expect("is there");
    let mut chains = Vec::new();
    for step in [Step::Add { buffers: 2 }, Step::Add { buffers: 1 }, Step::Publish, Step::Pop, Step::Pop] {
        world.step(&mut ring, &mut chains, &step);
    }
    assert_eq!((queue.area().read::<u16>(8), queue.area().read::<u16>(10)), (1, 16));
    assert_eq!(queue.recorded().collect::<Vec<_>>(), [0, 2]);
    assert_eq!((queue.area().read::<u8>(16 + 2 * 16), queue.area().read::<u64>(16 + 2 * 16 + 8)), (1, 1));
    ring.push(&chains[0], 0);
    ring.push(&chains[1], 0);
    assert_eq!((queue.area().read::<u16>(12), queue.area().read::<u16>(14)), (2, 0));
    assert_eq!(queue.area().read::<u16>(16 + 2 * 16 + 6), 0, "the batch goes on with what was pushed before");
    assert!(ring.publish());
    assert_eq!((queue.area().read::<u16>(14), queue.recorded().count()), (2, 0));

    let (mut world, mut ring) = device(packed);
    assert_eq!(world.region.description().mmap_size, 2 * (32 + 16 * 32_u64).next_multiple_of(64));
    ring.set_inflight(world.region.queue(1).expect("is there")).expect("is right");
    let queue = world.region.queue(1).expect("is there");
    let mut chains = Vec::new();
    for step in [Step::Add { buffers: 2 }, Step::Add { buffers: 1 }, Step::Publish, Step::Pop, Step::Pop] {
        world.step(&mut ring, &mut chains, &step);
    }
    let header = |at| queue.area().read::<u16>(at);
    assert_eq!([8, 10, 12, 14, 16, 18].map(header), [1, 16, 3, 3, 0, 0]);
    assert_eq!((queue.area().read::<u8>(20), queue.area().read::<u8>(21)), (1, 1));
    let entry = |index: usize, at: usize| queue.area().read::<u16>(32 + index * 32 + at);
    assert_eq!([2, 4, 6, 16].map(|at| entry(0, at)), [1, 1, 2, 0]);
    assert_eq!(queue.area().read::<u64>(32 + 2 * 32 + 24), chains_address(&world, 1));
    ring.push(&chains[1], 0);
    assert!(ring.publish());
    assert_eq!([12, 14, 16, 18].map(header), [2, 2, 1, 1]);
    assert_eq!((entry(2, 2), queue.recorded().collect::<Vec<_>>()), (3, vec![0]));
}

fn chains_address(world: &World, token: u64) -> u64 {
    world.data.guest_address() + token * 8
}

#[test]
fn what_can_not_be_is_refused() {
    for layout in layouts(4, 4) {
        let refused = |damage: &dyn Fn(&Area)| {
            let (world, mut ring) = device(layout);
            let queue = world.region.queue(1).expect("is there");
            ring.set_inflight(world.region.queue(1).expect("is there")).expect("is right");
            damage(queue.area());
            let (_, mut next) = device(layout);
            next.set_inflight(queue).expect_err("is wrong")
        };
        let damages: &[&dyn Fn(&Area)] = match layout.kind {
            RingKind::Split => &[
                &|area| area.write(8, 2_u16),
                &|area| area.write(10, 4_u16),
                &|area| (area.write(14, 100_u16), area.write(16, 1_u8)).0,
                &|area| (area.write(14, 0xfffe_u16), area.write(12, 77_u16)).0,
            ],
            RingKind::Packed => &[
                &|area| area.write(8, 9_u16),
                &|area| area.write(16, 4_u16),
                &|area| area.write(14, 17_u16),
                &|area| area.write(32 + 15 * 32 + 2, 0_u16),
                &|area| (area.write(14, 1_u16), area.write(32, 1_u8), area.write(32 + 6, 9_u16)).0,
                &|area| (area.write(14, 1_u16), area.write(32, 1_u8)).0,
                &|area| (area.write(14, 1_u16), area.write(32, 1_u8), area.write(38, 2_u16)).0,
                &|area| (area.write(14, 2_u16), area.write(32, 1_u8), area.write(38, 2_u16)).0,
            ],
        };
        for damage in damages {
            assert!(matches!(refused(damage), QueueError::Inflight { ring: 1, .. }));
        }
    }
    assert!(InflightRegion::create(RingKind::Split, 1, 100).is_err());
    assert!(InflightRegion::create(RingKind::Packed, 0, 100).is_err());
    assert!(InflightRegion::create(RingKind::Packed, 257, 100).is_err());
    let (region, file) = InflightRegion::create(RingKind::Packed, 2, 100).expect("memory");
    assert!(region.queue(2).is_err());
    let mut description = *region.description();
    description.mmap_size -= 1;
    assert!(InflightRegion::map(RingKind::Packed, &description, file.try_clone().expect("clones")).is_err());
    description.mmap_size += 0x1001;
    assert!(InflightRegion::map(RingKind::Packed, &description, file).is_err());
    let [split, _, packed, _] = layouts(16, 16);
    let (_, mut ring) = device(packed);
    let (small, _file) = InflightRegion::create(RingKind::Packed, 1, 15).expect("memory");
    assert!(matches!(ring.set_inflight(small.queue(0).expect("is there")), Err(QueueError::Inflight { .. })));
    let (_, mut ring) = device(split);
    assert!(matches!(ring.set_inflight(small.queue(0).expect("is there")), Err(QueueError::Inflight { .. })));
}

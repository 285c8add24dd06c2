//! Our driver's rings against our device's, in every kind there is: what goes in comes back, once, whole, in time.

use std::collections::HashMap;

use kiln_vdev::queue::{Buffer, Chain, QueueError, RingKind, RingLayout, Used};
use proptest::prelude::*;

use super::{Pair, layouts};

#[test]
fn a_request_goes_there_and_back() {
    for layout in layouts(8) {
        let pair = Pair::new(layout);
        let readable = [pair.buffer(0, 2), pair.buffer(2, 4)];
        let writable = [pair.buffer(0x1000, 3), pair.buffer(0x2000, 100)];
        let Pair { mut driver, mut device, data, .. } = pair;
        let mut chain = Chain::new();
        assert_eq!(device.pop(&mut chain), Ok(false));
        data.slice(0, 6).copy_from(b"to ask");
        driver.add(&readable, &writable, 77).expect("has room");
        assert_eq!(device.pop(&mut chain), Ok(false), "{layout:?}");
        assert!(driver.publish(), "{layout:?}");
        assert_eq!(driver.outstanding(), 1);
        assert_eq!(device.pop(&mut chain), Ok(true), "{layout:?}");
        assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (6, 103));
        let mut asked = [0; 8];
        assert_eq!(chain.read_into(1, &mut asked), 5);
        assert_eq!(&asked[..5], b"o ask");
        assert_eq!(chain.write_from(1, b"answer"), 6);
        device.push(&chain, 7);
        assert_eq!(driver.take_used(), Ok(None));
        assert!(device.publish(), "{layout:?}");
        assert_eq!(driver.take_used(), Ok(Some(Used { token: 77, written: 7 })));
        assert_eq!(driver.take_used(), Ok(None));
        assert_eq!((driver.outstanding(), driver.free_descriptors()), (0, 8));
        let mut answer = [0; 4];
        data.slice(0x2000, 4).copy_to(&mut answer);
        assert_eq!(&answer, b"swer");
        assert_eq!(device.in_flight(), 0);
    }
}

#[test]
fn a_full_ring_says_so_and_has_room_again() {
    for layout in layouts(4) {
        let pair = Pair::new(layout);
        let one = [pair.buffer(0, 1)];
        let Pair { mut driver, mut device, .. } = pair;
        for token in 0..4 {
            driver.add(&one, &[], token).expect("has room");
        }
        assert_eq!(driver.add(&one, &[], 4), Err(QueueError::Full { ring: 7 }));
        assert!(matches!(driver.add(&[], &[], 4), Err(QueueError::Buffers { buffers: 0, .. })));
        assert!(driver.publish());
        let mut chain = Chain::new();
        while device.pop(&mut chain).expect("is true") {
            device.push(&chain, 0);
        }
        assert!(device.publish());
        let taken = std::iter::from_fn(|| driver.take_used().expect("is true"));
        assert_eq!(taken.map(|used| used.token).collect::<Vec<_>>(), [0, 1, 2, 3]);
        driver.add(&one, &[], 4).expect("has room again");
    }
}

/// A step of either side. Numbers choose among what is there.
#[derive(Debug, Clone)]
enum Step {
    Add { readable: Vec<u32>, writable: Vec<u32> },
    Publish,
    Pop,
    Unpop,
    Push { which: usize, share: u8 },
    PublishUsed,
    TakeUsed,
}

fn step() -> impl Strategy<Value = Step> {
    let lengths = || prop::collection::vec(0..5000_u32, 0..4);
    prop_oneof![
        4 => (lengths(), lengths()).prop_map(|(readable, writable)| Step::Add { readable, writable }),
        2 => Just(Step::Publish),
        4 => Just(Step::Pop),
        1 => Just(Step::Unpop),
        4 => (any::<usize>(), any::<u8>()).prop_map(|(which, share)| Step::Push { which, share }),
        2 => Just(Step::PublishUsed),
        4 => Just(Step::TakeUsed),
    ]
}

/// Both sides, and what must be true of them.
struct Run {
    pair: Pair,
    /// Bytes of each request in flight, by token.
    asked: HashMap<u64, (u64, u64)>,
    /// What the device has reported of those that it has pushed.
    written: HashMap<u64, u32>,
    popped: Vec<Chain>,
    spare: Vec<Chain>,
    next_token: u64,
    taken: u64,
    /// The device was notified, or polls; likewise the driver. A side that was not notified does nothing.
    device_knows: bool,
    driver_knows: bool,
}

impl Run {
    fn new(layout: RingLayout) -> Self {
        Self {
            pair: Pair::new(layout),
            asked: HashMap::new(),
            written: HashMap::new(),
            popped: Vec::new(),
            spare: Vec::new(),
            next_token: 0,
            taken: 0,
            device_knows: true,
            driver_knows: true,
        }
    }

    /// The token is in the request's first bytes.
    fn token_of(chain: &Chain) -> u64 {
        let mut bytes = [0; 8];
        assert_eq!(chain.read_into(0, &mut bytes), 8);
        u64::from_le_bytes(bytes)
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Add { readable, writable } => self.add(readable, writable),
            Step::Publish => self.device_knows |= self.pair.driver.publish(),
            Step::Pop if self.device_knows => self.pop(),
            Step::Unpop if self.device_knows => self.unpop(),
            Step::Push { which, share } if !self.popped.is_empty() => self.push(*which, *share),
            Step::PublishUsed => self.driver_knows |= self.pair.device.publish(),
            Step::TakeUsed if self.driver_knows => self.take_used(),
            _ => {}
        }
    }

    fn add(&mut self, readable: &[u32], writable: &[u32]) {
        let pair = &mut self.pair;
        let token = self.next_token;
        let place = (token % 256) * 8;
        let mut buffers = vec![pair.buffer(place, 8)];
        buffers.extend(readable.iter().map(|bytes| pair.buffer(0x1_0000, *bytes)));
        let room: Vec<_> = writable.iter().map(|bytes| pair.buffer(0x2_0000, *bytes)).collect();
        match pair.driver.add(&buffers, &room, token) {
            Ok(()) => {
                pair.data.write(usize::try_from(place).expect("is small"), token.to_le());
                let sum = |list: &[Buffer]| list.iter().map(|one| u64::from(one.bytes)).sum();
                assert!(self.asked.insert(token, (sum(&buffers), sum(&room))).is_none());
                self.next_token += 1;
            }
            Err(QueueError::Full { .. }) => assert!(!self.asked.is_empty()),
            Err(QueueError::Buffers { max, .. }) => assert!(max < buffers.len() + room.len()),
            Err(other) => panic!("{other}"),
        }
    }

    fn pop(&mut self) {
        let mut chain = self.spare.pop().unwrap_or_default();
        if self.pair.device.pop(&mut chain).expect("the driver is honest") {
            let token = Self::token_of(&chain);
            assert_eq!(self.asked[&token], (chain.readable_bytes(), chain.writable_bytes()));
            self.popped.push(chain);
        } else {
            self.spare.push(chain);
            self.device_knows = self.pair.device.enable_kicks();
        }
    }

    fn unpop(&mut self) {
        let mut chain = self.spare.pop().unwrap_or_default();
        if self.pair.device.pop(&mut chain).expect("the driver is honest") {
            self.pair.device.unpop(&chain);
        }
        self.spare.push(chain);
    }

    fn push(&mut self, which: usize, share: u8) {
        let chain = self.popped.swap_remove(which % self.popped.len());
        let written = chain.writable_bytes() * u64::from(share) / 255;
        let written = u32::try_from(written).expect("is small");
        assert!(self.written.insert(Self::token_of(&chain), written).is_none());
        self.pair.device.push(&chain, written);
        self.spare.push(chain);
    }

    fn take_used(&mut self) {
        match self.pair.driver.take_used().expect("the device is honest") {
            Some(used) => {
                assert_eq!(self.written.remove(&used.token), Some(used.written));
                assert!(self.asked.remove(&used.token).is_some());
                self.taken += 1;
            }
            None => self.driver_knows = self.pair.driver.enable_calls(),
        }
    }

    /// All must come back now: neither side does anything without a notification.
    fn finish(mut self) {
        let lap = [Step::Publish, Step::Pop, Step::Push { which: 0, share: 9 }, Step::PublishUsed, Step::TakeUsed];
        for _ in 0..4 * usize::from(self.pair.driver.layout().size) + 8 {
            for step in &lap {
                self.take(step);
            }
        }
        assert_eq!(self.taken, self.next_token, "a request was lost, or a wake-up");
        assert_eq!(self.pair.driver.outstanding(), 0);
        assert_eq!(self.pair.device.in_flight(), 0);
        assert_eq!(self.pair.driver.free_descriptors(), self.pair.driver.layout().size);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_comes_back_once_and_no_wake_up_is_lost(
        size_log in 0..5_u32,
        packed_size in 1..21_u16,
        steps in prop::collection::vec(step(), 0..400),
    ) {
        for mut layout in layouts(1 << size_log) {
            if layout.kind == RingKind::Packed {
                layout.size = packed_size;
            }
            let mut run = Run::new(layout);
            for step in &steps {
                run.take(step);
            }
            run.finish();
        }
    }
}

//! Both sides at once, each asleep until it is notified: a wake-up that is lost leaves both asleep, and the test ends
//! late.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use kiln_vdev::memory::Area;
use kiln_vdev::queue::{Buffer, Chain, DeviceRing, DriverRing, QueueError, RingLayout};

use super::{Pair, layouts};

const REQUESTS: u64 = 8_000;
const TOLD_WITHIN: Duration = Duration::from_secs(60);

/// As an event is: telling twice is telling once.
fn event() -> (SyncSender<()>, Receiver<()>) {
    sync_channel(1)
}

fn tell(event: &SyncSender<()>) {
    // Full: the other side was notified already. Disconnected: it has all it needs.
    let _ = event.try_send(());
}

fn serve(mut ring: DeviceRing, kicked: &Receiver<()>, call: &SyncSender<()>) {
    let mut chains: Vec<Chain> = Vec::new();
    let mut spare: Vec<Chain> = Vec::new();
    let mut served = 0;
    while served < REQUESTS {
        let mut chain = spare.pop().unwrap_or_default();
        if ring.pop(&mut chain).expect("the driver is honest") {
            let mut asked = [0; 8];
            assert_eq!(chain.read_into(0, &mut asked), 8);
            let answer = u64::from_le_bytes(asked).wrapping_mul(3);
            assert_eq!(chain.write_from(0, &answer.to_le_bytes()), 8);
            chains.push(chain);
            served += 1;
            if chains.len() < 5 && served % 3 != 0 && served < REQUESTS {
                continue;
            }
        } else {
            spare.push(chain);
        }
        while let Some(chain) = chains.pop() {
            ring.push(&chain, 8);
            spare.push(chain);
        }
        if ring.publish() {
            tell(call);
        }
        if served < REQUESTS && !ring.enable_kicks() {
            kicked.recv_timeout(TOLD_WITHIN).expect("a kick was lost");
        }
        ring.disable_kicks();
    }
}

fn ask(pair: &mut DriverRing, start: u64, data: &Area, kick: &SyncSender<()>, called: &Receiver<()>) {
    let (mut added, mut taken) = (0, 0);
    let mut free: Vec<u64> = (0..64).collect();
    let mut slots = vec![(0, 0); usize::try_from(REQUESTS).expect("is small")];
    while taken < REQUESTS {
        while added < REQUESTS
            && let Some(slot) = free.pop()
        {
            let at = slot * 16;
            data.write(usize::try_from(at).expect("is small"), (added ^ 0x5555).to_le());
            let buffer = |at| [Buffer { guest_address: start + at, bytes: 8 }];
            match pair.add(&buffer(at), &buffer(at + 8), added) {
                Ok(()) => {
                    slots[usize::try_from(added).expect("is small")] = (slot, added);
                    added += 1;
                }
                Err(QueueError::Full { .. }) => {
                    free.push(slot);
                    break;
                }
                Err(other) => panic!("{other}"),
            }
        }
        if pair.publish() {
            tell(kick);
        }
        pair.disable_calls();
        let before = taken;
        while let Some(used) = pair.take_used().expect("the device is honest") {
            let (slot, token) = slots[usize::try_from(used.token).expect("is small")];
            let answer: u64 = data.read(usize::try_from(slot * 16 + 8).expect("is small"));
            assert_eq!(
                u64::from_le(answer),
                (token ^ 0x5555).wrapping_mul(3),
                "a used entry was visible before its data"
            );
            free.push(slot);
            taken += 1;
        }
        if taken == before && taken < REQUESTS && !pair.enable_calls() {
            called.recv_timeout(TOLD_WITHIN).expect("a call was lost");
        }
    }
}

fn run(layout: RingLayout) {
    let Pair { mut driver, device, data, .. } = Pair::new(layout);
    let (kick, kicked) = event();
    let (call, called) = event();
    std::thread::scope(|scope| {
        scope.spawn(move || serve(device, &kicked, &call));
        ask(&mut driver, data.guest_address(), &data, &kick, &called);
    });
    assert_eq!(driver.outstanding(), 0);
}

#[test]
fn two_threads_that_sleep_until_they_are_told_finish() {
    for size in [2, 16] {
        for layout in layouts(size) {
            run(layout);
        }
    }
}

/// The point at which two threads wait for each other, awake, so that they go on in the same moment.
#[derive(Default)]
struct Line {
    arrived: AtomicU32,
}

impl Line {
    /// Waits for the other, then some more; `meeting` counts from 0.
    fn meet(&self, meeting: u32, delay: u32) {
        self.arrived.fetch_add(1, Ordering::AcqRel);
        let (mut looks, start) = (0, Instant::now());
        while self.arrived.load(Ordering::Acquire) < 2 * (meeting + 1) {
            looks += 1;
            // A processor that is shared is given to the other.
            if looks % 1000 == 0 {
                assert!(start.elapsed() < TOLD_WITHIN, "the other side does not come");
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        (0..delay).for_each(|_| std::hint::spin_loop());
    }
}

/// Without its fences, a release build of a ring fails within a few thousand. A machine that is busy makes fewer.
const ROUNDS: u32 = 10_000;
const ROUNDS_TIME: Duration = Duration::from_secs(1);

/// One side publishes in the moment in which the other enables notifications: either it is notified, or it sees what
/// was published.
#[test]
fn who_asks_to_be_told_in_the_same_moment_is_told_or_sees() {
    for layout in layouts(8).filter(|layout| !layout.indirect) {
        let Pair { mut driver, mut device, data, .. } = Pair::new(layout);
        let one = [Buffer { guest_address: data.guest_address(), bytes: 8 }];
        let (line, start, is_over) = (Line::default(), Instant::now(), AtomicBool::new(false));
        // Whether the last one was notified; how often neither side knew.
        let [kicked, called, lost] = [(); 3].map(|()| AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut chain = Chain::new();
                for round in 0..ROUNDS {
                    device.disable_kicks();
                    line.meet(round * 4, round % 7);
                    let sees = device.enable_kicks();
                    line.meet(round * 4 + 1, 0);
                    lost.fetch_add(u32::from(!sees && kicked.load(Ordering::Relaxed) == 0), Ordering::Relaxed);
                    assert_eq!(device.pop(&mut chain), Ok(true));
                    device.push(&chain, 0);
                    line.meet(round * 4 + 2, round % 5);
                    called.store(device.publish().into(), Ordering::Relaxed);
                    line.meet(round * 4 + 3, 0);
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            for round in 0..ROUNDS {
                driver.disable_calls();
                driver.add(&one, &[], 0).expect("has room");
                line.meet(round * 4, round % 11);
                kicked.store(driver.publish().into(), Ordering::Relaxed);
                line.meet(round * 4 + 1, 0);
                line.meet(round * 4 + 2, round % 13);
                let sees = driver.enable_calls();
                is_over.store(start.elapsed() > ROUNDS_TIME, Ordering::Relaxed);
                line.meet(round * 4 + 3, 0);
                lost.fetch_add(u32::from(!sees && called.load(Ordering::Relaxed) == 0), Ordering::Relaxed);
                assert!(driver.take_used().expect("is right").is_some());
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        assert_eq!(lost.into_inner(), 0, "{layout:?}");
    }
}

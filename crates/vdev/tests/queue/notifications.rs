//! Who is notified of what: exactly at the requested index, and never too rarely.

use kiln_vdev::queue::{Chain, RingKind, RingLayout};

use super::{Pair, layouts};

#[test]
fn a_side_that_polls_is_not_notified() {
    for layout in layouts(16) {
        let mut pair = Pair::new(layout);
        assert!(pair.ask(0), "{layout:?}");
        pair.device.disable_kicks();
        pair.driver.disable_calls();
        // With events, one side requests the first one, and is notified once.
        let is_split_with_events = layout.kind == RingKind::Split && layout.event_idx;
        assert_eq!(pair.serve(), is_split_with_events, "{layout:?}");
        for token in 1..5 {
            assert!(!pair.ask(token), "{layout:?}");
            assert!(!pair.serve(), "{layout:?}");
        }
        assert_eq!(pair.taken(), [0, 1, 2, 3, 4]);
    }
}

#[test]
fn a_side_that_sets_an_event_is_notified_once() {
    for layout in layouts(8).filter(|layout| layout.event_idx) {
        let mut pair = Pair::new(layout);
        assert!(!pair.device.enable_kicks());
        assert!(!pair.driver.enable_calls());
        for token in 0..500 {
            assert!(pair.ask(token), "{layout:?} {token}");
            assert!(!pair.ask(token), "{layout:?} {token}");
            assert!(pair.device.enable_kicks(), "there is something");
            assert!(pair.serve(), "{layout:?} {token}");
            assert!(!pair.device.enable_kicks(), "there is nothing");
            assert!(pair.driver.enable_calls(), "there is something");
            assert_eq!(pair.taken(), [token, token]);
            assert!(!pair.driver.enable_calls(), "there is nothing");
        }
    }
}

#[test]
fn without_event_idx_every_batch_is_notified() {
    for layout in layouts(8).filter(|layout| !layout.event_idx) {
        let mut pair = Pair::new(layout);
        for token in 0..100 {
            assert!(pair.ask(token), "{layout:?}");
            assert!(pair.ask(token), "{layout:?}");
            assert!(pair.serve(), "{layout:?}");
            assert_eq!(pair.taken(), [token, token]);
        }
        assert!(!pair.driver.publish() && !pair.device.publish(), "nothing is nothing to tell of");
    }
}

#[test]
fn a_batch_over_the_entry_that_was_asked_for_is_told_of() {
    for layout in layouts(16).filter(|layout| layout.event_idx) {
        let mut pair = Pair::new(layout);
        for token in 0..200_u64 {
            let one = [pair.buffer(0, 8)];
            for _ in 0..=token % 5 {
                pair.driver.add(&one, &[], token).expect("has room");
            }
            assert!(pair.driver.publish(), "{layout:?} {token}");
            let mut chain = Chain::new();
            while pair.device.pop(&mut chain).expect("is right") {
                pair.device.push(&chain, 0);
            }
            assert!(!pair.device.enable_kicks());
            assert!(pair.device.publish(), "{layout:?} {token}");
            pair.taken();
            assert!(!pair.driver.enable_calls());
        }
    }
}

#[test]
fn an_index_goes_round_its_16_bits() {
    for layout in layouts(4).filter(|layout| layout.kind == RingKind::Split && !layout.indirect) {
        let mut pair = Pair::new(layout);
        for token in 0..66_000 {
            assert!(pair.ask(token), "{layout:?} {token}");
            assert!(pair.serve(), "{layout:?} {token}");
            assert_eq!(pair.taken(), [token]);
            assert!(!pair.device.enable_kicks() && !pair.driver.enable_calls());
        }
    }
}

#[test]
fn the_largest_rings_tell_as_small_ones_do() {
    for kind in [RingKind::Split, RingKind::Packed] {
        let layout = RingLayout { kind, size: 1 << 15, event_idx: true, indirect: false };
        let mut pair = Pair::new(layout);
        let one = [pair.buffer(0, 8)];
        for batch in [1, 20_000, 32_767, 32_768, 32_768, 5, 32_768] {
            for token in 0..batch {
                pair.driver.add(&one, &[], token).expect("has room");
            }
            assert!(pair.driver.publish(), "{kind:?} {batch}");
            assert!(pair.serve(), "{kind:?} {batch}");
            assert!(!pair.device.enable_kicks());
            assert_eq!(pair.taken().len() as u64, batch);
            assert!(!pair.driver.enable_calls());
        }
    }
}

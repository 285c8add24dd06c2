//! Flow control between a sender and a receiver that both keep the rules.

use kiln_wire::credit::{FRAME_COST_MIN, ReceiveWindow, SendWindow, WINDOW_BYTES, WINDOW_BYTES_MAX, frame_cost};
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Send(usize),
    Consume(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let most = 2 * WINDOW_BYTES as usize;
    let small = (0..3 * FRAME_COST_MIN).prop_map(Step::Send);
    vec(prop_oneof![(0..most).prop_map(Step::Send), small, (0..most).prop_map(Step::Consume)], 0..200)
}

proptest! {
    #[test]
    fn a_sender_that_keeps_its_window_never_overruns_the_receiver(steps in steps()) {
        let (mut sender, mut receiver) = (SendWindow::default(), ReceiveWindow::default());
        let mut buffered = 0;
        for step in steps {
            match step {
                Step::Send(wanted) => {
                    let sent = sender.take(wanted);
                    if sent > 0 {
                        prop_assert_eq!(receiver.received(sent), Ok(()));
                        buffered += frame_cost(sent);
                    }
                    prop_assert!(buffered <= WINDOW_BYTES as usize);
                }
                Step::Consume(wanted) => {
                    let consumed = wanted.min(buffered);
                    buffered -= consumed;
                    if let Some(credit) = receiver.consumed(consumed) {
                        let before = sender.available();
                        sender.credit(credit);
                        prop_assert_eq!(sender.available(), before + credit as usize, "no credit is lost");
                    }
                }
            }
            // A receiver that has consumed everything leaves the sender at least three quarters of its window.
            prop_assert!(buffered > 0 || sender.available() > WINDOW_BYTES as usize / 4 * 3);
        }
    }

    #[test]
    fn hostile_numbers_never_overflow(steps in vec((any::<u32>(), any::<usize>()), 0..50)) {
        let (mut sender, mut receiver) = (SendWindow::default(), ReceiveWindow::default());
        for (credit, bytes) in steps {
            sender.credit(credit);
            prop_assert!(sender.take(bytes) <= WINDOW_BYTES_MAX as usize);
            let _ = receiver.received(bytes);
            let _ = receiver.consumed(bytes);
        }
    }
}

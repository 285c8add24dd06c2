//! Flow control: how much data each direction of a stream may carry.
//!
//! Each direction starts with a window of [`WINDOW_BYTES`]. A sender spends it ([`SendWindow`]); the receiver gives it
//! back with `Credit` once data has left its hands ([`ReceiveWindow`]). A stuck stream fills its own window and nothing
//! else, so one stuck stream never stops another.
//!
//! A receiver that has the memory may let the window of a stream that flows grow to [`WINDOW_BYTES_MAX`], by one credit
//! that is larger than what it took: a long transfer then doesn't stand still for the way of its credits.
//!
//! A frame costs its payload, and at least [`FRAME_COST_MIN`]: a receiver keeps something for each frame that it queues,
//! so frames that were free, or nearly, would let a peer fill its memory with queue entries. Both sides count in cost.

/// Window of each direction at the start of a stream.
pub const WINDOW_BYTES: u32 = 256 << 10;
/// The most that is ever outstanding.
pub const WINDOW_BYTES_MAX: u32 = 1 << 20;
/// What the smallest data frame takes of the window, an empty one too: about what a queue spends on an entry.
pub const FRAME_COST_MIN: usize = 32;

/// What a data frame with this many bytes takes of the window.
pub const fn frame_cost(payload_bytes: usize) -> usize {
    if payload_bytes < FRAME_COST_MIN { FRAME_COST_MIN } else { payload_bytes }
}

/// What a sender may still send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendWindow {
    available: u32,
}

impl Default for SendWindow {
    fn default() -> Self {
        Self { available: WINDOW_BYTES }
    }
}

impl SendWindow {
    /// What is left of the window.
    pub const fn available(&self) -> usize {
        self.available as usize
    }

    /// The most bytes that one frame may carry now: 0 if not even the smallest frame may be sent.
    pub const fn frame_room(&self) -> usize {
        if (self.available as usize) < FRAME_COST_MIN { 0 } else { self.available as usize }
    }

    /// Pays for one frame of up to `wanted` bytes and returns how many it may carry. 0 if there is no window for a
    /// frame, and nothing is paid then.
    pub fn take(&mut self, wanted: usize) -> usize {
        let given = self.frame_room().min(wanted);
        self.spend(if given == 0 { 0 } else { frame_cost(given) });
        given
    }

    /// Pays for `more` bytes in a frame that was paid for with `paid` bytes and has not been sent.
    pub fn take_more(&mut self, paid: usize, more: usize) {
        self.spend(frame_cost(paid + more) - frame_cost(paid));
    }

    fn spend(&mut self, cost: usize) {
        self.available = self.available.saturating_sub(u32::try_from(cost).unwrap_or(u32::MAX));
    }

    /// Adds the peer's credit. More than the largest window can't be outstanding, so a hostile peer can't raise it
    /// further.
    pub fn credit(&mut self, bytes: u32) {
        self.available = self.available.saturating_add(bytes).min(WINDOW_BYTES_MAX);
    }
}

/// The peer sent more than its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a data frame that costs {cost} came when the window allowed {allowed}")]
pub struct Overrun {
    /// What the frame that came costs.
    pub cost: usize,
    /// What was left of the window.
    pub allowed: u32,
}

/// What a receiver has allowed and not yet given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiveWindow {
    /// What the peer may still send.
    allowed: u32,
    /// What was consumed since the last credit.
    owed: u32,
    /// What may be outstanding.
    size: u32,
    /// What may be outstanding once the stream has shown that it flows.
    size_later: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self { allowed: WINDOW_BYTES, owed: 0, size: WINDOW_BYTES, size_later: WINDOW_BYTES }
    }
}

impl ReceiveWindow {
    /// A window that grows to [`WINDOW_BYTES_MAX`] with its first credit.
    pub fn growing() -> Self {
        Self { size_later: WINDOW_BYTES_MAX, ..Self::default() }
    }

    /// Counts one data frame that arrived.
    ///
    /// # Errors
    /// The peer ignores its window: end the stream with `flow_control`.
    pub fn received(&mut self, bytes: usize) -> Result<(), Overrun> {
        let cost = frame_cost(bytes);
        match u32::try_from(cost).ok().and_then(|cost| self.allowed.checked_sub(cost)) {
            Some(left) => {
                self.allowed = left;
                Ok(())
            }
            None => Err(Overrun { cost, allowed: self.allowed }),
        }
    }

    /// Counts what frames that were passed on had cost, and returns what to credit: a quarter of the window at a time,
    /// so that credit frames are few and the sender never runs dry.
    pub fn consumed(&mut self, cost: usize) -> Option<u32> {
        let outstanding = self.size - self.allowed - self.owed;
        self.owed += u32::try_from(cost).unwrap_or(u32::MAX).min(outstanding);
        if self.owed < self.size / 4 {
            return None;
        }
        let credit = std::mem::take(&mut self.owed) + self.size_later - self.size;
        self.size = self.size_later;
        self.allowed += credit;
        Some(credit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_stops_at_its_window_and_goes_on_with_credit() {
        let mut window = SendWindow::default();
        assert_eq!(window.take(usize::MAX), WINDOW_BYTES as usize);
        assert_eq!(window.take(1), 0);
        window.credit(10);
        assert_eq!(window.take(100), 0, "less than a frame costs");
        window.credit(100);
        assert_eq!(window.take(200), 110);
    }

    #[test]
    fn credit_from_a_hostile_peer_never_passes_the_largest_window() {
        let mut window = SendWindow::default();
        window.credit(u32::MAX);
        assert_eq!(window.available(), WINDOW_BYTES_MAX as usize);
    }

    #[test]
    fn a_growing_window_grows_once_and_only_when_data_flows() {
        let mut window = ReceiveWindow::growing();
        assert!(window.received(WINDOW_BYTES as usize + 1).is_err(), "it starts as all do");
        window.received(WINDOW_BYTES as usize).expect("a whole window is allowed");
        let growth = WINDOW_BYTES_MAX - WINDOW_BYTES;
        assert_eq!(window.consumed(WINDOW_BYTES as usize / 4), Some(WINDOW_BYTES / 4 + growth));
        assert_eq!(window.consumed(WINDOW_BYTES as usize / 4), None, "a quarter of what it is now");
        assert_eq!(window.received(growth as usize + WINDOW_BYTES as usize / 4), Ok(()));
        assert!(window.received(1).is_err());
        assert_eq!(window.consumed(usize::MAX), Some(WINDOW_BYTES_MAX));
    }

    #[test]
    fn an_overrun_is_named() {
        let mut window = ReceiveWindow::default();
        assert_eq!(window.received(WINDOW_BYTES as usize), Ok(()));
        assert_eq!(window.received(1), Err(Overrun { cost: FRAME_COST_MIN, allowed: 0 }));
    }

    #[test]
    fn empty_and_tiny_frames_are_not_free() {
        for bytes in [0, 1, FRAME_COST_MIN] {
            let mut window = ReceiveWindow::default();
            let frames = WINDOW_BYTES as usize / FRAME_COST_MIN;
            for _ in 0..frames {
                assert_eq!(window.received(bytes), Ok(()));
            }
            assert!(window.received(bytes).is_err(), "{frames} frames of {bytes} bytes fill the window");
        }
    }

    #[test]
    fn a_rest_that_is_smaller_than_a_frame_costs_is_not_sent() {
        let mut window = SendWindow::default();
        assert_eq!(window.take(WINDOW_BYTES as usize - FRAME_COST_MIN + 1), WINDOW_BYTES as usize - FRAME_COST_MIN + 1);
        assert_eq!((window.frame_room(), window.take(1)), (0, 0));
        window.credit(1);
        assert_eq!(window.take(1), 1);
        assert_eq!(window.available(), 0);
    }

    #[test]
    fn bytes_that_join_a_frame_are_paid_as_if_they_had_come_in_it() {
        let mut window = SendWindow::default();
        assert_eq!(window.take(10), 10);
        window.take_more(10, 10);
        assert_eq!(window.available(), WINDOW_BYTES as usize - FRAME_COST_MIN);
        window.take_more(20, 20);
        assert_eq!(window.available(), WINDOW_BYTES as usize - 40);
    }

    #[test]
    fn what_is_consumed_is_credited_a_quarter_at_a_time() {
        let mut window = ReceiveWindow::default();
        window.received(WINDOW_BYTES as usize).expect("a whole window is allowed");
        assert_eq!(window.consumed(WINDOW_BYTES as usize / 4 - 1), None);
        assert_eq!(window.consumed(1), Some(WINDOW_BYTES / 4));
        assert_eq!(window.received(WINDOW_BYTES as usize / 4), Ok(()));
        assert!(window.received(1).is_err());
    }
}

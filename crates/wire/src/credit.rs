//! Flow control: how much data each direction of a stream may carry.
//!
//! Each direction starts with a window of [`WINDOW_BYTES`]. A sender spends it ([`SendWindow`]). The receiver gives it
//! back with `Credit` after it has passed the data on ([`ReceiveWindow`]). A stuck stream fills only its own window,
//! so it never blocks another stream.
//!
//! A receiver that has the memory may let the window of a stream grow to [`WINDOW_BYTES_MAX`] once its data flows: it
//! sends one credit that is larger than what it consumed. A long transfer then does not wait for the round trip of its
//! credits.
//!
//! A frame costs the bytes of its payload, and at least [`FRAME_COST_MIN`]. A receiver keeps an entry for each frame
//! that it queues, so a window of bytes alone would bound nothing: a peer could fill its memory with the entries of
//! empty frames. Both sides count in cost. It depends only on the length of a frame, so their counts always agree.

/// Window of each direction at the start of a stream.
pub const WINDOW_BYTES: u32 = 256 << 10;
/// The largest window.
pub const WINDOW_BYTES_MAX: u32 = 4 << 20;
/// Credit is sent after this many bytes at the latest. A sender whose largest window is smaller than the receiver's,
/// because it is of an older version, must get credit before it has sent all that the receiver allows.
const CREDIT_BYTES_MAX: u32 = 256 << 10;
/// What the smallest data frame takes of the window, even if it is empty: about the size of a queue entry.
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

    /// The most bytes that one frame may carry now; 0 if not even the smallest frame may be sent.
    pub const fn frame_room(&self) -> usize {
        if (self.available as usize) < FRAME_COST_MIN { 0 } else { self.available as usize }
    }

    /// Spends the cost of one frame of up to `wanted` bytes and returns how many bytes it may carry. Returns 0 and
    /// spends nothing if the window has no room for a frame.
    pub fn take(&mut self, wanted: usize) -> usize {
        let given = self.frame_room().min(wanted);
        self.spend(if given == 0 { 0 } else { frame_cost(given) });
        given
    }

    /// Spends the cost of adding `more` bytes to a frame that was taken with `paid` bytes and has not been sent.
    pub fn take_more(&mut self, paid: usize, more: usize) {
        self.spend(frame_cost(paid + more) - frame_cost(paid));
    }

    fn spend(&mut self, cost: usize) {
        self.available = self.available.saturating_sub(u32::try_from(cost).unwrap_or(u32::MAX));
    }

    /// Adds the peer's credit, up to the largest window: a hostile peer can't raise it further.
    pub fn credit(&mut self, bytes: u32) {
        self.available = self.available.saturating_add(bytes).min(WINDOW_BYTES_MAX);
    }
}

/// The peer sent more than its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a data frame costs {cost}, more than the {allowed} that the window allows")]
pub struct Overrun {
    /// The cost of the frame.
    pub cost: usize,
    /// The rest of the window.
    pub allowed: u32,
}

/// What the peer may still send, and what was consumed and not credited yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiveWindow {
    /// What the peer may still send.
    allowed: u32,
    /// What was consumed since the last credit.
    owed: u32,
    /// Size of the window.
    size: u32,
    /// Size of the window after the first credit.
    size_later: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self { allowed: WINDOW_BYTES, owed: 0, size: WINDOW_BYTES, size_later: WINDOW_BYTES }
    }
}

impl ReceiveWindow {
    /// A window that grows to this size with its first credit.
    pub fn growing(size: u32) -> Self {
        Self { size_later: size.clamp(WINDOW_BYTES, WINDOW_BYTES_MAX), ..Self::default() }
    }

    /// Lets the window grow by this much at once, up to [`WINDOW_BYTES_MAX`], and returns the credit to send for it.
    pub fn grow(&mut self, bytes: u32) -> u32 {
        let growth = bytes.min(WINDOW_BYTES_MAX - self.size);
        self.size += growth;
        self.size_later = self.size_later.max(self.size);
        self.allowed += growth;
        growth
    }

    /// Counts one data frame that arrived.
    ///
    /// # Errors
    /// If the peer sent more than its window. End the stream with `flow_control`.
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

    /// Counts the cost of frames that were passed on, and returns the credit to send, if any: a quarter of the window
    /// at a time and at most 256 KiB, so that credit frames are few and the sender does not run out of window.
    pub fn consumed(&mut self, cost: usize) -> Option<u32> {
        let outstanding = self.size - self.allowed - self.owed;
        self.owed += u32::try_from(cost).unwrap_or(u32::MAX).min(outstanding);
        if self.owed < (self.size / 4).min(CREDIT_BYTES_MAX) {
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
    fn a_sender_stops_at_its_window_and_continues_with_credit() {
        let mut window = SendWindow::default();
        assert_eq!(window.take(usize::MAX), WINDOW_BYTES as usize);
        assert_eq!(window.take(1), 0);
        window.credit(10);
        assert_eq!(window.take(100), 0, "less than a frame costs");
        window.credit(100);
        assert_eq!(window.take(200), 110);
    }

    #[test]
    fn credit_of_a_hostile_peer_never_exceeds_the_largest_window() {
        let mut window = SendWindow::default();
        window.credit(u32::MAX);
        assert_eq!(window.available(), WINDOW_BYTES_MAX as usize);
    }

    #[test]
    fn a_growing_window_grows_once_and_only_when_data_flows() {
        const SIZE: u32 = 1 << 20;
        let mut window = ReceiveWindow::growing(SIZE);
        assert!(window.received(WINDOW_BYTES as usize + 1).is_err(), "it starts with the usual size");
        window.received(WINDOW_BYTES as usize).expect("a whole window is allowed");
        let growth = SIZE - WINDOW_BYTES;
        assert_eq!(window.consumed(WINDOW_BYTES as usize / 4), Some(WINDOW_BYTES / 4 + growth));
        assert_eq!(window.consumed(WINDOW_BYTES as usize / 4), None, "a quarter of its new size");
        assert_eq!(window.received(growth as usize + WINDOW_BYTES as usize / 4), Ok(()));
        assert!(window.received(1).is_err());
        assert_eq!(window.consumed(usize::MAX), Some(SIZE));
    }

    #[test]
    fn a_window_that_grows_at_once_stays_below_the_largest() {
        let mut window = ReceiveWindow::default();
        assert_eq!((window.grow(1000), window.grow(u32::MAX)), (1000, WINDOW_BYTES_MAX - WINDOW_BYTES - 1000));
        assert_eq!(window.grow(1), 0);
        assert_eq!(window.received(WINDOW_BYTES_MAX as usize), Ok(()));
        assert!(window.received(1).is_err());
        assert_eq!(window.consumed(CREDIT_BYTES_MAX as usize - 1), None);
        assert_eq!(window.consumed(1), Some(CREDIT_BYTES_MAX), "long before a quarter of it");
    }

    #[test]
    fn a_frame_over_the_window_is_an_overrun() {
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
    fn a_rest_of_the_window_below_the_cost_of_a_frame_is_not_used() {
        let mut window = SendWindow::default();
        assert_eq!(window.take(WINDOW_BYTES as usize - FRAME_COST_MIN + 1), WINDOW_BYTES as usize - FRAME_COST_MIN + 1);
        assert_eq!((window.frame_room(), window.take(1)), (0, 0));
        window.credit(1);
        assert_eq!(window.take(1), 1);
        assert_eq!(window.available(), 0);
    }

    #[test]
    fn bytes_added_to_a_frame_cost_as_much_as_one_larger_frame() {
        let mut window = SendWindow::default();
        assert_eq!(window.take(10), 10);
        window.take_more(10, 10);
        assert_eq!(window.available(), WINDOW_BYTES as usize - FRAME_COST_MIN);
        window.take_more(20, 20);
        assert_eq!(window.available(), WINDOW_BYTES as usize - 40);
    }

    #[test]
    fn consumed_data_is_credited_a_quarter_of_the_window_at_a_time() {
        let mut window = ReceiveWindow::default();
        window.received(WINDOW_BYTES as usize).expect("a whole window is allowed");
        assert_eq!(window.consumed(WINDOW_BYTES as usize / 4 - 1), None);
        assert_eq!(window.consumed(1), Some(WINDOW_BYTES / 4));
        assert_eq!(window.received(WINDOW_BYTES as usize / 4), Ok(()));
        assert!(window.received(1).is_err());
    }
}

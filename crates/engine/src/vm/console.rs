//! A guest's console in memory: a ring with the last bytes, and a queue of events for a reader.
//!
//! ```text
//!   serial line ──┬──▶ ring of the last 64 KiB
//!                 ├──▶ EventQueue ──▶ VmEvent::Console
//!                 └──▶ LogWriter ──▶ console.log (first part), console.tail*.log (last part)
//! ```
//! A guest may print forever, and its VM may have no reader, so nothing here waits for a reader or grows without a
//! bound.
//!
//! The events of a VM are one ordered stream, of which console output is a part. The channel to the reader is bounded.
//! If it is full, output is merged into the last waiting event, so a slow reader gets fewer and larger events. If too
//! many bytes wait, the oldest are dropped and counted, because the newest lines show why a guest crashed. Only console
//! bytes are dropped: a reader never misses a `Paused` or the `Exited`, and gets them at their place between the lines.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::sync::mpsc;

use super::events::VmEvent;

/// Console bytes that stay in memory for [`Vm::console_tail`](crate::Vm::console_tail).
pub const CONSOLE_RING_BYTES: usize = 64 << 10;
/// Events that wait in the channel for a reader.
pub(crate) const EVENT_QUEUE: usize = 64;
/// Console bytes that wait for room in the channel. Of more, the oldest are dropped and counted.
const PENDING_CONSOLE_BYTES_MAX: usize = 256 << 10;
/// Console bytes of one merged event.
const EVENT_CONSOLE_BYTES_MAX: usize = 64 << 10;
/// Other events that wait for room in the channel. Only pauses and resumes of the user make them.
const PENDING_EVENTS_MAX: usize = 256;

/// The last bytes of a console.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConsoleRing(Arc<Mutex<VecDeque<u8>>>);

impl ConsoleRing {
    pub(crate) fn push(&self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(CONSOLE_RING_BYTES)..];
        let mut ring = self.lock();
        let excess = (ring.len() + bytes.len()).saturating_sub(CONSOLE_RING_BYTES);
        ring.drain(..excess);
        ring.extend(bytes);
    }

    /// The last lines, oldest first, without their ends.
    pub(crate) fn tail(&self, lines: usize) -> Vec<String> {
        let bytes = self.bytes();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].iter().map(|line| line.trim_end_matches('\r').to_owned()).collect()
    }

    pub(crate) fn contains(&self, needle: &[u8]) -> bool {
        self.bytes().windows(needle.len()).any(|window| window == needle)
    }

    fn bytes(&self) -> Vec<u8> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        // Every state of the ring is valid, also if another thread has panicked while it held the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Events for a reader that may be slow or absent.
pub(crate) struct EventQueue {
    sender: mpsc::Sender<VmEvent>,
    pending: VecDeque<Pending>,
    pending_console_bytes: usize,
    dropped_bytes: Arc<AtomicU64>,
}

enum Pending {
    Console { at: Duration, bytes: BytesMut },
    Other(VmEvent),
}

impl EventQueue {
    pub(crate) fn new(sender: mpsc::Sender<VmEvent>, dropped_bytes: Arc<AtomicU64>) -> Self {
        Self { sender, pending: VecDeque::new(), pending_console_bytes: 0, dropped_bytes }
    }

    /// Adds console bytes. Merges them with the last event if that is waiting console output too.
    pub(crate) fn push_console(&mut self, at: Duration, bytes: &[u8]) {
        match self.pending.back_mut() {
            Some(Pending::Console { bytes: waiting, .. }) if waiting.len() + bytes.len() <= EVENT_CONSOLE_BYTES_MAX => {
                waiting.extend_from_slice(bytes);
            }
            _ => self.pending.push_back(Pending::Console { at, bytes: bytes.into() }),
        }
        self.pending_console_bytes += bytes.len();
        self.flush();
        self.drop_excess();
    }

    /// Adds any other event.
    pub(crate) fn push(&mut self, event: VmEvent) {
        if self.pending.len() < PENDING_EVENTS_MAX {
            self.pending.push_back(Pending::Other(event));
        }
        self.flush();
    }

    pub(crate) fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Waits until the reader has room, or is gone. Safe to cancel.
    pub(crate) async fn room(&self) {
        // `flush` handles both results.
        drop(self.sender.reserve().await);
    }

    /// Sends as many events as the channel has room for.
    pub(crate) fn flush(&mut self) {
        while !self.pending.is_empty() {
            match self.sender.try_reserve() {
                Ok(permit) => {
                    let Some(next) = self.pending.pop_front() else { return };
                    permit.send(match next {
                        Pending::Console { at, bytes } => {
                            self.pending_console_bytes -= bytes.len();
                            VmEvent::Console { at, bytes: bytes.freeze() }
                        }
                        Pending::Other(event) => event,
                    });
                }
                Err(mpsc::error::TrySendError::Full(())) => return,
                Err(mpsc::error::TrySendError::Closed(())) => {
                    self.pending.clear();
                    self.pending_console_bytes = 0;
                }
            }
        }
    }

    /// Sends all remaining events. Returns when the reader has room for all, or is gone.
    pub(crate) async fn finish(mut self) {
        while self.is_waiting() {
            self.room().await;
            self.flush();
        }
    }

    fn drop_excess(&mut self) {
        let mut excess = self.pending_console_bytes.saturating_sub(PENDING_CONSOLE_BYTES_MAX);
        self.dropped_bytes.fetch_add(excess as u64, Ordering::Relaxed);
        self.pending_console_bytes -= excess;
        self.pending.retain_mut(|pending| match pending {
            Pending::Console { bytes, .. } => {
                let gone = excess.min(bytes.len());
                bytes.advance(gone);
                excess -= gone;
                !bytes.is_empty()
            }
            Pending::Other(_) => true,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> (EventQueue, mpsc::Receiver<VmEvent>, Arc<AtomicU64>) {
        let (sender, receiver) = mpsc::channel(EVENT_QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        (EventQueue::new(sender, Arc::clone(&dropped)), receiver, dropped)
    }

    fn console_bytes(receiver: &mut mpsc::Receiver<VmEvent>) -> Vec<u8> {
        let mut all = Vec::new();
        while let Ok(event) = receiver.try_recv() {
            if let VmEvent::Console { bytes, .. } = event {
                all.extend_from_slice(&bytes);
            }
        }
        all
    }

    #[test]
    fn an_unread_flood_is_bounded_and_counted() {
        let (mut queue, mut receiver, dropped) = queue();
        let chunk = [b'x'; 4096];
        let pushed = 10_000 * chunk.len() as u64;
        for _ in 0..10_000 {
            queue.push_console(Duration::ZERO, &chunk);
        }
        assert!(queue.pending_console_bytes <= PENDING_CONSOLE_BYTES_MAX);
        let mut kept = console_bytes(&mut receiver).len();
        while queue.is_waiting() {
            queue.flush();
            kept += console_bytes(&mut receiver).len();
        }
        assert_eq!(queue.pending_console_bytes, 0);
        assert_eq!(kept as u64 + dropped.load(Ordering::Relaxed), pushed);
    }

    #[test]
    fn a_slow_reader_gets_everything_in_order_and_merged() {
        let (mut queue, mut receiver, dropped) = queue();
        let mut pushed = Vec::new();
        for index in 0..1000_u32 {
            queue.push_console(Duration::ZERO, &index.to_be_bytes());
            pushed.extend_from_slice(&index.to_be_bytes());
        }
        queue.push(VmEvent::Paused);
        let mut read = console_bytes(&mut receiver);
        queue.flush();
        read.extend(console_bytes(&mut receiver));
        assert_eq!(read, pushed);
        assert!(!queue.is_waiting());
        assert_eq!(dropped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_reader_that_is_gone_leaves_nothing_waiting() {
        let (mut queue, receiver, _) = queue();
        drop(receiver);
        queue.push_console(Duration::ZERO, b"anyone?");
        queue.push(VmEvent::Paused);
        assert!(!queue.is_waiting());
    }

    #[test]
    fn the_ring_holds_the_last_lines() {
        let ring = ConsoleRing::default();
        for index in 0..20_000 {
            ring.push(format!("line {index}\r\n").as_bytes());
        }
        assert_eq!(ring.bytes().len(), CONSOLE_RING_BYTES);
        assert_eq!(ring.tail(2), ["line 19998", "line 19999"]);
        assert!(ring.contains(b"line 19997\r"));
        ring.push(&vec![b'y'; CONSOLE_RING_BYTES * 2]);
        assert_eq!(ring.tail(5), ["y".repeat(CONSOLE_RING_BYTES)]);
    }
}

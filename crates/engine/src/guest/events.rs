//! The events of a guest, in order and numbered: a bounded log with any number of readers.
//!
//! A writer never waits for a reader. If a reader is too slow, it gets the number of entries that it missed, and
//! continues with the oldest one left.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use kiln_detect::Finding;
use tokio::sync::watch;

use super::findings;
use crate::vm::VmExit;

/// Entries that a log keeps.
pub const EVENTS_MAX: usize = 4096;
/// Bytes of text that a log keeps.
pub const EVENTS_BYTES_MAX: usize = 1 << 20;
/// Size of an entry without its text.
const ENTRY_BYTES: usize = 96;

/// An event of a guest.
#[derive(Debug, Clone, PartialEq)]
pub enum GuestEvent {
    /// Its VMM runs.
    Started {
        /// The VMM's process.
        pid: u32,
    },
    /// A row of its console, without escape sequences and control characters.
    Console(String),
    /// Its kernel reported something, or the host found that the guest is over.
    Finding(Arc<Finding>),
    /// Its CPUs were paused.
    Paused,
    /// Its CPUs were resumed.
    Resumed,
    /// This host had no space for what it wrote to a disk, so it got an I/O error.
    NoSpace,
    /// It was saved, and its VM ended with that. It is restored when it is needed.
    Stopped,
    /// It has ended.
    Exited(VmExit),
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Counts up from 0, without gaps.
    pub number: u64,
    /// When the host saw it.
    pub time: SystemTime,
    /// What happened.
    pub event: GuestEvent,
}

/// A reader was too slow: entries that it had not read were removed from the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{missed} events were missed")]
pub struct Lagged {
    /// The number of missed entries.
    pub missed: u64,
}

/// The writer's end of a log. After it is dropped, readers read what is left and end.
#[derive(Debug)]
pub(super) struct EventLog {
    kept: Arc<Mutex<Kept>>,
    /// The number of the next entry.
    next: watch::Sender<u64>,
}

/// A reader's end of a log.
///
/// ```no_run
/// # async fn example(guest: kiln_engine::Guest) {
/// use kiln_engine::guest::GuestEvent;
///
/// let mut events = guest.watch().events();
/// while let Some(entry) = events.next().await {
///     match entry.map(|entry| entry.event) {
///         Ok(GuestEvent::Console(row)) => println!("{row}"),
///         Ok(GuestEvent::Finding(finding)) => println!("the kernel reported: {}", finding.title),
///         Ok(_) => {}
///         Err(lagged) => println!("too slow: {lagged}"),
///     }
/// }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Events {
    kept: Arc<Mutex<Kept>>,
    added: watch::Receiver<u64>,
    next: u64,
}

#[derive(Debug, Default)]
struct Kept {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { kept: Arc::default(), next: watch::channel(0).0 }
    }
}

impl EventLog {
    /// Adds an entry. If there is no room, removes the oldest ones.
    pub(super) fn push(&self, event: GuestEvent) {
        // The number is raised while the entries are locked. A reader that sees the new number and then locks the
        // entries finds the entry. In the other order it could find nothing, and return the end of the log to its
        // caller.
        let mut kept = lock(&self.kept);
        self.next.send_modify(|next| {
            kept.push(Entry { number: *next, time: SystemTime::now(), event });
            *next += 1;
        });
    }

    /// A reader of all entries from `number` on, or of all that are kept if that one was removed.
    pub(super) fn from(&self, number: u64) -> Events {
        Events { kept: Arc::clone(&self.kept), added: self.next.subscribe(), next: number }
    }

    /// The newest rows of the console in the log, oldest first.
    pub(super) fn last_rows(&self, count: usize) -> Vec<String> {
        let kept = lock(&self.kept);
        let rows = kept.entries.iter().rev().filter_map(|entry| match &entry.event {
            GuestEvent::Console(row) => Some(row.clone()),
            _ => None,
        });
        let mut rows: Vec<_> = rows.take(count).collect();
        rows.reverse();
        rows
    }

    /// The number of the oldest entry in the log.
    pub(super) fn oldest(&self) -> u64 {
        let kept = lock(&self.kept);
        kept.entries.front().map_or_else(|| self.next(), |entry| entry.number)
    }

    /// The number of the next entry.
    pub(super) fn next(&self) -> u64 {
        *self.next.borrow()
    }
}

impl Events {
    /// The next entry, or how many were missed before it. `None` once the guest is over and all was read. Safe to
    /// cancel.
    pub async fn next(&mut self) -> Option<Result<Entry, Lagged>> {
        let mine = self.next;
        // An error means that no entry will be added. Earlier entries are still read.
        let _ = self.added.wait_for(|next| *next > mine).await;
        self.read()
    }

    /// [`next`](Self::next) if there is one now.
    pub fn read(&mut self) -> Option<Result<Entry, Lagged>> {
        let kept = lock(&self.kept);
        let first = kept.entries.front()?.number;
        if let Some(missed) = first.checked_sub(self.next).filter(|missed| *missed > 0) {
            self.next = first;
            return Some(Err(Lagged { missed }));
        }
        let index = usize::try_from(self.next - first).ok()?;
        let entry = kept.entries.get(index)?.clone();
        self.next += 1;
        Some(Ok(entry))
    }
}

impl Kept {
    fn push(&mut self, entry: Entry) {
        self.bytes += bytes_of(&entry.event);
        self.entries.push_back(entry);
        while self.entries.len() > EVENTS_MAX || (self.bytes > EVENTS_BYTES_MAX && self.entries.len() > 1) {
            let oldest = self.entries.pop_front().expect("it holds more than one entry");
            self.bytes -= bytes_of(&oldest.event);
        }
    }
}

fn bytes_of(event: &GuestEvent) -> usize {
    let text = match event {
        GuestEvent::Console(row) => row.len(),
        GuestEvent::Finding(finding) => findings::bytes_of(finding),
        GuestEvent::Started { .. }
        | GuestEvent::Paused
        | GuestEvent::Resumed
        | GuestEvent::NoSpace
        | GuestEvent::Stopped
        | GuestEvent::Exited(_) => 0,
    };
    text + ENTRY_BYTES
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: usize) -> GuestEvent {
        GuestEvent::Console(format!("row {number}"))
    }

    #[tokio::test]
    async fn each_reader_gets_each_entry_in_order_and_then_the_end() {
        let log = EventLog::default();
        let mut readers = [log.from(0), log.from(0)];
        for number in 0..3 {
            log.push(row(number));
        }
        let mut late = log.from(2);
        drop(log);
        for reader in &mut readers {
            for number in 0..3 {
                let entry = reader.next().await.expect("it was added").expect("nothing was missed");
                assert_eq!((entry.number, entry.event), (number, row(usize::try_from(number).expect("small"))));
            }
            assert_eq!(reader.next().await, None);
        }
        assert_eq!(late.next().await.expect("it was added").map(|entry| entry.number), Ok(2));
        assert_eq!(late.next().await, None);
    }

    #[tokio::test]
    async fn a_reader_waits_for_the_next_entry() {
        let log = EventLog::default();
        let mut reader = log.from(0);
        let reading = tokio::spawn(async move { reader.next().await });
        tokio::task::yield_now().await;
        log.push(GuestEvent::Paused);
        let entry = reading.await.expect("it does not panic").expect("it was added").expect("nothing was missed");
        assert_eq!(entry.event, GuestEvent::Paused);
    }

    #[test]
    fn a_slow_reader_gets_the_number_of_missed_events_and_continues() {
        let log = EventLog::default();
        let mut reader = log.from(0);
        for number in 0..EVENTS_MAX + 10 {
            log.push(row(number));
        }
        assert_eq!(log.oldest(), 10);
        assert_eq!(reader.read(), Some(Err(Lagged { missed: 10 })));
        assert_eq!(reader.read().expect("it is kept").map(|entry| entry.event), Ok(row(10)));
    }

    #[test]
    fn long_rows_are_bounded_by_their_bytes() {
        let log = EventLog::default();
        let long = "x".repeat(4096);
        for _ in 0..EVENTS_MAX {
            log.push(GuestEvent::Console(long.clone()));
        }
        let kept = lock(&log.kept);
        assert!(kept.bytes <= EVENTS_BYTES_MAX, "{}", kept.bytes);
        assert_eq!(kept.bytes, kept.entries.iter().map(|entry| bytes_of(&entry.event)).sum::<usize>());
    }
}

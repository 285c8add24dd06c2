//! Frames that wait to be written to the agent.
//!
//! ```text
//!   Cancel, Credit, requests, … ─▶ control ─┐ (first)
//!   stdin, uploads, Eof ─────────▶ data ────┴▶ writer ▶ agent
//! ```
//!
//! Control frames overtake data, because a `Cancel` has to arrive while an upload fills the link, and credit that waits
//! behind data would stop the other direction meanwhile. `Eof` is not a control frame here. It ends the data of its
//! stream, so it stays behind that data.
//!
//! Control frames never wait for room, because the task that reads the link queues some of them, such as `Pong`. If
//! that task waited for an agent that does not read, it would not read either, and both sides would wait forever. So
//! the number of control frames is bounded in another way: the link ends at the bound, because an agent that leaves so
//! much unread reads nothing. Data waits for one of a few places, and only the task that sends it waits.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kiln_wire::Kind;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Notify, mpsc};

/// Control frames that may wait for an agent that does not read. One more ends the link.
const CONTROL_FRAMES_MAX: usize = 4096;
/// The bytes of these frames. This side chooses its requests, and some are long. What the agent can cause is bounded by
/// [`PONGS_MAX`] and by the data that it sends.
const CONTROL_BYTES_MAX: usize = 16 << 20;
/// Echoes that may wait. The agent requests them. If it requests more and does not read them, the link ends.
const PONGS_MAX: usize = 64;
/// Data frames that may wait. There are few places, so that streams take turns and `Cancel` is never far behind.
const DATA_FRAMES_MAX: usize = 4;
/// Control frames are joined into writes of about this size.
const CONTROL_WRITE_BYTES: usize = 64 << 10;
/// Offset of the kind in an encoded frame.
const KIND_AT: usize = 4;

/// The queue of one link, for its writers.
#[derive(Debug)]
pub(super) struct Outbox {
    control: Mutex<Control>,
    /// A control frame was queued.
    queued: Notify,
    data: mpsc::Sender<Vec<u8>>,
}

/// Data on its way to the writer.
pub(super) type DataFrames = mpsc::Receiver<Vec<u8>>;

#[derive(Debug, Default)]
struct Control {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    pongs: usize,
}

/// The agent leaves too much unread, so the link has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unread {
    #[error("the agent does not read: {0} frames wait")]
    Frames(usize),
    #[error("the agent requests echoes and does not read them: {PONGS_MAX} wait")]
    Pongs,
}

impl Outbox {
    pub(super) fn new() -> (Self, DataFrames) {
        let (data, frames) = mpsc::channel(DATA_FRAMES_MAX);
        (Self { control: Mutex::default(), queued: Notify::new(), data }, frames)
    }

    /// Queues a control frame.
    pub(super) fn control(&self, frame: Vec<u8>) -> Result<(), Unread> {
        let mut control = self.lock();
        if control.frames.len() == CONTROL_FRAMES_MAX || control.bytes + frame.len() > CONTROL_BYTES_MAX {
            return Err(Unread::Frames(control.frames.len()));
        }
        if is_pong(&frame) {
            if control.pongs == PONGS_MAX {
                return Err(Unread::Pongs);
            }
            control.pongs += 1;
        }
        control.bytes += frame.len();
        control.frames.push_back(frame);
        drop(control);
        self.queued.notify_one();
        Ok(())
    }

    /// Waits for a place, then queues a data frame or a frame that must not overtake data.
    ///
    /// # Errors
    /// The writer has ended.
    pub(super) async fn data(&self, frame: Vec<u8>) -> Result<(), ()> {
        self.data.send(frame).await.map_err(drop)
    }

    /// Writes what is queued until this is dropped or the stream breaks.
    pub(super) async fn write_to(&self, mut stream: OwnedWriteHalf, mut data: DataFrames) -> std::io::Error {
        loop {
            let mut bytes = tokio::select! {
                biased;
                frame = self.next_control() => frame,
                // `self` holds a sender, so the channel stays open.
                Some(frame) = data.recv() => frame,
            };
            while bytes.len() < CONTROL_WRITE_BYTES {
                let Some(frame) = self.lock().pop() else { break };
                bytes.extend_from_slice(&frame);
            }
            if let Err(error) = stream.write_all(&bytes).await {
                return error;
            }
        }
    }

    async fn next_control(&self) -> Vec<u8> {
        loop {
            if let Some(frame) = self.lock().pop() {
                return frame;
            }
            // `notify_one` stores a permit, so a frame that is queued between `pop` and the wait is not missed.
            self.queued.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control {
    fn pop(&mut self) -> Option<Vec<u8>> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        self.pongs -= usize::from(is_pong(&frame));
        Some(frame)
    }
}

fn is_pong(frame: &[u8]) -> bool {
    frame.get(KIND_AT) == Some(&Kind::PONG.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_wire::{Message, StreamId};

    fn frame(message: &Message<'_>) -> Vec<u8> {
        let mut frame = Vec::new();
        message.encode(StreamId::LINK, &mut frame).expect("it fits");
        frame
    }

    #[test]
    fn unread_control_frames_are_bounded() {
        let (outbox, _data) = Outbox::new();
        let taken = (0..).take_while(|_| outbox.control(frame(&Message::Cancel)).is_ok()).count();
        assert_eq!(taken, CONTROL_FRAMES_MAX);
        let (outbox, _data) = Outbox::new();
        let large = vec![0; 1 << 20];
        let taken = (0..).take_while(|_| outbox.control(large.clone()).is_ok()).count();
        assert_eq!(taken, CONTROL_BYTES_MAX >> 20);
    }

    #[test]
    fn few_echoes_wait_unread_and_each_that_is_written_makes_room() {
        let (outbox, _data) = Outbox::new();
        let pong = || outbox.control(frame(&Message::Pong(b"x")));
        assert_eq!((0..).take_while(|_| pong().is_ok()).count(), PONGS_MAX);
        assert_eq!(pong(), Err(Unread::Pongs));
        assert!(outbox.lock().pop().is_some());
        assert_eq!(pong(), Ok(()));
        assert_eq!(outbox.control(frame(&Message::Cancel)), Ok(()), "other frames have room of their own");
    }
}

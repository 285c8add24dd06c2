//! File requests of the protocol: connects streams to [`crate::files`], which blocks and does not depend on
//! streams.
//!
//! ```text
//!   host ─▶ inbox ─▶ chunks ─▶ a turn in the pool (write)
//!   host ◀─ outlet ◀─ frames ◀─ a turn in the pool (read), one turn ahead
//!   tar: a thread of its own for as long as the stream lasts, at most TAR_STREAMS_MAX
//! ```
//!
//! No thread of the pool waits for the host, so a host that stalls one stream stalls no other stream. Files in memory
//! are read and written without the pool, because such a turn is shorter than the switch to another thread and back.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kiln_wire::{Channel, Done, ErrorCode, Fault, FilesRequest, HEADER_BYTES, Message, Reply};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::files::{self, Answer, Append, AtomicWrite, Job, LeftOut, Packed, Reader, Unpacker};
use crate::link::{FRAME_BYTES, Gone, Outlet, Stream, cancelled};

/// Frames that one turn reads.
const READ_FRAMES: usize = 2;
/// Streams that may read one turn ahead, and so hold that turn's frames in addition to those that are queued.
const READ_AHEAD_STREAMS_MAX: usize = 16;
/// Archives at once. Each has a thread.
const TAR_STREAMS_MAX: usize = 16;
/// Chunks between an archive's thread and its stream.
const TAR_QUEUE_CHUNKS: usize = 4;
/// Stack of an archive's thread.
const TAR_STACK_BYTES: usize = 256 << 10;

static READ_AHEAD: Semaphore = Semaphore::const_new(READ_AHEAD_STREAMS_MAX);
static TAR_STREAMS: AtomicUsize = AtomicUsize::new(0);

/// Serves the stream to its end.
pub async fn serve(stream: Stream, request: FilesRequest) {
    let stop = Arc::new(AtomicBool::new(false));
    let result = tokio::select! {
        biased;
        end = stream.inbox.ended() => {
            stop.store(true, Ordering::Relaxed);
            Err(end.into_fault())
        }
        result = answer(&stream, request, &stop) => result,
    };
    match result {
        Ok(done) => stream.outlet.end(&Message::Done(done)),
        Err(fault) => stream.outlet.fail(fault),
    }
}

async fn answer(stream: &Stream, request: FilesRequest, stop: &Arc<AtomicBool>) -> Result<Done, Fault> {
    let stop = Arc::clone(stop);
    let outlet = &stream.outlet;
    match in_pool(move || files::start(&request, &stop)).await? {
        Job::Answered(Answer::Done) => Ok(Done::default()),
        Job::Answered(Answer::Stat(stat)) => reply(outlet, Reply::Stat(stat)).await.map(|()| Done::default()),
        Job::Answered(Answer::Page(page)) => reply(outlet, Reply::Page(page)).await.map(|()| Done::default()),
        Job::Read(reader) => read(outlet, reader).await,
        Job::Write(file) => write(stream, Target::Whole(file)).await,
        Job::Append(file) => write(stream, Target::End(file)).await,
        Job::Pack(packer) => pack(outlet, move |output| packer.write_to(output)).await,
        Job::PackChanges(packer) => pack(outlet, move |output| packer.write_to(output)).await,
        Job::Unpack(unpacker) => unpack(stream, unpacker).await,
    }
}

async fn reply(outlet: &Outlet, reply: Reply) -> Result<(), Fault> {
    outlet.send(&Message::Reply(Box::new(reply))).await.map_err(|Gone| cancelled())
}

/// Runs blocking work in a thread of the pool.
async fn in_pool<T: Send + 'static>(work: impl FnOnce() -> Result<T, Fault> + Send + 'static) -> Result<T, Fault> {
    let panicked = |error| Fault::new(ErrorCode::Internal, format!("the thread for a file request failed: {error}"));
    spawn_blocking(work).await.map_err(panicked)?
}

async fn read(outlet: &Outlet, reader: Reader) -> Result<Done, Fault> {
    reply(outlet, Reply::Stat(reader.stat().clone())).await?;
    // With a permit, the next turn reads while the frames of this one wait for the host.
    let quick = reader.is_quick();
    let ahead = if quick { None } else { READ_AHEAD.try_acquire().ok() };
    let mut bytes = 0;
    let mut turn = Turn::Idle(reader);
    let reader = loop {
        let panicked =
            |error| Fault::new(ErrorCode::Internal, format!("the thread for a file request failed: {error}"));
        let (reader, frames, at_end) = match turn {
            Turn::Running(running) => running.await.map_err(panicked)??,
            Turn::Idle(reader) => {
                // Waiting before the buffers are taken: a stalled stream without a permit holds no buffer.
                outlet.room().await.map_err(|Gone| cancelled())?;
                if quick {
                    fill(reader, spares(outlet))?
                } else {
                    start_turn(outlet, reader).await.map_err(panicked)??
                }
            }
        };
        turn = if at_end || ahead.is_none() { Turn::Idle(reader) } else { Turn::Running(start_turn(outlet, reader)) };
        for frame in frames {
            let count = frame.len() - HEADER_BYTES;
            outlet.room_for(count).await.map_err(|Gone| cancelled())?;
            outlet.whole(Channel::Out, frame);
            bytes += count as u64;
        }
        turn = match turn {
            Turn::Idle(reader) if at_end => break reader,
            turn => turn,
        };
    };
    outlet.send(&Message::Eof).await.map_err(|Gone| cancelled())?;
    Ok(Done { bytes, truncated: reader.truncated(), ..Done::default() })
}

enum Turn {
    Idle(Reader),
    Running(JoinHandle<Result<Filled, Fault>>),
}

fn start_turn(outlet: &Outlet, reader: Reader) -> JoinHandle<Result<Filled, Fault>> {
    let buffers = spares(outlet);
    spawn_blocking(move || fill(reader, buffers))
}

fn spares(outlet: &Outlet) -> Vec<Vec<u8>> {
    (0..READ_FRAMES).map(|_| outlet.spare()).collect()
}

type Filled = (Reader, Vec<Vec<u8>>, bool);

/// One turn: fills frames, with space for their headers, while there are bytes. Returns whether the end was reached.
fn fill(mut reader: Reader, mut buffers: Vec<Vec<u8>>) -> Result<Filled, Fault> {
    for index in 0..buffers.len() {
        let frame = &mut buffers[index];
        frame.resize(FRAME_BYTES, 0);
        let mut filled = HEADER_BYTES;
        while filled < FRAME_BYTES {
            // A read of lines may return less than the frame's space before the end, so only 0 is the end.
            match reader.fill(&mut frame[filled..])? {
                0 => {
                    frame.truncate(filled);
                    buffers.truncate(if filled == HEADER_BYTES { index } else { index + 1 });
                    return Ok((reader, buffers, true));
                }
                count => filled += count,
            }
        }
    }
    Ok((reader, buffers, false))
}

enum Target {
    Whole(AtomicWrite),
    End(Append),
}

impl Target {
    fn is_quick(&self) -> bool {
        match self {
            Self::Whole(file) => file.is_quick(),
            Self::End(file) => file.is_quick(),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        match self {
            Self::Whole(file) => file.write(bytes),
            Self::End(file) => file.write(bytes),
        }
    }

    fn commit(self) -> Result<u64, Fault> {
        match self {
            Self::Whole(file) => file.commit(),
            Self::End(file) => file.commit(),
        }
    }
}

async fn write(stream: &Stream, mut target: Target) -> Result<Done, Fault> {
    let quick = target.is_quick();
    loop {
        let (chunks, at_end) = stream.inbox.chunks().await;
        if quick && !at_end {
            chunks.iter().try_for_each(|chunk| target.write(chunk))?;
            continue;
        }
        let turn = move || {
            chunks.iter().try_for_each(|chunk| target.write(chunk))?;
            if at_end { target.commit().map(Err) } else { Ok(Ok(target)) }
        };
        match in_pool(turn).await? {
            Ok(same) => target = same,
            Err(bytes) => return Ok(Done { bytes, ..Done::default() }),
        }
    }
}

async fn pack(
    outlet: &Outlet,
    write: impl FnOnce(ChannelWriter) -> Result<Packed, Fault> + Send + 'static,
) -> Result<Done, Fault> {
    let (sender, mut chunks) = mpsc::channel(TAR_QUEUE_CHUNKS);
    let packed = on_thread(move || write(ChannelWriter { sender, frame: Vec::new() }))?;
    let mut bytes = 0;
    while let Some(frame) = chunks.recv().await {
        let count = frame.len() - HEADER_BYTES;
        outlet.room_for(count).await.map_err(|Gone| cancelled())?;
        outlet.whole(Channel::Out, frame);
        bytes += count as u64;
    }
    let packed = finished(packed).await?;
    outlet.send(&Message::Eof).await.map_err(|Gone| cancelled())?;
    let LeftOut { faults, more, .. } = packed.left_out;
    Ok(Done { bytes, entries: packed.entries, left_out: faults, left_out_more: more, ..Done::default() })
}

async fn unpack(stream: &Stream, unpacker: Unpacker) -> Result<Done, Fault> {
    let (sender, chunks) = mpsc::channel(TAR_QUEUE_CHUNKS);
    let unpacked = on_thread(move || unpacker.read_from(ChannelReader { chunks, rest: Vec::new(), at: 0 }))?;
    let mut unpacked = std::pin::pin!(finished(unpacked));
    let mut sender = Some(sender);
    loop {
        tokio::select! {
            biased;
            unpacked = &mut unpacked => {
                let unpacked = unpacked?;
                return Ok(Done { bytes: unpacked.bytes, entries: unpacked.entries, ..Done::default() });
            }
            sent = forward(stream, sender.as_ref()), if sender.is_some() => match sent {
                Forwarded::Chunk => {}
                Forwarded::End => {
                    if let Some(sender) = sender.take() {
                        // The end is sent as an empty chunk. A stream that breaks off closes the channel without one.
                        let _ = sender.send(Vec::new()).await;
                    }
                }
            },
        }
    }
}

enum Forwarded {
    Chunk,
    End,
}

async fn forward(stream: &Stream, sender: Option<&mpsc::Sender<Vec<u8>>>) -> Forwarded {
    let Some(sender) = sender else { return Forwarded::End };
    let Ok(permit) = sender.reserve().await else {
        // The thread has read the whole archive, or it is not an archive. The thread's result follows.
        return std::future::pending().await;
    };
    match stream.inbox.chunk().await {
        Some(chunk) => {
            permit.send(chunk);
            Forwarded::Chunk
        }
        None => Forwarded::End,
    }
}

/// Runs work that waits for the host on a thread of its own.
fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<oneshot::Receiver<Result<T, Fault>>, Fault> {
    if TAR_STREAMS.fetch_add(1, Ordering::Relaxed) >= TAR_STREAMS_MAX {
        TAR_STREAMS.fetch_sub(1, Ordering::Relaxed);
        return Err(Fault::new(ErrorCode::LimitExceeded, format!("more than {TAR_STREAMS_MAX} archives at once")));
    }
    let (sender, result) = oneshot::channel();
    let body = move || {
        // If the stream is gone, the result is not needed.
        let _ = sender.send(work());
        TAR_STREAMS.fetch_sub(1, Ordering::Relaxed);
    };
    let spawned = std::thread::Builder::new().name("archive".into()).stack_size(TAR_STACK_BYTES).spawn(body);
    spawned.map_err(|error| {
        TAR_STREAMS.fetch_sub(1, Ordering::Relaxed);
        Fault::new(ErrorCode::LimitExceeded, format!("can't start a thread for an archive: {error}"))
    })?;
    Ok(result)
}

async fn finished<T>(result: oneshot::Receiver<Result<T, Fault>>) -> Result<T, Fault> {
    result.await.unwrap_or_else(|_| Err(Fault::new(ErrorCode::Internal, "the archive's thread failed")))
}

/// Writes an archive into frames and sends them.
struct ChannelWriter {
    sender: mpsc::Sender<Vec<u8>>,
    frame: Vec<u8>,
}

impl ChannelWriter {
    fn send(&mut self) -> io::Result<()> {
        if self.frame.len() <= HEADER_BYTES {
            return Ok(());
        }
        let frame = std::mem::take(&mut self.frame);
        self.sender.blocking_send(frame).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.frame.is_empty() {
            self.frame.reserve_exact(FRAME_BYTES);
            self.frame.resize(HEADER_BYTES, 0);
        }
        let take = bytes.len().min(FRAME_BYTES - self.frame.len());
        self.frame.extend_from_slice(&bytes[..take]);
        if self.frame.len() == FRAME_BYTES {
            self.send()?;
        }
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl Drop for ChannelWriter {
    fn drop(&mut self) {
        // This fails if the stream is gone, and then the rest isn't needed.
        let _ = self.send();
    }
}

/// Reads an archive from the chunks of a channel. An empty chunk is its end. A channel that closes without one is an
/// error.
struct ChannelReader {
    chunks: mpsc::Receiver<Vec<u8>>,
    rest: Vec<u8>,
    at: usize,
}

impl Read for ChannelReader {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.at == self.rest.len() {
            self.rest = self.chunks.blocking_recv().ok_or(io::ErrorKind::ConnectionAborted)?;
            self.at = 0;
            if self.rest.is_empty() {
                // A further read returns an error instead of blocking forever.
                self.chunks.close();
                return Ok(0);
            }
        }
        let take = target.len().min(self.rest.len() - self.at);
        target[..take].copy_from_slice(&self.rest[self.at..self.at + take]);
        self.at += take;
        Ok(take)
    }
}

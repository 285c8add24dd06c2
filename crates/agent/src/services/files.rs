//! File requests of the protocol: the streams around [`files`](crate::files), which blocks and knows none.
//!
//! ```text
//!   host ─▶ inbox ─▶ chunks ─▶ a turn in the pool (write)
//!   host ◀─ outlet ◀─ frames ◀─ a turn in the pool (read), one turn ahead
//!   tar: a thread of its own for as long as the stream lasts, at most TAR_STREAMS_MAX
//! ```
//!
//! No thread of the pool ever waits for the host, so a host that stalls one stream stalls no other. Files in memory are
//! read and written without the pool: a turn is shorter than the way to another thread and back.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kiln_wire::{Channel, Done, ErrorCode, Fault, FilesRequest, HEADER_BYTES, Message, Reply};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::files::{self, Answer, Append, AtomicWrite, Job, LeftOut, Packer, Reader, Unpacker};
use crate::link::{FRAME_BYTES, Gone, Outlet, Stream, cancelled};

/// Frames that one turn reads.
const READ_FRAMES: usize = 2;
/// Reads that may hold a turn's frames beside those that are queued.
const READ_AHEAD_STREAMS_MAX: usize = 16;
/// Archives at once; each has a thread.
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
        Job::Pack(packer) => pack(outlet, packer).await,
        Job::Unpack(unpacker) => unpack(stream, unpacker).await,
    }
}

async fn reply(outlet: &Outlet, reply: Reply) -> Result<(), Fault> {
    outlet.send(&Message::Reply(Box::new(reply))).await.map_err(|Gone| cancelled())
}

/// Runs blocking work in a thread of the pool.
async fn in_pool<T: Send + 'static>(work: impl FnOnce() -> Result<T, Fault> + Send + 'static) -> Result<T, Fault> {
    let broke = |error| Fault::new(ErrorCode::Internal, format!("file work broke: {error}"));
    spawn_blocking(work).await.map_err(broke)?
}

async fn read(outlet: &Outlet, reader: Reader) -> Result<Done, Fault> {
    reply(outlet, Reply::Stat(reader.stat().clone())).await?;
    // With a permit the next turn reads while this one's frames wait for the host.
    let quick = reader.is_quick();
    let ahead = if quick { None } else { READ_AHEAD.try_acquire().ok() };
    let mut bytes = 0;
    let mut turn = Turn::Idle(reader);
    let reader = loop {
        let broke = |error| Fault::new(ErrorCode::Internal, format!("file work broke: {error}"));
        let (reader, frames, at_end) = match turn {
            Turn::Running(running) => running.await.map_err(broke)??,
            Turn::Idle(reader) => {
                // A stream that is stalled and has no permit holds no buffer.
                outlet.room().await.map_err(|Gone| cancelled())?;
                if quick {
                    fill(reader, spares(outlet))?
                } else {
                    start_turn(outlet, reader).await.map_err(broke)??
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

/// One turn: frames with room for their headers, as many as there are bytes for.
fn fill(mut reader: Reader, mut buffers: Vec<Vec<u8>>) -> Result<Filled, Fault> {
    for index in 0..buffers.len() {
        let frame = &mut buffers[index];
        frame.resize(FRAME_BYTES, 0);
        let mut filled = HEADER_BYTES;
        while filled < FRAME_BYTES {
            // A turn of lines brings what the lines have, so only nothing is the end.
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

async fn pack(outlet: &Outlet, packer: Packer) -> Result<Done, Fault> {
    let (sender, mut chunks) = mpsc::channel(TAR_QUEUE_CHUNKS);
    let packed = on_thread(move || packer.write_to(ChannelWriter { sender, frame: Vec::new() }))?;
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
            sent = pass_on(stream, sender.as_ref()), if sender.is_some() => match sent {
                Passed::Chunk => {}
                Passed::End => {
                    if let Some(sender) = sender.take() {
                        // The end is said, so that a stream that breaks off can't be taken for one.
                        let _ = sender.send(Vec::new()).await;
                    }
                }
            },
        }
    }
}

enum Passed {
    Chunk,
    End,
}

async fn pass_on(stream: &Stream, sender: Option<&mpsc::Sender<Vec<u8>>>) -> Passed {
    let Some(sender) = sender else { return Passed::End };
    let Ok(permit) = sender.reserve().await else {
        // The archive was read to its end, or is no archive: its thread says which.
        return std::future::pending().await;
    };
    match stream.inbox.chunk().await {
        Some(chunk) => {
            permit.send(chunk);
            Passed::Chunk
        }
        None => Passed::End,
    }
}

/// Runs work that waits for the host in a thread of its own.
fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<oneshot::Receiver<Result<T, Fault>>, Fault> {
    if TAR_STREAMS.fetch_add(1, Ordering::Relaxed) >= TAR_STREAMS_MAX {
        TAR_STREAMS.fetch_sub(1, Ordering::Relaxed);
        return Err(Fault::new(ErrorCode::LimitExceeded, format!("more than {TAR_STREAMS_MAX} archives at once")));
    }
    let (sender, result) = oneshot::channel();
    let body = move || {
        // A stream that is gone wants no result.
        let _ = sender.send(work());
        TAR_STREAMS.fetch_sub(1, Ordering::Relaxed);
    };
    let spawned = std::thread::Builder::new().name("archive".into()).stack_size(TAR_STACK_BYTES).spawn(body);
    spawned.map_err(|error| {
        TAR_STREAMS.fetch_sub(1, Ordering::Relaxed);
        Fault::new(ErrorCode::LimitExceeded, format!("no thread for an archive: {error}"))
    })?;
    Ok(result)
}

async fn finished<T>(result: oneshot::Receiver<Result<T, Fault>>) -> Result<T, Fault> {
    result.await.unwrap_or_else(|_| Err(Fault::new(ErrorCode::Internal, "the archive's thread broke")))
}

/// Gathers an archive into frames.
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
        // The rest of an archive whose stream is gone is nobody's.
        let _ = self.send();
    }
}

/// Hands out an archive as it comes. An empty chunk is its end; a channel that closes without one is an error.
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
                // Asked again, the end is still the end.
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

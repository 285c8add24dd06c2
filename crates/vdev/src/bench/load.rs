//! A disk under load: a constant number of requests in flight in every queue, until the time is over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::histogram::Histogram;
use super::options::{BenchError, Pattern};
use super::report::{Latency, LoadReport};
use crate::frontend::blk::{BlkDriver, BlkQueue, BlkRequest, BlkStatus, Done, Slot};
use crate::random::Random;

/// What a disk has to do.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// What is done.
    pub pattern: Pattern,
    /// Bytes of each request, whole sectors.
    pub block_bytes: u32,
    /// Requests under way in each queue.
    pub depth: u16,
    /// How long it counts.
    pub time: Duration,
    /// How long the disk is under load before that.
    pub warm_up: Duration,
    /// Where offsets come from.
    pub seed: u64,
}

/// Puts a disk under load, with a thread for each of its queues. It ends early when `stop` is set; what completed
/// until then counts.
///
/// # Errors
/// If this disk does not support the load, or the device fails a request or breaks the protocol.
pub fn run_load(driver: &mut BlkDriver, load: &Load, stop: &AtomicBool) -> Result<LoadReport, BenchError> {
    let config = *driver.config();
    let Load { pattern, block_bytes, depth, .. } = *load;
    if pattern.writes() && config.read_only {
        return Err(BenchError::ReadOnly { pattern });
    }
    if let Some(device_bytes) = config.block_bytes
        && !block_bytes.is_multiple_of(device_bytes.max(1))
    {
        return Err(BenchError::DeviceBlocks { bytes: block_bytes, device_bytes });
    }
    let queues = driver.queues_mut();
    let sectors = u64::from(block_bytes / 512);
    let blocks = config.capacity.checked_div(sectors).unwrap_or(0) / queues.len() as u64;
    if blocks == 0 {
        return Err(BenchError::TooSmall { capacity: config.capacity.saturating_mul(512), bytes: block_bytes });
    }
    let begin = Instant::now() + load.warm_up;
    // One that fails stops the others, too: the report would be of another load.
    let failed = AtomicBool::new(false);
    let worker = |queue| Worker {
        load,
        queue,
        begin,
        end: begin + load.time,
        stop: [stop, &failed],
        blocks,
        at: 0,
        random: Random::new(0),
        submitted: vec![begin; usize::from(depth)],
        seen: Seen::default(),
    };
    let results: Vec<Result<Seen, BenchError>> = match queues {
        // One queue needs no thread of its own.
        [queue] => vec![worker(queue).run()],
        queues => std::thread::scope(|scope| {
            let threads: Vec<_> = queues
                .iter_mut()
                .map(|queue| std::thread::Builder::new().spawn_scoped(scope, || worker(queue).run()))
                .collect();
            threads
                .into_iter()
                .map(|thread| match thread {
                    Ok(thread) => thread.join().expect("a load does not panic"),
                    Err(source) => {
                        failed.store(true, Ordering::Relaxed);
                        Err(BenchError::Thread(source))
                    }
                })
                .collect()
        }),
    };
    let queues = u32::try_from(results.len()).unwrap_or(u32::MAX);
    let mut seen = Seen::default();
    for result in results {
        seen.add(&result?);
    }
    let seconds = begin.elapsed().min(load.time).as_secs_f64().max(f64::EPSILON);
    let requests = seen.latency.count();
    let iops = requests as f64 / seconds;
    Ok(LoadReport {
        pattern,
        block_bytes,
        depth,
        queues,
        seconds,
        requests,
        writes: seen.writes,
        short: seen.short,
        iops,
        bytes_per_second: iops * f64::from(block_bytes),
        latency: Latency::from(&seen.latency),
    })
}

#[derive(Default)]
struct Seen {
    latency: Histogram,
    writes: u64,
    short: u64,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.latency.merge(&other.latency);
        self.writes += other.writes;
        self.short += other.short;
    }
}

/// One queue's part of a load.
struct Worker<'a> {
    load: &'a Load,
    queue: &'a mut BlkQueue,
    begin: Instant,
    end: Instant,
    stop: [&'a AtomicBool; 2],
    /// Blocks that are this queue's.
    blocks: u64,
    /// The next one, if they are taken in order.
    at: u64,
    random: Random,
    /// When the request in each slot was submitted.
    submitted: Vec<Instant>,
    seen: Seen,
}

impl Worker<'_> {
    fn run(mut self) -> Result<Seen, BenchError> {
        self.random = Random::part(self.load.seed, self.queue.index().into());
        let done = self.work();
        if done.is_err() {
            self.stop[1].store(true, Ordering::Relaxed);
        }
        done.map(|()| self.seen)
    }

    fn work(&mut self) -> Result<(), BenchError> {
        let max = self.queue.depth();
        let depth = self.load.depth;
        if depth == 0 || depth > max {
            return Err(BenchError::Depth { depth, max });
        }
        self.submitted.resize(usize::from(max), self.begin);
        for _ in 0..depth {
            let slot = self.queue.reserve().expect("nothing else is under way");
            self.fill(slot);
            self.submit(slot)?;
        }
        self.queue.publish()?;
        loop {
            let done = self.queue.next_done()?;
            let mut now = Instant::now();
            let mut next = Some(done);
            while let Some(done) = next {
                self.count(&done, now)?;
                self.submit_at(done.slot, now)?;
                next = self.queue.poll()?;
            }
            self.queue.publish()?;
            now = Instant::now();
            if now >= self.end || self.stop.iter().any(|stop| stop.load(Ordering::Relaxed)) {
                break;
            }
        }
        while self.queue.outstanding() > 0 {
            let done = self.queue.next_done()?;
            self.count(&done, Instant::now())?;
            self.queue.release(done.slot);
        }
        Ok(())
    }

    fn submit(&mut self, slot: Slot) -> Result<(), BenchError> {
        self.submit_at(slot, Instant::now())
    }

    fn submit_at(&mut self, slot: Slot, now: Instant) -> Result<(), BenchError> {
        let pattern = self.load.pattern;
        let block = if pattern.is_random() {
            self.random.below(self.blocks)
        } else {
            self.at = (self.at + 1) % self.blocks;
            self.at
        };
        let bytes = self.load.block_bytes;
        let first = u64::from(self.queue.index()) * self.blocks;
        let sector = (first + block) * u64::from(bytes / 512);
        let writes = match pattern {
            Pattern::Write | Pattern::RandWrite => true,
            Pattern::Read | Pattern::RandRead => false,
            Pattern::RandRw => self.random.number() & 1 == 1,
        };
        if writes && pattern == Pattern::RandRw {
            // What was read into the slot last may be zeroes.
            self.fill(slot);
        }
        let request = if writes { BlkRequest::Write { sector, bytes } } else { BlkRequest::Read { sector, bytes } };
        self.submitted[slot.index()] = now;
        Ok(self.queue.submit(slot, request)?)
    }

    /// What is written: numbers, so that no backend takes it for zeroes.
    fn fill(&mut self, slot: Slot) {
        if !self.load.pattern.writes() {
            return;
        }
        let data = self.queue.data(slot);
        for at in (0..self.load.block_bytes as usize).step_by(8) {
            data.subslice(at, 8).expect("whole sectors").copy_from(&self.random.number().to_le_bytes());
        }
    }

    fn count(&mut self, done: &Done, now: Instant) -> Result<(), BenchError> {
        let (sector, writes) = match done.request {
            BlkRequest::Write { sector, .. } => (sector, true),
            BlkRequest::Read { sector, .. } => (sector, false),
            _ => unreachable!("only reads and writes are submitted"),
        };
        if done.status != BlkStatus::Ok {
            let (request, status) = (done.request.name(), done.status.name());
            return Err(BenchError::Status { request, sector, status });
        }
        if now >= self.begin && now <= self.end {
            self.seen.latency.record(now - self.submitted[done.slot.index()]);
            self.seen.writes += u64::from(writes);
            self.seen.short += u64::from(done.is_short());
        }
        Ok(())
    }
}

//! A load of numbered blocks, past all caches of the guest.
//!
//! ```text
//!   thread 0 ─ blocks 0, 4, 8 …  ┐  in an order of its own: write one, read back one that was written, one that is yet to be
//!   thread 3 ─ blocks 3, 7, 11 … ┘  (here with a depth of 4)
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::pattern::{BLOCK_BYTES, check_block, fill_block};

/// How often the first thread reports its progress, in each pass.
pub const TOLD_IN_A_PASS: u64 = 4;
/// Odd, so that it visits every block of a power of two once.
const STRIDE: u64 = 2_654_435_761;

/// What a load has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Blocks written.
    pub writes: u64,
    /// Blocks read back and found right.
    pub reads: u64,
    /// The longest that one of them took.
    pub longest: Duration,
}

/// Writes `blocks` blocks in each of `passes` passes, with `depth` requests in flight. Both are powers of two. Calls
/// `report` to report progress.
///
/// # Errors
/// The first error of the device, and the first block that is not what was written last.
pub fn load(
    device: &Path,
    blocks: u64,
    passes: u64,
    depth: u64,
    report: &(dyn Fn(u64, u64) + Sync),
) -> io::Result<Done> {
    if !blocks.is_power_of_two() || !depth.is_power_of_two() || blocks < depth {
        return Err(io::Error::other(format!("{blocks} blocks and a depth of {depth} are no powers of two")));
    }
    let file = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(device)?;
    let mut done = Done::default();
    std::thread::scope(|scope| {
        let stripe =
            |thread| Stripe { file: &file, thread, threads: depth, blocks: blocks / depth, done: Done::default() };
        let start = |thread| scope.spawn(move || stripe(thread).run(passes, report));
        let threads: Vec<_> = (0..depth).map(start).collect();
        for thread in threads {
            let one = thread.join().expect("a thread reports its errors")?;
            done.writes += one.writes;
            done.reads += one.reads;
            done.longest = done.longest.max(one.longest);
        }
        Ok::<_, io::Error>(())
    })?;
    file.sync_all()?;
    Ok(done)
}

struct Stripe<'a> {
    file: &'a File,
    thread: u64,
    threads: u64,
    blocks: u64,
    done: Done,
}

impl Stripe<'_> {
    fn run(mut self, passes: u64, report: &(dyn Fn(u64, u64) + Sync)) -> io::Result<Done> {
        // Without the cache, the kernel requires buffers that are aligned to a block.
        let mut room = vec![0; 2 * BLOCK_BYTES];
        let at = room.as_ptr().align_offset(BLOCK_BYTES);
        let block = &mut room[at..at + BLOCK_BYTES];
        for pass in 1..=passes {
            for step in 0..self.blocks {
                if self.thread == 0 && step % (self.blocks / TOLD_IN_A_PASS).max(1) == 0 {
                    report(pass, step);
                }
                self.write(block, step, pass)?;
                self.read(block, step.wrapping_mul(STRIDE) % (step + 1), pass)?;
                if step + 1 < self.blocks {
                    self.read(block, step + 1, pass - 1)?;
                }
            }
        }
        Ok(self.done)
    }

    fn write(&mut self, block: &mut [u8], step: u64, pass: u64) -> io::Result<()> {
        let (number, since) = (self.number(step), Instant::now());
        fill_block(block, number, pass);
        self.file.write_all_at(block, number * BLOCK_BYTES as u64)?;
        self.done.writes += 1;
        self.done.longest = self.done.longest.max(since.elapsed());
        Ok(())
    }

    fn read(&mut self, block: &mut [u8], step: u64, pass: u64) -> io::Result<()> {
        let (number, since) = (self.number(step), Instant::now());
        self.file.read_exact_at(block, number * BLOCK_BYTES as u64)?;
        check_block(block, number, pass).map_err(io::Error::other)?;
        self.done.reads += 1;
        self.done.longest = self.done.longest.max(since.elapsed());
        Ok(())
    }

    fn number(&self, step: u64) -> u64 {
        (step.wrapping_mul(STRIDE) % self.blocks) * self.threads + self.thread
    }
}

//! The agent's log: its last lines in a bounded ring in memory, which `Logs{agent}` reads.
//!
//! PID 1 also writes each line to the kernel's log, at most `KMSG_BURST` lines per `KMSG_PERIOD`, so that a guest
//! that provokes messages can't flood the console.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lines that are kept.
const RING_LINES: usize = 256;
/// Longer lines are cut.
const LINE_BYTES_MAX: usize = 512;
/// Lines to the kernel's log per period.
const KMSG_BURST: u32 = 20;
/// The period of `KMSG_BURST`.
const KMSG_PERIOD: Duration = Duration::from_secs(10);

static LOG: Mutex<Log> = Mutex::new(Log { lines: VecDeque::new(), first: 0, kmsg: None });

struct Log {
    lines: VecDeque<String>,
    /// Number of the oldest line that is kept.
    first: u64,
    kmsg: Option<Kmsg>,
}

struct Kmsg {
    file: File,
    period_start: Instant,
    lines_in_period: u32,
}

/// Adds a line.
pub fn note(mut line: String) {
    if line.len() > LINE_BYTES_MAX {
        let end = (0..=LINE_BYTES_MAX).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        line.truncate(end);
    }
    let mut log = lock();
    if let Some(kmsg) = &mut log.kmsg {
        kmsg.write(&line);
    }
    if log.lines.len() == RING_LINES {
        log.lines.pop_front();
        log.first += 1;
    }
    log.lines.push_back(line);
}

/// Writes lines also to the kernel's log from now on.
pub fn also_to_kernel(file: File) {
    lock().kmsg = Some(Kmsg { file, period_start: Instant::now(), lines_in_period: 0 });
}

/// The kept lines from number `from` on, each with an end of line, and the number of the next line.
pub fn lines_since(from: u64) -> (String, u64) {
    let log = lock();
    let skip = usize::try_from(from.saturating_sub(log.first)).unwrap_or(usize::MAX);
    let mut text = String::new();
    for line in log.lines.iter().skip(skip) {
        text.push_str(line);
        text.push('\n');
    }
    (text, log.first + log.lines.len() as u64)
}

fn lock() -> MutexGuard<'static, Log> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kmsg {
    fn write(&mut self, line: &str) {
        if self.period_start.elapsed() >= KMSG_PERIOD {
            self.period_start = Instant::now();
            self.lines_in_period = 0;
        }
        self.lines_in_period += 1;
        if self.lines_in_period <= KMSG_BURST {
            // Priority 30 is facility daemon, level info. A failure can't be reported anywhere.
            let _ = self.file.write_all(format!("<30>kiln-agent: {line}\n").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_lines_and_a_reader_continues_where_it_stopped() {
        let (_, start) = lines_since(u64::MAX);
        for index in 0..RING_LINES + 10 {
            note(format!("ring test {index}"));
        }
        let (text, next) = lines_since(start);
        assert!(text.lines().count() <= RING_LINES);
        assert!(text.ends_with(&format!("ring test {}\n", RING_LINES + 9)), "{text}");
        note("é".repeat(LINE_BYTES_MAX));
        let (text, _) = lines_since(next);
        assert!(text.len() <= LINE_BYTES_MAX + 1, "{}", text.len());
    }
}

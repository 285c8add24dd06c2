//! Measures the scanner on a folder of logs with known outcomes.
//!
//! `cargo run -p kiln-detect --release --example measure -- DIR [--misses]`
//!
//! Each `*.txt` begins with headers up to the first empty line; the log follows. Headers are `TITLE:` with the expected
//! title (without a title, nothing must be found), `ALT:` with titles that are as good, `TYPE:` and `CORRUPTED: Y`. The
//! log ends before a `REPORT:` line.
//!
//! The logs are in two halves by a hash of their names, and the score of each is printed. Rules are made with the first
//! half, whose misses `--misses` prints. The second half shows whether a rule fits more than the logs that it was made
//! with.

use std::error::Error;
use std::hint::black_box;
use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_detect::{CrashType, Finding, SavedLog};

/// Bytes that are scanned to measure the speed.
const SPEED_BYTES: usize = 64 << 20;
const READ_BYTES: usize = 64 << 10;

#[derive(Default)]
struct Expected {
    titles: Vec<String>,
    crash_type: String,
    corrupted: bool,
}

#[derive(Clone, Copy, Default)]
struct Score {
    crashes: usize,
    found: usize,
    titled: usize,
    typed: usize,
    alternatives_alike: usize,
    corrupted_alike: usize,
    clean: usize,
    false_alarms: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("usage: measure DIR [--misses]")?);
    let show_misses = arguments.any(|argument| argument == "--misses");

    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();

    let mut halves = [Score::default(); 2];
    let mut logs = Vec::new();
    for path in &paths {
        let (expected, log) = read(&std::fs::read(path)?);
        let half = half(path);
        let misses = halves[half].count(&expected, &scan(&log));
        if show_misses && (half == 0 || expected.titles.is_empty()) {
            misses.iter().for_each(|miss| println!("{}: {miss}", path.display()));
        }
        logs.push(log);
    }
    for (name, score) in [("first half", halves[0]), ("second half", halves[1]), ("all", halves[0].plus(halves[1]))] {
        println!("{name}");
        score.print();
    }
    print_speed("logs full of reports", &logs.concat());
    print_speed("ordinary lines", &ordinary());
    Ok(())
}

/// The half that a log belongs to: FNV-1a of its name.
fn half(path: &Path) -> usize {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let hash = name
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    usize::from(hash >> 32 & 1 == 1)
}

impl Score {
    /// Counts one log. Returns how the findings differ from the expected ones.
    fn count(&mut self, expected: &Expected, findings: &[Finding]) -> Vec<String> {
        let first = findings.first();
        let Some(title) = expected.titles.first() else {
            self.clean += 1;
            self.false_alarms += usize::from(first.is_some());
            return first.map(|finding| format!("false alarm `{}`", finding.title)).into_iter().collect();
        };
        self.crashes += 1;
        let Some(finding) = first else { return vec![format!("missed `{title}`")] };
        self.found += 1;
        let mut misses = Vec::new();
        let mut score = |count: &mut usize, is_alike: bool, miss: String| {
            *count += usize::from(is_alike);
            if !is_alike {
                misses.push(miss);
            }
        };
        let is_titled = expected.titles.contains(&finding.title);
        score(&mut self.titled, is_titled, format!("titled `{}` instead of `{title}`", finding.title));
        // A head without a type means that none fits.
        let is_typed = match finding.crash_type {
            CrashType::Unknown => expected.crash_type.is_empty(),
            known => known.name() == expected.crash_type,
        };
        score(&mut self.typed, is_typed, format!("typed {} instead of `{}`", finding.crash_type, expected.crash_type));
        let has_all = expected.titles[1..].iter().all(|title| finding.alternatives.contains(title));
        let alternatives = format!("alternatives {:?} instead of {:?}", finding.alternatives, &expected.titles[1..]);
        score(&mut self.alternatives_alike, has_all, alternatives);
        let is_corrupted = finding.corrupted == expected.corrupted;
        score(&mut self.corrupted_alike, is_corrupted, format!("corrupted is {} for `{title}`", finding.corrupted));
        misses
    }

    fn plus(self, other: Self) -> Self {
        Self {
            crashes: self.crashes + other.crashes,
            found: self.found + other.found,
            titled: self.titled + other.titled,
            typed: self.typed + other.typed,
            alternatives_alike: self.alternatives_alike + other.alternatives_alike,
            corrupted_alike: self.corrupted_alike + other.corrupted_alike,
            clean: self.clean + other.clean,
            false_alarms: self.false_alarms + other.false_alarms,
        }
    }

    fn print(&self) {
        let line = |name: &str, part: usize| {
            let percent = 100.0 * part as f64 / self.crashes.max(1) as f64;
            println!("  {name:<20} {part}/{} ({percent:.1} %)", self.crashes);
        };
        line("found", self.found);
        line("title equal", self.titled);
        line("type equal", self.typed);
        line("alternatives known", self.alternatives_alike);
        line("corrupted equal", self.corrupted_alike);
        println!("  {:<20} {}/{}", "false alarms", self.false_alarms, self.clean);
    }
}

/// Splits a file into the expected finding and the log.
fn read(file: &[u8]) -> (Expected, Vec<u8>) {
    let header_end = file.windows(2).position(|pair| pair == b"\n\n").map_or(file.len(), |end| end + 2);
    // A file without headers begins with the empty line.
    let header_end = if file.starts_with(b"\n") { 1 } else { header_end };
    let mut expected = Expected::default();
    for line in String::from_utf8_lossy(&file[..header_end]).lines() {
        match line.split_once(':').map(|(key, value)| (key, value.trim())) {
            Some(("TITLE" | "ALT", title)) if !title.is_empty() => expected.titles.push(title.to_owned()),
            Some(("TYPE", name)) => name.clone_into(&mut expected.crash_type),
            Some(("CORRUPTED", value)) => expected.corrupted = value == "Y",
            _ => {}
        }
    }
    let log = &file[header_end..];
    let report = b"\nREPORT:";
    let end = log.windows(report.len()).position(|window| window == report).unwrap_or(log.len());
    (expected, log[..end].to_vec())
}

fn scan(log: &[u8]) -> Vec<Finding> {
    let mut saved = SavedLog::new();
    let mut findings = saved.push(log);
    findings.extend(saved.finish());
    findings.sort_by_key(|finding| finding.row);
    findings
}

/// Rows of a kernel without errors.
fn ordinary() -> Vec<u8> {
    const ROWS: [&str; 4] = [
        "usb 1-1: new high-speed USB device number 7 using xhci_hcd",
        "EXT4-fs (vda1): mounted filesystem with ordered data mode. Quota mode: none.",
        "pci 0000:00:1f.2: reg 0x20: [io  0xc040-0xc05f]",
        "br0: port 1(veth0) entered forwarding state",
    ];
    let rows =
        (0..10_000).map(|row| format!("[{:5}.{:06}] {}\n", row / 100, row % 100 * 10_000, ROWS[row % ROWS.len()]));
    rows.collect::<String>().into_bytes()
}

/// Prints how fast `log` is scanned, and the ratio to the standard library reading its lines.
fn print_speed(name: &str, log: &[u8]) {
    let rounds = if cfg!(debug_assertions) { 1 } else { (SPEED_BYTES / log.len()).max(1) };
    let (mut scanning, mut reading) = (Vec::new(), Vec::new());
    // In turns, so that a busy moment of the host affects both.
    for _ in 0..rounds {
        let begun = Instant::now();
        let mut saved = SavedLog::new();
        let mut findings = 0;
        for piece in log.chunks(READ_BYTES) {
            findings += saved.push(piece).len();
        }
        black_box(findings + saved.finish().len());
        scanning.push(begun.elapsed());
        let begun = Instant::now();
        for line in log.lines() {
            // A few logs have lines that are not UTF-8.
            black_box(line.is_ok());
        }
        reading.push(begun.elapsed());
    }
    let rates = |spent: &mut Vec<Duration>| {
        spent.sort_unstable();
        [spent[0], spent[spent.len() / 2]].map(|spent| log.len() as f64 / 1e6 / spent.as_secs_f64())
    };
    let ([best, median], [_, floor]) = (rates(&mut scanning), rates(&mut reading));
    let ratio = 100.0 * median / floor;
    println!("{name}: median {median:.0} MB/s ({ratio:.0} % of reading lines), best round {best:.0} MB/s");
}

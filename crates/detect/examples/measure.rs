//! Measures the scanner on a folder of logs with known outcomes.
//!
//! `cargo run -p kiln-detect --release --example measure -- DIR [--misses]`
//!
//! Each `*.txt` begins with headers up to the first empty line; the log follows. Headers are `TITLE:` with the expected
//! title (without a title, nothing must be found), `ALT:` with titles that are as good, and `CORRUPTED: Y`. The log
//! ends before a `REPORT:` line.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kiln_detect::{ConsoleLine, Finding, Lines, Scanner};

#[derive(Default)]
struct Expected {
    titles: Vec<String>,
    corrupted: bool,
}

#[derive(Default)]
struct Score {
    crashes: usize,
    found: usize,
    titled: usize,
    corrupted_alike: usize,
    clean: usize,
    false_alarms: usize,
    bytes: usize,
    spent: Duration,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("usage: measure DIR [--misses]")?);
    let show_misses = arguments.any(|argument| argument == "--misses");

    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();

    let mut score = Score::default();
    for path in &paths {
        let (expected, log) = read(&std::fs::read(path)?);
        let begun = Instant::now();
        let findings = scan(&log);
        score.spent += begun.elapsed();
        score.bytes += log.len();
        let miss = score.count(&expected, &findings);
        if let Some(miss) = miss.filter(|_| show_misses) {
            println!("{}: {miss}", path.display());
        }
    }
    score.print(paths.len());
    Ok(())
}

impl Score {
    /// Counts one log. Returns how the findings differ from the expected ones, if they do.
    fn count(&mut self, expected: &Expected, findings: &[Finding]) -> Option<String> {
        let first = findings.first();
        let Some(title) = expected.titles.first() else {
            self.clean += 1;
            self.false_alarms += usize::from(first.is_some());
            return first.map(|finding| format!("false alarm `{}`", finding.title));
        };
        self.crashes += 1;
        let Some(finding) = first else { return Some(format!("missed `{title}`")) };
        self.found += 1;
        let alike = finding.corrupted == expected.corrupted;
        self.corrupted_alike += usize::from(alike);
        if expected.titles.contains(&finding.title) {
            self.titled += 1;
            (!alike).then(|| format!("corrupted is {} for `{title}`", finding.corrupted))
        } else {
            Some(format!("titled `{}` instead of `{title}`", finding.title))
        }
    }

    fn print(&self, logs: usize) {
        let percent = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
        println!("logs            {logs}");
        println!("found           {}/{} ({:.1} %)", self.found, self.crashes, percent(self.found, self.crashes));
        println!("false alarms    {}/{}", self.false_alarms, self.clean);
        println!("title equal     {}/{} ({:.1} %)", self.titled, self.crashes, percent(self.titled, self.crashes));
        println!(
            "corrupted equal {}/{} ({:.1} %)",
            self.corrupted_alike,
            self.crashes,
            percent(self.corrupted_alike, self.crashes)
        );
        println!("speed           {:.1} MB/s", self.bytes as f64 / 1e6 / self.spent.as_secs_f64());
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
    let mut lines = Lines::new();
    let mut rows = lines.push(log);
    rows.extend(lines.finish());
    let mut scanner = Scanner::new();
    let mut findings = Vec::new();
    let mut before = Duration::ZERO;
    for text in rows {
        let row = ConsoleLine::saved(text, before);
        before = row.at;
        findings.extend(scanner.push(&row));
    }
    findings.extend(scanner.finish());
    findings.sort_by_key(|finding| finding.at);
    findings
}

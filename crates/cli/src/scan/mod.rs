//! `kiln scan`: the detectors of `kiln run` and the lab, on a saved log.

use std::io::Read;
use std::time::Duration;

use kiln_detect::{ConsoleLine, Finding, Lines, Scanner, Severity};
use owo_colors::OwoColorize as _;

use crate::args::ScanArgs;
use crate::failure::Failure;
use crate::output::{print, print_json};

/// Something was found.
const FOUND: u8 = 100;
const READ_BYTES: usize = 64 << 10;

/// Scans a log and lists what it holds.
pub fn run(args: &ScanArgs) -> Result<u8, Failure> {
    let findings = if args.log == "-" { scan(std::io::stdin().lock())? } else { scan(fs_err::File::open(&args.log)?)? };
    if args.json {
        print_json(&findings)?;
    } else {
        show(&findings)?;
    }
    let bad = findings.iter().any(|finding| finding.severity != Severity::Warning);
    Ok(if bad { FOUND } else { 0 })
}

fn scan(mut log: impl Read) -> std::io::Result<Vec<Finding>> {
    let (mut lines, mut scanner, mut findings) = (Lines::new(), Scanner::new(), Vec::new());
    let (mut buffer, mut last) = (vec![0; READ_BYTES], Duration::ZERO);
    loop {
        let count = log.read(&mut buffer)?;
        let ended = if count == 0 { lines.finish() } else { None };
        for text in lines.push(&buffer[..count]).into_iter().chain(ended) {
            let line = ConsoleLine::saved(text, last);
            last = line.at;
            findings.extend(scanner.push(&line));
        }
        if count == 0 {
            findings.extend(scanner.finish());
            return Ok(findings);
        }
    }
}

fn show(findings: &[Finding]) -> anyhow::Result<()> {
    for finding in findings {
        print(finding.title.bold())?;
        for line in &finding.extract {
            print(format_args!("    {line}"))?;
        }
    }
    if findings.is_empty() { print("nothing found") } else { Ok(()) }
}

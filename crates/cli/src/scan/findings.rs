//! Reads a log to its end and prints what the detectors find.

use std::io::Read;

use kiln_detect::{Finding, SavedLog};
use owo_colors::OwoColorize as _;

use super::log_file::{self, Packed};
use super::symbols;
use crate::args::ScanArgs;
use crate::failure::{Failure, USAGE};
use crate::output::{print, print_json};

/// Exit code: something was found.
const FOUND: u8 = 100;
const READ_BYTES: usize = 64 << 10;
/// A file is not text if more than one in so many bytes is a control character.
const CONTROL_SHARE: u64 = 50;

/// Scans a log and prints its findings.
pub fn run(args: &ScanArgs) -> Result<u8, Failure> {
    let mut scan = Scan::default();
    let outcome =
        if args.log == "-" { scan.read(std::io::stdin().lock()) } else { scan.read(fs_err::File::open(&args.log)?) };
    let name = if args.log == "-" { "stdin" } else { args.log.as_str() };
    if let Err(error) = outcome {
        if !args.json {
            print_found(&scan.findings)?;
        }
        let unpacks_with = error.get_ref().and_then(|error| error.downcast_ref::<Packed>()).map(|packed| packed.0);
        let hint = unpacks_with.map(|program| format!("{program} {name} | kiln scan -"));
        let code = if hint.is_some() { USAGE } else { 1 };
        return Err(
            Failure::new(code, anyhow::Error::new(error).context(format!("failed to read `{name}`"))).maybe_hint(hint)
        );
    }
    if !scan.log.has_kernel_lines() {
        return Err(scan.not_a_kernel_log(name));
    }
    if let Some(vmlinux) = &args.vmlinux {
        symbols::annotate(vmlinux, &mut scan.findings)?;
    }
    if args.json {
        print_json(&scan.findings)?;
    } else if scan.findings.is_empty() {
        print("nothing found")?;
    } else {
        print_found(&scan.findings)?;
    }
    Ok(if scan.findings.is_empty() { 0 } else { FOUND })
}

#[derive(Default)]
struct Scan {
    log: SavedLog,
    findings: Vec<Finding>,
    bytes: u64,
    /// Control characters among the bytes before the first kernel line.
    controls: u64,
}

impl Scan {
    fn read<'a>(&mut self, log: impl Read + 'a) -> std::io::Result<()> {
        let mut log = log_file::open(log)?;
        let mut buffer = vec![0; READ_BYTES];
        let outcome = loop {
            match log.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(count) => {
                    self.bytes += count as u64;
                    self.findings.extend(self.log.push(&buffer[..count]));
                    if !self.log.has_kernel_lines() {
                        let is_control =
                            |byte: &&u8| byte.is_ascii_control() && !b"\t\n\r\x1b\x07\x08\x0c".contains(byte);
                        self.controls += buffer[..count].iter().filter(is_control).count() as u64;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        // Findings before an error of reading are as good as others.
        self.findings.extend(self.log.finish());
        // A report that is complete comes before one that began earlier and is still open.
        self.findings.sort_by_key(|finding| finding.row);
        outcome
    }

    fn not_a_kernel_log(&self, name: &str) -> Failure {
        let words = if self.bytes == 0 {
            format!("`{name}` is empty")
        } else if self.controls * CONTROL_SHARE > self.bytes {
            format!("`{name}` is not text")
        } else {
            format!("`{name}` is not a kernel log")
        };
        Failure::words(USAGE, words)
            .hint("scan the output of dmesg or journalctl -k (both may need root), a syslog, or a console's log")
    }
}

/// Prints the findings, if there are any.
fn print_found(findings: &[Finding]) -> anyhow::Result<()> {
    if findings.is_empty() { Ok(()) } else { print(text(findings)) }
}

/// A line with the title of each finding, then the finding's lines of the log.
fn text(findings: &[Finding]) -> String {
    let mut lines = Vec::new();
    for finding in findings {
        lines.push(finding.title.bold().to_string());
        lines.extend(finding.extract.iter().map(|line| format!("    {line}")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
[    1.000000] Linux version 6.1.0-1-cloud-amd64
[    2.000000] BUG: kernel NULL pointer dereference, address: 0000000000000008
[    2.000001] #PF: supervisor write access in kernel mode
[    2.000002] Oops: 0002 [#1] PREEMPT SMP NOPTI
[    2.000003] RIP: 0010:crash_null+0x5/0x15 [crasher]
[    2.000004] Call Trace:
[    2.000005]  <TASK>
[    2.000006]  crasher_init+0x3e/0x1000 [crasher]
[    2.000007]  </TASK>
[    2.000008] ---[ end trace 0000000000000000 ]---
";

    #[test]
    fn a_finding_is_its_title_and_its_lines_or_json() {
        let mut scan = Scan::default();
        scan.read(LOG.as_bytes()).expect("in memory");
        let json = serde_json::to_string_pretty(&scan.findings).expect("plain data");
        let text = text(&scan.findings);
        insta::assert_snapshot!(format!("{}\n\n{json}", anstream::adapter::strip_str(&text)));
    }

    #[test]
    fn a_file_without_kernel_lines_is_named_with_what_it_is() {
        let failure = |content: &[u8]| {
            let mut scan = Scan::default();
            scan.read(content).expect("in memory");
            let failure = scan.not_a_kernel_log("a.log");
            format!("{}\n  hint: {}", failure.message(), failure.hint_text().unwrap_or("-"))
        };
        insta::assert_snapshot!([failure(b""), failure(&[0; 100]), failure(b"a letter\n")].join("\n"));
    }
}

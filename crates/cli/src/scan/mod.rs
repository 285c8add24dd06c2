//! `kiln scan`: the detectors of `kiln run` and the lab, on a saved log.

mod log_file;

use std::io::Read;

use kiln_detect::{Finding, SavedLog, Severity};
use owo_colors::OwoColorize as _;

use crate::args::ScanArgs;
use crate::failure::{Failure, USAGE};
use crate::output::{print, print_json};
use log_file::Packed;

/// Something was found.
const FOUND: u8 = 100;
const READ_BYTES: usize = 64 << 10;
/// A file with more control characters than one in so many bytes is not text.
const CONTROL_SHARE: u64 = 50;

/// Scans a log and lists what it holds.
pub fn run(args: &ScanArgs) -> Result<u8, Failure> {
    let mut scan = Scan::default();
    let outcome =
        if args.log == "-" { scan.read(std::io::stdin().lock()) } else { scan.read(fs_err::File::open(&args.log)?) };
    let name = if args.log == "-" { "stdin" } else { args.log.as_str() };
    if let Err(error) = outcome {
        if !args.json {
            show(&scan.findings)?;
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
    if args.json {
        print_json(&scan.findings)?;
    } else if scan.findings.is_empty() {
        print("nothing found")?;
    } else {
        show(&scan.findings)?;
    }
    let bad = scan.findings.iter().any(|finding| finding.severity != Severity::Warning);
    Ok(if bad { FOUND } else { 0 })
}

#[derive(Default)]
struct Scan {
    log: SavedLog,
    findings: Vec<Finding>,
    bytes: u64,
    /// Bytes that are in no text, of those read before the first line of a kernel.
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
        // What came before an error is worth as much as before.
        self.findings.extend(self.log.finish());
        outcome
    }

    fn not_a_kernel_log(&self, name: &str) -> Failure {
        let words = if self.bytes == 0 {
            format!("`{name}` is empty")
        } else if self.controls * CONTROL_SHARE > self.bytes {
            format!("`{name}` is not text")
        } else {
            format!("`{name}` has no line of a kernel log")
        };
        Failure::words(USAGE, words)
            .hint("scan the output of `dmesg` or `journalctl -k` (both may need root), a syslog, or a console's log")
    }
}

fn show(findings: &[Finding]) -> anyhow::Result<()> {
    for finding in findings {
        print(finding.title.bold())?;
        for line in &finding.extract {
            print(format_args!("    {line}"))?;
        }
    }
    Ok(())
}

//! Console bytes in, findings out: what went wrong in a guest kernel, from nothing but its serial console.
//!
//! ```text
//!   console bytes ── Lines ──▶ text ── ConsoleLine ──▶ Scanner ──▶ Finding
//!                    (bounded)  (+ time, passed in)     (push, pending, finish)
//! ```
//!
//! Nothing here does I/O, reads a clock or waits. The same code scans a live console and a log saved years ago, so a
//! crash that was missed becomes a fixture.
//!
//! ```
//! use std::time::Duration;
//! use kiln_detect::{ConsoleLine, Lines, Scanner, Severity};
//!
//! let mut lines = Lines::new();
//! let mut scanner = Scanner::new();
//! let mut findings = Vec::new();
//! for text in lines.push(b"[    1.200000] boot\r\n[    4.500000] Kernel panic - not syncing: No working init found.\r\n") {
//!     findings.extend(scanner.push(&ConsoleLine { text, at: Duration::from_secs(5) }));
//! }
//! findings.extend(scanner.finish());
//!
//! assert_eq!(findings[0].title, "kernel panic: No working init found");
//! assert_eq!(findings[0].severity, Severity::Fatal);
//! ```
//!
//! A log that was saved by another program (`dmesg -T`, a journal, syslog) is read with [`SavedLog`].
//!
//! # Which lines are the kernel's
//! A serial console carries the kernel's lines and the output of programs, and nothing marks which is which. The
//! kernel's time stamp (`[   12.345678]`) is the only difference that can be used:
//!
//! - Until the first stamped line, every line counts as the kernel's (`printk.time=0`, old logs).
//! - From the first stamped line on, only stamped text counts. A program that prints "Kernel panic" causes no finding.
//! - A stamp may follow other text on its row, because programs leave rows unfinished (a shell prompt, for example).
//!   The text before the stamp is not the kernel's.
//!
//! A program that writes to `/dev/kmsg`, or that prints a stamp itself, can't be distinguished from the kernel here.
//! Both need a guest that intends to mislead.
#![forbid(unsafe_code)]

mod boot;
mod clock;
mod console;
mod crash_type;
mod finding;
mod frames;
mod headings;
mod judge;
mod lines;
mod machinery;
mod pattern;
#[cfg(test)]
mod reference;
mod report;
mod row;
mod saved;
mod scanner;
mod signatures;
mod title;
mod words;

pub use console::{Caller, ConsoleLine, KernelLine};
pub use crash_type::CrashType;
pub use finding::{EXTRACT_LINES_MAX, Finding, Kind, Severity};
pub use lines::{LINE_BYTES_MAX, Lines};
pub use saved::SavedLog;
pub use scanner::{OPEN_REPORTS_MAX, REPORT_LINES_MAX, REPORT_QUIET, Scanner};

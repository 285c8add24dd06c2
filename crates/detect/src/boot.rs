//! Finds out to which boot of the guest a line belongs.
//!
//! A second banner (`Linux version …`) means either a second boot, or the log of the first boot printed again: by
//! `dmesg` on the console, or by a boot console that repeats the log when the real console replaces it. Time stamps
//! show which, because no two boots have the same stamps: the lines after the banner are compared with the first lines
//! of the known boot.
//!
//! ```text
//!              banner            the lines after it equal those of the known boot
//!   a boot ──────────────▶ doubt ──────────────────────────────────────────────▶ repeated: lines up to the latest
//!                            │ one differs                                       stamp are ignored
//!                            ▼
//!                          a new boot
//! ```
//!
//! # Why the decision waits
//! A wrong decision is expensive in both directions. If a repeated log counts as a boot, each of its old reports
//! becomes a second finding, and the machine seems to have restarted without a reason. If a boot counts as a
//! repetition, its reports are ignored. The banner alone can't decide, because both print the same one. So up to
//! [`KNOWN_LINES`] lines after it are compared, text and stamp. One that differs makes a boot: its stamps come from a
//! clock that starts again, and even a kernel that prints the same texts does not print eight of them at the same
//! microseconds. The first lines with stamp zero are not compared, since they are equal on every boot. Until the
//! decision, lines that equal the known ones are ignored. The first line that differs ends the doubt and is scanned, so
//! no line of a new boot is lost.

use std::time::Duration;

use crate::console::KernelLine;
use crate::pattern::Text;
use crate::signatures;

/// Stamped lines that are compared to recognise a boot.
const KNOWN_LINES: usize = 8;

/// The boot that a line belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The current boot.
    SameBoot,
    /// The current boot, and the line was printed before.
    Repeated,
    /// A new boot.
    NewBoot,
}

/// The current boot, as far as its lines show it.
#[derive(Debug, Default)]
pub(crate) struct Boot {
    began: bool,
    /// The first lines with a stamp other than zero. Stamps are zero until the kernel has a clock.
    known: Vec<(Duration, String)>,
    /// The latest stamp.
    latest: Duration,
    /// A banner came, and this many lines after it equal the known ones.
    doubt: Option<usize>,
    /// Lines up to this stamp are repeated ones.
    repeated_until: Option<Duration>,
    /// A restart was requested.
    pub(crate) orderly: bool,
    /// A finding explains why the machine will stop.
    pub(crate) fatal: bool,
}

impl Boot {
    /// Takes a kernel line, with its text if that can be about boots.
    pub(crate) fn follow(&mut self, line: &KernelLine<'_>, text: Option<&Text<'_>>) -> Step {
        if text.is_some_and(|text| text.is_any(&[signatures::BANNER])) {
            return self.banner(line.stamp);
        }
        let is_orderly = || text.is_some_and(signatures::is_orderly);
        let Some(stamp) = line.stamp.filter(|stamp| !stamp.is_zero()) else {
            self.orderly |= is_orderly();
            return Step::SameBoot;
        };
        let is_known =
            |index: usize| self.known.get(index).is_some_and(|(known, text)| *known == stamp && text == line.text);
        match self.doubt {
            Some(index) if !is_known(index) => {
                let known = self.known.drain(..index).collect();
                *self = Self { began: true, known, ..Self::default() };
                self.remember(stamp, line.text);
                return Step::NewBoot;
            }
            Some(index) if index + 1 == KNOWN_LINES => {
                self.doubt = None;
                self.repeated_until = Some(self.latest);
                return Step::Repeated;
            }
            Some(index) => {
                self.doubt = Some(index + 1);
                return Step::Repeated;
            }
            None if self.repeated_until.is_some_and(|until| stamp <= until) => return Step::Repeated,
            None => self.repeated_until = None,
        }
        self.orderly |= is_orderly();
        self.remember(stamp, line.text);
        Step::SameBoot
    }

    /// Takes the stamp of a line that isn't about boots, if that is all that there is to follow.
    pub(crate) fn skip(&mut self, stamp: Duration) -> bool {
        let is_quiet = self.doubt.is_none() && self.repeated_until.is_none();
        let is_known = !self.began || self.known.len() == KNOWN_LINES;
        if is_quiet && is_known {
            self.latest = self.latest.max(stamp);
        }
        is_quiet && is_known
    }

    fn banner(&mut self, stamp: Option<Duration>) -> Step {
        if !self.began {
            self.began = true;
            return Step::SameBoot;
        }
        if stamp.is_none() {
            // Without stamps there is nothing to compare.
            *self = Self { began: true, ..Self::default() };
            return Step::NewBoot;
        }
        self.doubt = Some(0);
        Step::Repeated
    }

    fn remember(&mut self, stamp: Duration, text: &str) {
        self.latest = self.latest.max(stamp);
        if self.began && self.known.len() < KNOWN_LINES {
            self.known.push((stamp, text.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(boot: &mut Boot, rows: &[String]) -> Vec<Step> {
        let lines = rows.iter().flat_map(|row| KernelLine::split(row));
        lines.map(|line| boot.follow(&line, Some(&Text::new(line.text)))).collect()
    }

    fn boot_rows(first_micros: usize) -> Vec<String> {
        let banner = ["[    0.000000] Linux version 6.1.0".to_owned(), "[    0.000000] e820".to_owned()];
        let rest = (0..KNOWN_LINES + 3).map(|number| format!("[    {number}.{first_micros:06}] line {number}"));
        banner.into_iter().chain(rest).collect()
    }

    #[test]
    fn a_log_that_is_printed_again_is_not_a_new_boot() {
        let mut boot = Boot::default();
        let rows = boot_rows(17);
        assert!(steps(&mut boot, &rows).iter().all(|step| *step == Step::SameBoot));
        let again = steps(&mut boot, &rows);
        assert_eq!(again.iter().filter(|step| **step == Step::Repeated).count(), rows.len() - 1);
        assert!(!again.contains(&Step::NewBoot));
        assert_eq!(steps(&mut boot, &["[   99.000000] new".to_owned()]), [Step::SameBoot]);
    }

    #[test]
    fn other_stamps_are_a_new_boot() {
        let mut boot = Boot::default();
        steps(&mut boot, &boot_rows(17));
        assert_eq!(steps(&mut boot, &boot_rows(18)).iter().filter(|step| **step == Step::NewBoot).count(), 1);
        assert_eq!(steps(&mut boot, &boot_rows(18)).iter().filter(|step| **step == Step::NewBoot).count(), 0);
        assert_eq!(steps(&mut boot, &boot_rows(17)).iter().filter(|step| **step == Step::NewBoot).count(), 1);
    }

    #[test]
    fn without_stamps_every_banner_is_a_new_boot() {
        let mut boot = Boot::default();
        let banner = ["Linux version 6.1.0".to_owned()];
        assert_eq!(steps(&mut boot, &banner), [Step::SameBoot]);
        assert_eq!(steps(&mut boot, &banner), [Step::NewBoot]);
    }
}

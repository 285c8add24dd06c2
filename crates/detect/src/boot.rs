//! Which boot of the guest a line belongs to.
//!
//! A second banner (`Linux version …`) is either a second boot or the first one told again: by `dmesg` on the console, or
//! by a boot console that repeats the log when the real one takes over. Time stamps tell them apart, since no two boots
//! have the same ones.
//!
//! ```text
//!              banner            the lines after it have the first boot's stamps
//!   a boot ──────────────▶ doubt ──────────────────────────────────────────────▶ retold: old lines are ignored
//!                            │ they do not
//!                            ▼
//!                          another boot
//! ```

use std::time::Duration;

use crate::console::KernelLine;
use crate::pattern::Text;
use crate::signatures;

/// Stamped lines by which a boot is known again.
const KNOWN_LINES: usize = 8;

/// What a line means for the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Onward,
    /// It was told before.
    Retold,
    /// It is of another boot.
    Another,
}

/// What is known of the boot that goes on.
#[derive(Debug, Default)]
pub(crate) struct Boot {
    began: bool,
    /// The first lines that a clock has stamped; before that all stamps are zero.
    known: Vec<(Duration, String)>,
    /// The latest stamp.
    latest: Duration,
    /// A banner came, and so many lines after it were those of this boot.
    doubt: Option<usize>,
    /// All up to this stamp is being told again.
    retold_until: Option<Duration>,
    /// Somebody asked for the restart that comes.
    pub(crate) orderly: bool,
    /// A finding has said why the machine will stop.
    pub(crate) fatal: bool,
}

impl Boot {
    /// Takes a kernel line.
    pub(crate) fn follow(&mut self, line: &KernelLine<'_>, text: &Text<'_>) -> Step {
        if text.is_any(&[signatures::BANNER]) {
            return self.banner(line.stamp);
        }
        let Some(stamp) = line.stamp.filter(|stamp| !stamp.is_zero()) else {
            self.orderly |= signatures::is_orderly(text);
            return Step::Onward;
        };
        let is_known =
            |index: usize| self.known.get(index).is_some_and(|(known, words)| *known == stamp && words == line.text);
        match self.doubt {
            Some(index) if !is_known(index) => {
                let known = self.known.drain(..index).collect();
                *self = Self { began: true, known, ..Self::default() };
                self.learn(stamp, line.text);
                return Step::Another;
            }
            Some(index) if index + 1 == KNOWN_LINES => {
                self.doubt = None;
                self.retold_until = Some(self.latest);
                return Step::Retold;
            }
            Some(index) => {
                self.doubt = Some(index + 1);
                return Step::Retold;
            }
            None if self.retold_until.is_some_and(|until| stamp <= until) => return Step::Retold,
            None => self.retold_until = None,
        }
        self.orderly |= signatures::is_orderly(text);
        self.learn(stamp, line.text);
        Step::Onward
    }

    fn banner(&mut self, stamp: Option<Duration>) -> Step {
        if !self.began {
            self.began = true;
            return Step::Onward;
        }
        if stamp.is_none() {
            // Without stamps there is nothing to compare.
            *self = Self { began: true, ..Self::default() };
            return Step::Another;
        }
        self.doubt = Some(0);
        Step::Retold
    }

    fn learn(&mut self, stamp: Duration, text: &str) {
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
        lines.map(|line| boot.follow(&line, &Text::new(line.text))).collect()
    }

    fn boot_rows(first_micros: usize) -> Vec<String> {
        let banner = ["[    0.000000] Linux version 6.1.0".to_owned(), "[    0.000000] e820".to_owned()];
        let rest = (0..KNOWN_LINES + 3).map(|number| format!("[    {number}.{first_micros:06}] line {number}"));
        banner.into_iter().chain(rest).collect()
    }

    #[test]
    fn a_log_told_again_is_no_boot_and_is_not_believed_twice() {
        let mut boot = Boot::default();
        let rows = boot_rows(17);
        assert!(steps(&mut boot, &rows).iter().all(|step| *step == Step::Onward));
        let again = steps(&mut boot, &rows);
        assert_eq!(again.iter().filter(|step| **step == Step::Retold).count(), rows.len() - 1);
        assert!(!again.contains(&Step::Another));
        assert_eq!(steps(&mut boot, &["[   99.000000] new".to_owned()]), [Step::Onward]);
    }

    #[test]
    fn other_stamps_are_another_boot() {
        let mut boot = Boot::default();
        steps(&mut boot, &boot_rows(17));
        assert_eq!(steps(&mut boot, &boot_rows(18)).iter().filter(|step| **step == Step::Another).count(), 1);
        assert_eq!(steps(&mut boot, &boot_rows(18)).iter().filter(|step| **step == Step::Another).count(), 0);
        assert_eq!(steps(&mut boot, &boot_rows(17)).iter().filter(|step| **step == Step::Another).count(), 1);
    }

    #[test]
    fn without_stamps_every_banner_is_a_boot() {
        let mut boot = Boot::default();
        let banner = ["Linux version 6.1.0".to_owned()];
        assert_eq!(steps(&mut boot, &banner), [Step::Onward]);
        assert_eq!(steps(&mut boot, &banner), [Step::Another]);
    }
}

//! The findings of a guest's kernel: the first ones, which usually name the cause, and the newest.

use std::collections::VecDeque;

use kiln_detect::Finding;

/// Findings that are kept from the start. A guest can cause any number.
pub const FINDINGS_HEAD: usize = 50;
/// Findings that are kept of those after the first ones; the newest stay.
pub const FINDINGS_TAIL: usize = 50;
/// Bytes of text of each of the two parts.
pub const FINDINGS_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Findings {
    head: Vec<Finding>,
    head_bytes: usize,
    tail: VecDeque<Finding>,
    tail_bytes: usize,
    total: u64,
}

impl Findings {
    pub(super) fn push(&mut self, finding: Finding) {
        self.total += 1;
        let bytes = bytes_of(&finding);
        let fits = self.head.len() < FINDINGS_HEAD && self.head_bytes + bytes <= FINDINGS_BYTES_MAX;
        if fits && self.tail.is_empty() {
            self.head_bytes += bytes;
            self.head.push(finding);
            return;
        }
        self.tail_bytes += bytes;
        self.tail.push_back(finding);
        while self.tail.len() > FINDINGS_TAIL || (self.tail_bytes > FINDINGS_BYTES_MAX && self.tail.len() > 1) {
            let oldest = self.tail.pop_front().expect("it holds more than one finding");
            self.tail_bytes -= bytes_of(&oldest);
        }
    }

    /// The kept findings, in order.
    pub(super) fn kept(&self) -> Vec<Finding> {
        self.head.iter().chain(&self.tail).cloned().collect()
    }

    /// The number of all findings.
    pub(super) fn total(&self) -> u64 {
        self.total
    }
}

/// Bytes of a finding's text.
pub(super) fn bytes_of(finding: &Finding) -> usize {
    finding.title.len() + finding.extract.iter().map(|line| line.len() + size_of::<String>()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kiln_detect::{Kind, Severity};

    use super::*;

    fn finding(number: usize, line: &str) -> Finding {
        Finding::new(number.to_string(), Kind::Panic, Severity::Fatal, vec![line.to_owned()], Duration::ZERO)
    }

    #[test]
    fn the_first_and_the_newest_are_kept_and_all_are_counted() {
        let mut findings = Findings::default();
        for number in 0..1000 {
            findings.push(finding(number, "x"));
        }
        let titles: Vec<String> = findings.kept().into_iter().map(|finding| finding.title).collect();
        let expected: Vec<String> =
            (0..FINDINGS_HEAD).chain(1000 - FINDINGS_TAIL..1000).map(|n| n.to_string()).collect();
        assert_eq!((titles, findings.total()), (expected, 1000));
    }

    #[test]
    fn large_ones_are_bounded_by_their_bytes() {
        let mut findings = Findings::default();
        let line = "x".repeat(FINDINGS_BYTES_MAX / 3);
        for number in 0..20 {
            findings.push(finding(number, &line));
        }
        let titles: Vec<String> = findings.kept().into_iter().map(|finding| finding.title).collect();
        assert_eq!(titles, ["0", "1", "18", "19"]);
    }
}

//! What is said of a case at its end, and of a run.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Every case passed, or was skipped for a reason.
const EXIT_PASSED: u8 = 0;
/// The lab could not run all of it, and what it ran did not fail.
const EXIT_LAB_FAILED: u8 = 69;
/// A case failed.
const EXIT_CASE_FAILED: u8 = 100;

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It did what it claims.
    Pass,
    /// It ran to its end and did not.
    Fail,
    /// The guest's kernel reported a crash while it ran.
    Crash,
    /// It did not end in the time it was given.
    Timeout,
    /// It was not run, for a reason that stands in the report.
    Skip,
    /// The lab failed, so nothing is known about the case.
    Error,
    /// It failed first and passed when tried again.
    Flaky,
}

impl Verdict {
    /// Whether this speaks against the code under test.
    pub const fn is_failure(self) -> bool {
        match self {
            Self::Fail | Self::Crash | Self::Timeout => true,
            Self::Pass | Self::Skip | Self::Error | Self::Flaky => false,
        }
    }

    /// The word for it, as in reports and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Crash => "crash",
            Self::Timeout => "timeout",
            Self::Skip => "skip",
            Self::Error => "error",
            Self::Flaky => "flaky",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The exit code of a run: 100 if a case failed, else 69 if the lab failed at one or had none to run, else 0.
///
/// ```
/// use kiln_lab::{Verdict, exit_code};
///
/// assert_eq!(exit_code([Verdict::Pass, Verdict::Flaky, Verdict::Skip]), 0);
/// assert_eq!(exit_code([Verdict::Pass, Verdict::Crash, Verdict::Error]), 100);
/// ```
pub fn exit_code(verdicts: impl IntoIterator<Item = Verdict>) -> u8 {
    let of_one = |verdict: Verdict| match verdict {
        Verdict::Error => EXIT_LAB_FAILED,
        verdict if verdict.is_failure() => EXIT_CASE_FAILED,
        _ => EXIT_PASSED,
    };
    // The codes rise with what they mean, and a run without a case has shown nothing.
    verdicts.into_iter().map(of_one).max().unwrap_or(EXIT_LAB_FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Verdict; 7] =
        [Verdict::Pass, Verdict::Fail, Verdict::Crash, Verdict::Timeout, Verdict::Skip, Verdict::Error, Verdict::Flaky];

    #[test]
    fn one_failure_makes_a_failed_run() {
        for verdict in [Verdict::Fail, Verdict::Crash, Verdict::Timeout] {
            assert_eq!(exit_code([Verdict::Pass, verdict, Verdict::Error]), 100, "{verdict}");
        }
    }

    #[test]
    fn a_fault_of_the_lab_is_never_a_success_nor_a_failed_case() {
        assert_eq!(exit_code([Verdict::Pass, Verdict::Error]), 69);
        assert!(!Verdict::Error.is_failure());
    }

    #[test]
    fn a_run_without_a_case_has_shown_nothing() {
        assert_eq!(exit_code([]), 69);
    }

    #[test]
    fn flaky_and_skipped_cases_do_not_fail_a_run() {
        assert_eq!(exit_code([Verdict::Flaky, Verdict::Skip]), 0);
    }

    #[test]
    fn the_word_shown_is_the_word_stored() {
        for verdict in ALL {
            let stored = serde_json::to_string(&verdict).expect("a word is JSON");
            assert_eq!(stored, format!("\"{verdict}\""));
            assert_eq!(serde_json::from_str::<Verdict>(&stored).expect("it was just written"), verdict);
        }
    }
}

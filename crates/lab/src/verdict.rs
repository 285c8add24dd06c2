//! The verdict of a case, and the exit code of a run.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Every case passed or was skipped.
const EXIT_PASSED: u8 = 0;
/// The lab could not run every case, and no case failed.
const EXIT_LAB_FAILED: u8 = 69;
/// A case failed.
const EXIT_CASE_FAILED: u8 = 100;

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The case did what its name claims.
    Pass,
    /// The case ran to its end and did not do what its name claims.
    Fail,
    /// The guest's kernel reported a crash while the case ran.
    Crash,
    /// The case did not end before its deadline.
    Timeout,
    /// The case was not run. The report has the reason.
    Skip,
    /// The lab failed, so the result of the case is unknown.
    Error,
    /// The case failed first and passed in a later attempt.
    Flaky,
}

impl Verdict {
    /// Whether the verdict is a failure of the code under test.
    pub const fn is_failure(self) -> bool {
        match self {
            Self::Fail | Self::Crash | Self::Timeout => true,
            Self::Pass | Self::Skip | Self::Error | Self::Flaky => false,
        }
    }

    /// The name in reports and on the wire.
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

/// The exit code of a run: 100 if a case failed, else 69 if the lab failed to run a case or had no case, else 0.
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
    // A more important code is greater, so the maximum decides. A run without a case proves nothing, so it is not a
    // success.
    verdicts.into_iter().map(of_one).max().unwrap_or(EXIT_LAB_FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Verdict; 7] =
        [Verdict::Pass, Verdict::Fail, Verdict::Crash, Verdict::Timeout, Verdict::Skip, Verdict::Error, Verdict::Flaky];

    #[test]
    fn one_failed_case_fails_the_run() {
        for verdict in [Verdict::Fail, Verdict::Crash, Verdict::Timeout] {
            assert_eq!(exit_code([Verdict::Pass, verdict, Verdict::Error]), 100, "{verdict}");
        }
    }

    #[test]
    fn a_failure_of_the_lab_is_not_a_success_and_not_a_failed_case() {
        assert_eq!(exit_code([Verdict::Pass, Verdict::Error]), 69);
        assert!(!Verdict::Error.is_failure());
    }

    #[test]
    fn a_run_without_a_case_is_not_a_success() {
        assert_eq!(exit_code([]), 69);
    }

    #[test]
    fn flaky_and_skipped_cases_do_not_fail_a_run() {
        assert_eq!(exit_code([Verdict::Flaky, Verdict::Skip]), 0);
    }

    #[test]
    fn the_shown_name_is_the_stored_name() {
        for verdict in ALL {
            let stored = serde_json::to_string(&verdict).expect("a word is JSON");
            assert_eq!(stored, format!("\"{verdict}\""));
            assert_eq!(serde_json::from_str::<Verdict>(&stored).expect("it was just written"), verdict);
        }
    }
}

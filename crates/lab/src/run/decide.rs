//! Verdicts from what an attempt saw. No I/O.

use std::time::Duration;

use kiln_detect::Finding;

use super::pattern::matches;
use crate::Verdict;
use crate::events::CaseVerdict;
use crate::plan::{Day, Detect, Quarantine, Suite, SuiteKind};
use crate::results::{CaseResult, Outcome};

/// How the command of an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// With this code; a signal is 128 + its number.
    Code(i32),
    /// It did not end in time.
    TimedOut,
    /// The guest was gone before. The text is how.
    Gone(String),
    /// The lab failed. The text is why.
    Lab(String),
    /// The run was stopped meanwhile.
    Stopped,
}

/// What an attempt saw.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) ended: Ended,
    pub(super) results: Vec<CaseResult>,
    /// A problem of the results as a whole.
    pub(super) problem: Option<String>,
    pub(super) findings: Vec<Finding>,
    /// What is wrong with the kernel's taint word.
    pub(super) taint: Option<String>,
    /// Whether its output has the text that the suite expects.
    pub(super) has_expected_output: bool,
    /// The last line that the command wrote to stderr.
    pub(super) last_words: String,
    pub(super) duration: Duration,
}

/// The verdicts of an attempt. The first one without a name is that of the suite as a whole.
pub(super) fn decide(suite: &Suite, detect: &Detect, today: Day, seen: &Seen) -> Vec<CaseVerdict> {
    let (whole, message) = of_whole(suite, detect, today, seen);
    let mut verdicts: Vec<_> = seen.results.iter().map(of_case).collect();
    // Results of a suite count, also if it crashed later. A suite that passed is its cases.
    if verdicts.is_empty() || whole != Verdict::Pass {
        let whole = CaseVerdict { case: String::new(), verdict: whole, message, duration: Some(seen.duration) };
        verdicts.insert(0, whole);
    }
    verdicts
}

fn of_case(result: &CaseResult) -> CaseVerdict {
    let verdict = match result.outcome {
        Outcome::Pass => Verdict::Pass,
        Outcome::Fail => Verdict::Fail,
        Outcome::Skip => Verdict::Skip,
    };
    CaseVerdict { case: result.name.clone(), verdict, message: result.message.clone(), duration: result.duration }
}

fn of_whole(suite: &Suite, detect: &Detect, today: Day, seen: &Seen) -> (Verdict, String) {
    let expected =
        |finding: &Finding| suite.expect.finding.as_ref().is_some_and(|pattern| matches(pattern, &finding.title));
    let ignored = |finding: &Finding| {
        let is_valid = |until: Option<Day>| until.is_none_or(|until| today <= until);
        detect.ignore.iter().any(|one| is_valid(one.until) && matches(&one.title, &finding.title))
    };
    let counts = |finding: &&Finding| {
        detect.fail_on.is_some_and(|least| finding.severity >= least) && !expected(finding) && !ignored(finding)
    };
    if let Ended::Lab(problem) = &seen.ended {
        return (Verdict::Error, problem.clone());
    }
    if let Some(finding) = seen.findings.iter().filter(counts).max_by_key(|finding| finding.severity) {
        return (Verdict::Crash, finding.title.clone());
    }
    // A crash that is expected ends the guest, so nothing more is expected then.
    if let Some(pattern) = &suite.expect.finding {
        return match seen.findings.iter().find(|finding| expected(finding)) {
            Some(finding) => (Verdict::Pass, finding.title.clone()),
            None => (Verdict::Fail, format!("no finding matches `{pattern}`")),
        };
    }
    match &seen.ended {
        Ended::TimedOut => (Verdict::Timeout, format!("did not end within {:?}", suite.timeout)),
        Ended::Stopped => (Verdict::Skip, "the run was stopped".into()),
        Ended::Gone(how) => (Verdict::Fail, format!("the guest ended before the command: {how}")),
        Ended::Lab(problem) => (Verdict::Error, problem.clone()),
        // A finding that does not count has tainted the kernel, too: then the taint says nothing more.
        Ended::Code(code) => of_code(suite, detect.taint && seen.findings.is_empty(), *code, seen),
    }
}

fn of_code(suite: &Suite, taint_counts: bool, code: i32, seen: &Seen) -> (Verdict, String) {
    let is_command = suite.kind == SuiteKind::Command;
    if let Some(taint) = seen.taint.as_ref().filter(|_| taint_counts) {
        return (Verdict::Fail, taint.clone());
    }
    if is_command && code != i32::from(suite.expect.exit) {
        let mut message = format!("exit code {code}");
        if suite.expect.exit != 0 {
            message += &format!(", not {}", suite.expect.exit);
        }
        if !seen.last_words.is_empty() {
            message += &format!(": {}", seen.last_words);
        }
        return (Verdict::Fail, message);
    }
    if !seen.has_expected_output {
        let text = suite.expect.stdout.as_deref().unwrap_or_default();
        return (Verdict::Fail, format!("its stdout does not contain `{text}`"));
    }
    match &seen.problem {
        Some(problem) => (Verdict::Fail, problem.clone()),
        None => (Verdict::Pass, String::new()),
    }
}

/// Why the failures of an attempt don't count, if they don't.
pub(super) fn quarantine(quarantine: Option<&Quarantine>, today: Day, verdicts: &[CaseVerdict]) -> Option<String> {
    let quarantine = quarantine.filter(|quarantine| today <= quarantine.until)?;
    let covers = |verdict: &CaseVerdict| {
        quarantine.cases.is_empty() || quarantine.cases.iter().any(|pattern| matches(pattern, &verdict.case))
    };
    let failed = verdicts.iter().filter(|verdict| verdict.verdict.is_failure());
    failed.clone().all(covers).then(|| quarantine.reason.clone())
}

/// Whether another attempt may pass.
pub(super) fn may_retry(verdicts: &[CaseVerdict]) -> bool {
    verdicts.iter().any(|verdict| verdict.verdict.is_failure() || verdict.verdict == Verdict::Error)
}

#[cfg(test)]
mod tests {
    use kiln_detect::{Kind, Severity};

    use super::*;
    use crate::plan::Plan;

    const TODAY: Day = Day(2026, 11, 30);

    fn plan(rest: &str) -> Plan {
        let plan = format!("[plan]\nname = 'x'\n[[suite]]\nkind = 'command'\nname = 'x'\nrun = 'x'\n{rest}");
        Plan::parse(&plan).expect("is right")
    }

    fn seen(ended: Ended) -> Seen {
        Seen {
            ended,
            results: Vec::new(),
            problem: None,
            findings: Vec::new(),
            taint: None,
            has_expected_output: true,
            last_words: String::new(),
            duration: Duration::from_secs(1),
        }
    }

    fn finding(title: &str, severity: Severity) -> Finding {
        Finding::new(title.to_owned(), Kind::Bug, severity, Vec::new(), Duration::ZERO)
    }

    fn verdict(plan: &Plan, seen: &Seen) -> (Verdict, String) {
        let verdicts = decide(&plan.suites[0], &plan.detect, TODAY, seen);
        (verdicts[0].verdict, verdicts[0].message.clone())
    }

    #[test]
    fn an_exit_code_decides_about_a_command() {
        let plain = plan("");
        assert_eq!(verdict(&plain, &seen(Ended::Code(0))).0, Verdict::Pass);
        let failed = Seen { last_words: "no space".into(), ..seen(Ended::Code(9)) };
        assert_eq!(verdict(&plain, &failed), (Verdict::Fail, "exit code 9: no space".into()));
        let other = plan("expect = { exit = 9 }\n");
        assert_eq!(verdict(&other, &seen(Ended::Code(9))).0, Verdict::Pass);
        assert_eq!(verdict(&other, &seen(Ended::Code(0))), (Verdict::Fail, "exit code 0, not 9".into()));
        assert_eq!(verdict(&plain, &seen(Ended::TimedOut)).0, Verdict::Timeout);
        assert_eq!(verdict(&plain, &seen(Ended::Gone("it powered off".into()))).0, Verdict::Fail);
        assert_eq!(verdict(&plain, &seen(Ended::Lab("no fork".into()))).0, Verdict::Error);
        assert_eq!(verdict(&plain, &seen(Ended::Stopped)).0, Verdict::Skip);
        let silent = Seen { has_expected_output: false, ..seen(Ended::Code(0)) };
        assert_eq!(verdict(&plan("expect = { stdout = 'ok' }\n"), &silent).1, "its stdout does not contain `ok`");
        let tainted = Seen { taint: Some("the kernel is tainted: x".into()), ..seen(Ended::Code(0)) };
        assert_eq!(verdict(&plain, &tainted).0, Verdict::Fail);
        assert_eq!(verdict(&plan("[detect]\ntaint = false\n"), &tainted).0, Verdict::Pass);
    }

    #[test]
    fn a_finding_is_a_crash_unless_it_is_expected_ignored_or_too_mild() {
        // Each of them taints the kernel.
        let with = |findings| Seen { findings, taint: Some("it is tainted".into()), ..seen(Ended::Code(0)) };
        let (bug, warning) = (finding("BUG: a in f", Severity::Fatal), finding("WARNING in g", Severity::Warning));
        let both = with(vec![warning.clone(), bug.clone()]);
        assert_eq!(verdict(&plan(""), &both), (Verdict::Crash, "BUG: a in f".into()), "the most severe");
        assert_eq!(verdict(&plan("[detect]\nfail_on = 'error'\n"), &with(vec![warning.clone()])).0, Verdict::Pass);
        assert_eq!(verdict(&plan("[detect]\nfail_on = 'never'\n"), &both).0, Verdict::Pass);
        let ignore = |until: &str| {
            plan(&format!("[detect]\nignore = [{{ title = 'WARNING *', reason = 'x', until = '{until}' }}]\n"))
        };
        assert_eq!(verdict(&ignore("2026-11-30"), &with(vec![warning.clone()])).0, Verdict::Pass);
        assert_eq!(verdict(&ignore("2026-11-29"), &with(vec![warning.clone()])).0, Verdict::Crash, "it has ended");

        let expect = plan("expect = { finding = 'BUG: * in f' }\n");
        let crashed =
            Seen { ended: Ended::Gone("a panic".into()), findings: vec![bug.clone()], ..seen(Ended::Code(0)) };
        assert_eq!(verdict(&expect, &crashed).0, Verdict::Pass);
        assert_eq!(verdict(&expect, &both).0, Verdict::Crash, "the other one is not expected");
        assert_eq!(verdict(&expect, &seen(Ended::Code(0))), (Verdict::Fail, "no finding matches `BUG: * in f`".into()));
    }

    #[test]
    fn results_of_a_suite_count_also_if_it_crashed_later() {
        let result =
            |name: &str, outcome| CaseResult { name: name.into(), outcome, message: String::new(), duration: None };
        let results = vec![result("a", Outcome::Pass), result("b", Outcome::Fail)];
        let plan = plan("[[suite]]\nkind = 'tap'\nname = 'tap'\nrun = 'x'\n");
        let names = |seen: &Seen| {
            let verdicts = decide(&plan.suites[1], &plan.detect, TODAY, seen);
            verdicts.iter().map(|one| format!("{}={}", one.case, one.verdict)).collect::<Vec<_>>().join(" ")
        };
        let passed = Seen { results: results.clone(), ..seen(Ended::Code(1)) };
        assert_eq!(names(&passed), "a=pass b=fail");
        let crashed =
            Seen { results, findings: vec![finding("BUG", Severity::Fatal)], ..seen(Ended::Gone("x".into())) };
        assert_eq!(names(&crashed), "=crash a=pass b=fail");
        let incomplete = Seen { problem: Some("results: 3 planned, 2 came".into()), ..passed };
        assert_eq!(names(&incomplete), "=fail a=pass b=fail");
    }

    #[test]
    fn a_quarantine_covers_its_cases_until_its_last_day() {
        let one = Quarantine { reason: "known".into(), until: TODAY, cases: vec!["a*".into()] };
        let verdict =
            |case: &str, verdict| CaseVerdict { case: case.into(), verdict, message: String::new(), duration: None };
        let covered = [verdict("ab", Verdict::Fail), verdict("b", Verdict::Pass)];
        assert_eq!(quarantine(Some(&one), TODAY, &covered).as_deref(), Some("known"));
        assert_eq!(quarantine(Some(&one), TODAY, &[verdict("b", Verdict::Fail)]), None);
        assert_eq!(quarantine(Some(&one), Day(2026, 12, 1), &covered), None);
        assert_eq!(quarantine(None, TODAY, &covered), None);
    }
}

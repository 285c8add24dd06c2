//! The conformance suite on real backends, on ours, and on backends that are wrong on purpose: each has to come out as it
//! is known to be, and a wrong one has to be found by the very rule that it breaks.

mod backend;
mod ours;
mod real;
mod wrong;

use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_vdev::check::{ExpectedFailures, Level, Options, Report, Verdict, run};

/// What is known of a backend.
fn expected(name: &str) -> ExpectedFailures {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/expected").join(name);
    ExpectedFailures::read_for_backends(&path).expect("the file is well-formed")
}

/// Options for a backend that this command starts.
fn spawned(command: &str) -> Options {
    Options {
        spawn: Some(command.parse().expect("a command")),
        level: Level::May,
        // Long for a busy machine; the mocks that hang are known, so this timeout rarely passes.
        timeout: Duration::from_secs(3),
        ..Options::default()
    }
}

/// Checks a backend.
fn check(options: &Options) -> Report {
    run(options, &mut |_| {}).expect("the backend says what it is")
}

/// The cases that failed.
fn failed(report: &Report) -> Vec<&str> {
    report.cases.iter().filter(|case| case.verdict.is_failure()).map(|case| case.id).collect()
}

/// What came of a case.
fn verdict<'a>(report: &'a Report, id: &str) -> &'a Verdict {
    &report.cases.iter().find(|case| case.id == id).expect("the case was run").verdict
}

/// Fails unless the backend is as it is known to be.
#[track_caller]
fn assert_as_expected(report: &Report) {
    let unexpected: Vec<_> = report.unexpected().map(ToString::to_string).collect();
    assert!(unexpected.is_empty(), "{}\n{}", unexpected.join("\n"), report.to_text());
}

/// A disk image of this size, in a folder of its own.
fn disk() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a folder");
    let path = directory.path().join("disk");
    let file = std::fs::File::create(&path).expect("a file");
    file.set_len(16 << 20).expect("grows");
    (directory, path)
}

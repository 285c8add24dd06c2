//! Runs that reports are made of.

use std::time::Duration;

use kiln_detect::{Finding, Kind, Severity};

use crate::events::tests::events;
use crate::events::{Event, RunRecord};

/// A run with every kind of event.
pub(super) fn run() -> RunRecord {
    RunRecord::of(&events())
}

/// A run in which each text that a guest chooses tries to be more than a text.
pub(super) fn hostile() -> RunRecord {
    let evil = "</testcase>\x1b[2J\u{202e}|`x`|\n# =cmd(\"x\"),<script>";
    let mut events = events();
    for event in &mut events {
        if let Event::AttemptEnded(attempt) = event {
            for verdict in &mut attempt.verdicts {
                verdict.case = format!("={evil}");
                verdict.message = format!("{evil}]]>\u{0}");
            }
            if !attempt.findings.is_empty() {
                let extract = vec![format!("```\n{evil}")];
                attempt.findings =
                    vec![Finding::new(evil.into(), Kind::Bug, Severity::Fatal, extract, Duration::from_secs(1))];
            }
        }
    }
    RunRecord::of(&events)
}

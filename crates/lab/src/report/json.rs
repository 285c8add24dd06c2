//! The report as one JSON object, for programs.

use serde::Serialize;
use serde_json::{Value, json};

use crate::events::{CellState, RunRecord};

/// Programs may rely on the fields of a version; later ones only add some.
const VERSION: u32 = 1;

/// The report as JSON. `exit_code` is that of the command that prints it.
pub fn json(record: &RunRecord, exit_code: u8) -> Value {
    let head = record.head.as_ref();
    json!({
        "version": VERSION,
        "exit_code": exit_code,
        "run": head.map(|head| head.run.as_str()),
        "plan": head.map(|head| &head.plan),
        "plan_digest": head.map(|head| &head.plan_digest),
        "level": head.map(|head| head.level),
        "kiln": head.map(|head| &head.kiln),
        "host": head.map(|head| &head.host),
        "host_class": head.map(|head| &head.host_class),
        "started_unix": head.map(|head| head.started_unix),
        "ended_unix": record.ended_unix,
        "stopped": record.stopped,
        "attempts_planned": head.map(|head| head.attempts_planned),
        "attempts_ended": record.attempts.len(),
        "counts": record.counts(),
        "findings": findings(record),
        "cells": cells(record),
        "cases": cases(record),
    })
}

fn findings(record: &RunRecord) -> Vec<Value> {
    let of_title = record.findings_by_severity().into_iter().map(|(title, finding)| {
        let first = &finding.first;
        json!({
            "title": title,
            "severity": first.severity,
            "kind": first.kind,
            "type": first.crash_type,
            "function": first.function,
            "corrupted": first.corrupted,
            "alternatives": first.alternatives,
            "count": finding.count,
            "cases": finding.cases,
            "log": first.extract,
        })
    });
    of_title.collect()
}

fn cells(record: &RunRecord) -> Vec<Value> {
    let of_cell = record.cells.iter().map(|(cell, state)| {
        let (snapshot, error) = match &state.state {
            CellState::Ready(snapshot) => (Some(snapshot), None),
            CellState::Failed(why) => (None, Some(why)),
        };
        json!({ "cell": cell, "snapshot": snapshot, "error": error, "prepare_ms": millis(state.duration) })
    });
    of_cell.collect()
}

fn cases(record: &RunRecord) -> Vec<Value> {
    #[derive(Serialize)]
    struct Case<'a> {
        #[serde(flatten)]
        key: &'a crate::events::CaseKey,
        #[serde(flatten)]
        rest: Value,
    }
    let of_case = record.cases.iter().map(|(key, case)| {
        let rest = json!({
            "verdict": case.verdict,
            "attempts": case.attempts,
            "message": case.message,
            "duration_ms": millis(case.duration),
            "quarantined": case.quarantined,
            "findings": case.findings,
            "artifacts": case.artifacts,
        });
        serde_json::to_value(Case { key, rest }).expect("plain data")
    });
    of_case.collect()
}

fn millis(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::run;

    #[test]
    fn a_program_finds_everything_of_a_run() {
        insta::assert_json_snapshot!(json(&run(), 100));
    }
}

//! Takes the events of a server, and makes the report.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::outcomes::{Outcome, Outcomes};
use super::refused;
use super::rules::{About, Rule};
use super::session::SessionView;
use crate::backend::{Observer, SessionError, SessionEvent};
use crate::check::{CaseReport, Expectation, Report, Side, Trace, Verdict, frontend_message};
use crate::protocol::{FrontendCall, FrontendRequest, Header};
use crate::socket::SocketError;
use crate::virtio::DeviceKind;

/// Watches what frontends do.
pub struct Watch {
    target: String,
    kind: Option<DeviceKind>,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    outcomes: Outcomes,
    session: SessionView,
    frontends: u64,
}

impl Watch {
    /// Watches the frontends of a socket, by whose name the report is called.
    pub fn new(target: impl Into<String>) -> Self {
        Self { target: target.into(), kind: None, began: Instant::now(), state: Mutex::default() }
    }

    /// Sets what the device is, so that features are judged by their meaning for it.
    #[must_use]
    pub const fn of_device(mut self, kind: DeviceKind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// What came of it so far.
    pub fn report(&self) -> Report {
        let state = self.lock();
        let cases = Rule::ALL.iter().map(|rule| case(*rule, state.outcomes.by_rule.get(rule)));
        Report {
            target: self.target.clone(),
            cases: cases.collect(),
            duration: self.began.elapsed(),
            runs: 1,
            jobs: 1,
            ..Report::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Watch {
    fn event(&self, event: &SessionEvent<'_>) {
        let mut state = self.lock();
        let State { outcomes, session, frontends } = &mut *state;
        match event {
            SessionEvent::Connected { .. } => {
                *session = SessionView::of_device(self.kind);
                outcomes.said = Trace::default();
                *frontends += 1;
            }
            SessionEvent::Offered { offer } => session.offer = Some(**offer),
            SessionEvent::Received { header, payload, fds } => {
                received(outcomes, session, *header, payload, *fds);
            }
            SessionEvent::Handled { .. } => {}
            SessionEvent::Refused { request, refusal, .. } => refused::judge(outcomes, *request, refusal),
            SessionEvent::RingStarted { queue, .. } => session.started(*queue),
            SessionEvent::RingStopped { queue, .. } => session.stopped(*queue, outcomes),
            SessionEvent::Kicked { queue } => session.kicked(*queue, outcomes),
            SessionEvent::RingBroke { error, .. } => refused::judge_ring(outcomes, error),
            SessionEvent::KickLost { queue, error } => {
                outcomes
                    .broken(Rule::RingEvent, format!("the kick descriptor of ring {queue} cannot be read: {error}"));
            }
            SessionEvent::Ended { error, .. } => ended(outcomes, session, *error),
        }
    }
}

fn received(outcomes: &mut Outcomes, session: &mut SessionView, header: Header, payload: &[u8], fds: usize) {
    outcomes.said.push(Side::Received, frontend_message(header.request, header.flags, payload, fds));
    outcomes.held(Rule::Header);
    outcomes.held(Rule::Whole);
    outcomes.held(Rule::InTime);
    outcomes.judge(Rule::NoReply, !header.flags.is_reply(), || format!("message {} is a reply", header.request));
    let request = FrontendRequest::from_number(header.request);
    outcomes.judge(Rule::Known, request.is_some(), || format!("message {} does not exist", header.request));
    let Some(request) = request else { return };
    let expected = request.descriptors();
    outcomes.judge(Rule::Descriptors, expected.contains(&fds), || {
        format!("{request} has {fds} descriptors, not {} to {}", expected.start(), expected.end())
    });
    match FrontendCall::decode(request, payload) {
        Ok(call) => {
            outcomes.held(Rule::Payload);
            session.message(&call, header, fds, outcomes);
        }
        Err(error) => outcomes.broken(Rule::Payload, format!("{request}: {error}")),
    }
}

fn ended(outcomes: &mut Outcomes, session: &SessionView, error: Option<&SessionError>) {
    match error {
        Some(SessionError::Socket(SocketError::Header { source, .. })) => {
            outcomes.broken(Rule::Header, source.to_string());
        }
        Some(SessionError::Socket(error @ SocketError::Cut { .. })) => outcomes.broken(Rule::Whole, error.to_string()),
        Some(SessionError::Socket(error @ SocketError::Timeout { .. })) => {
            outcomes.broken(Rule::InTime, error.to_string());
        }
        // Who was thrown out had no chance to stop its rings.
        Some(_) => {}
        None => session.left(outcomes),
    }
}

fn case(rule: Rule, outcome: Option<&Outcome>) -> CaseReport {
    let About { id, level, section, reason } = rule.about();
    let (verdict, trace) = match outcome {
        None => (Verdict::Skip("the frontend did nothing that this rule applies to".to_owned()), Trace::default()),
        Some(Outcome { broken: None }) => (Verdict::Pass, Trace::default()),
        Some(Outcome { broken: Some((because, said)) }) => (Verdict::Fail(because.clone()), said.clone()),
    };
    CaseReport {
        id,
        level,
        section,
        reason,
        verdict,
        expectation: Expectation::None,
        trace,
        duration: std::time::Duration::ZERO,
        resources: None,
        stderr: Vec::new(),
        note: None,
        flaky: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_broken_rules_and_counts() {
        let watch = Watch::new("vmm.sock").of_device(DeviceKind::Blk);
        {
            let mut state = watch.lock();
            state.outcomes.held(Rule::Header);
            state.outcomes.broken(Rule::RingBase, "ring 0 starts without SET_VRING_BASE");
            state.outcomes.broken(Rule::StopNum, "GET_VRING_BASE of ring 0 has num 3");
        }
        let report = Report { duration: std::time::Duration::ZERO, ..watch.report() };
        insta::assert_snapshot!(report.to_text());
    }
}

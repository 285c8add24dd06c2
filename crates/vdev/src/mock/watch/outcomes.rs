//! How the rules stand: which had an occasion, and which were broken with what was said until then.

use std::collections::BTreeMap;

use super::rules::Rule;
use crate::check::Trace;

/// How the rules stand.
#[derive(Default)]
pub(super) struct Outcomes {
    pub(super) by_rule: BTreeMap<Rule, Outcome>,
    /// The messages of this session.
    pub(super) said: Trace,
}

pub(super) struct Outcome {
    pub(super) broken: Option<(String, Trace)>,
}

impl Outcomes {
    /// The rule had an occasion, and was followed this time.
    pub(super) fn held(&mut self, rule: Rule) {
        self.by_rule.entry(rule).or_insert(Outcome { broken: None });
    }

    /// The rule was broken. The first time is what counts.
    pub(super) fn broken(&mut self, rule: Rule, because: impl Into<String>) {
        let outcome = self.by_rule.entry(rule).or_insert(Outcome { broken: None });
        let said = &self.said;
        outcome.broken.get_or_insert_with(|| (because.into(), said.clone()));
    }

    /// The rule had an occasion, and was followed or not.
    pub(super) fn judge(&mut self, rule: Rule, holds: bool, because: impl FnOnce() -> String) {
        if holds {
            self.held(rule);
        } else {
            self.broken(rule, because());
        }
    }
}

//! The state that all parts of a VM's network share.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use super::denials::{Denials, Denied};
use crate::policy::{Change, Decision, Destination, Domain, Learned, Opening, Policy, PolicyError};

/// A flow that uses an opening makes it last this much longer.
pub const RENEWED_TIME: Duration = Duration::from_secs(60);

/// The longest time after an answer that use can keep its opening.
pub const RENEWED_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A VM's policy, what was learned under it, and what it denied.
#[derive(Debug, Default)]
pub struct Gate {
    policy: RwLock<Arc<Policy>>,
    /// Held while a change reads the old policy and sets the new one.
    changing: Mutex<()>,
    /// Grows with each policy, so that flows know whether they were judged by this one.
    version: AtomicU64,
    learned: Mutex<Learned>,
    denials: Mutex<Denials>,
}

impl Gate {
    /// A gate with this policy.
    pub fn new(policy: Policy) -> Self {
        Self { policy: RwLock::new(Arc::new(policy)), ..Self::default() }
    }

    /// The policy at this moment.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets another policy. What was learned stays: it opens only what the new policy allows.
    pub fn set_policy(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Changes the policy. `apply` puts the new one in force wherever this gate is not asked, such as in the kernel.
    /// Changes are made one after the other, so none is lost.
    ///
    /// # Errors
    /// The change is not valid, or `apply` fails. The old policy stays.
    pub fn change<E: From<PolicyError>>(
        &self,
        change: &Change,
        apply: impl FnOnce(&Policy) -> Result<(), E>,
    ) -> Result<Arc<Policy>, E> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let policy = self.policy().changed(change)?;
        apply(&policy)?;
        self.set_policy(policy);
        Ok(self.policy())
    }

    /// A number that grows with each policy.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Decides about a destination, without a trace.
    pub fn decide(&self, to: &Destination) -> Decision {
        self.policy().decide(to, &self.learned(), Instant::now())
    }

    /// Decides about a new flow: a denial is counted, and an opening that is used lasts longer.
    pub fn admit(&self, to: &Destination) -> Decision {
        let decision = self.decide(to);
        if decision.is_allowed() {
            self.renew(to.address);
        } else {
            self.deny(Denied::Flow(*to), decision.by.to_string());
        }
        decision
    }

    /// Whether a flow that was admitted goes on under the policy of this moment. A flow that was admitted for a name does
    /// not need its opening any more: an opening that ends must not end connections.
    pub fn keeps(&self, to: &Destination, name: Option<&Domain>) -> bool {
        let Some(name) = name else { return self.decide(to).is_allowed() };
        let now = Instant::now();
        let opening = Opening { name: name.clone(), address: to.address, lasts: RENEWED_TIME };
        let learned = self.learned().only(&opening, now);
        self.policy().decide(to, &learned, now).is_allowed()
    }

    /// Makes openings of an address last longer, because a flow uses it.
    pub fn renew(&self, address: IpAddr) {
        self.learned().renew(address, RENEWED_TIME, RENEWED_MAX, Instant::now());
    }

    /// Adds openings.
    pub fn learn<'a>(&self, openings: impl IntoIterator<Item = &'a Opening>) {
        let mut learned = self.learned();
        for opening in openings {
            learned.learn(opening, Instant::now());
        }
    }

    /// Counts something that was denied.
    pub fn deny(&self, what: Denied, by: String) {
        self.denials.lock().unwrap_or_else(PoisonError::into_inner).add(what, by, SystemTime::now());
    }

    /// What was denied so far.
    pub fn denials(&self) -> Denials {
        self.denials.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was learned. Decisions wait while this is held.
    pub fn learned(&self) -> MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct NotApplied;

    impl From<PolicyError> for NotApplied {
        fn from(error: PolicyError) -> Self {
            panic!("{error}")
        }
    }

    fn allow(rule: &str) -> Change {
        Change { allow: vec![rule.parse().expect("a rule")], ..Change::default() }
    }

    #[test]
    fn of_changes_made_at_once_none_is_lost() {
        let gate = Gate::default();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let gate = &gate;
                scope.spawn(move || {
                    // Each apply takes as long as that of a real network, so the changes overlap.
                    let apply = |_: &Policy| {
                        std::thread::sleep(Duration::from_millis(2));
                        Ok::<_, NotApplied>(())
                    };
                    gate.change(&allow(&format!("192.0.2.{number}")), apply).expect("is applied");
                });
            }
        });
        assert_eq!(gate.policy().allow().len(), 8);
        assert_eq!(gate.version(), 8);
    }

    #[test]
    fn a_change_that_can_not_be_applied_changes_nothing() {
        let gate = Gate::default();
        gate.change(&allow("192.0.2.1"), |_| Err(NotApplied)).expect_err("is not applied");
        assert!(gate.policy().allow().is_empty());
        assert_eq!(gate.version(), 0);
    }
}

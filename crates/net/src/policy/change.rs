//! Changes of a policy: what an image, a command line or `kiln net policy` adds to one that exists.

use serde::{Deserialize, Serialize};

use super::rule::Rule;
use super::rules::{Policy, PolicyDefault, PolicyError};

/// A change. The empty change changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Change {
    /// The new default.
    pub default: Option<PolicyDefault>,
    /// Whether to have IPv6.
    pub ipv6: Option<bool>,
    /// Rules to remove, from both lists. This happens before others are added.
    pub remove: Vec<Rule>,
    /// Rules to add to the allow list.
    pub allow: Vec<Rule>,
    /// Rules to add to the deny list.
    pub deny: Vec<Rule>,
}

impl Policy {
    /// The policy after a change. On an error nothing has changed.
    pub fn changed(&self, change: &Change) -> Result<Self, PolicyError> {
        let list = |old: &[Rule], added: &[Rule]| -> Vec<Rule> {
            let kept = old.iter().filter(|rule| !change.remove.contains(rule));
            kept.chain(added).cloned().collect()
        };
        let allow = list(self.allow(), &change.allow);
        let deny = list(self.deny(), &change.deny);
        let default = change.default.unwrap_or(self.default_rule());
        Self::new(default, change.ipv6.unwrap_or(self.has_ipv6()), allow, deny)
    }
}

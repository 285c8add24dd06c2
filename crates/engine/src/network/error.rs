//! Why a VM has no network.

use std::io;

use camino::Utf8PathBuf;
use kiln_net::policy::PolicyError;
use kiln_net::slots::SlotError;

/// Why a VM has no network, or its policy was not changed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Namespaces and rules need root.
    #[error("a network of the kind `nat` needs root")]
    NotRoot,
    /// So does a network of several VMs.
    #[error("a network of several VMs needs root")]
    LabNotRoot,
    /// A network of several VMs can't open names.
    #[error("the rule `{rule}` is by name, which a network of several VMs can't have")]
    RuleByName {
        /// The rule.
        rule: String,
    },
    /// The policy is not that of a VM.
    #[error("the policy is that of the network `{network}`, and does not change")]
    OfNetwork {
        /// Its name.
        network: String,
    },
    /// The network can't be made.
    #[error("failed to make the VM's network")]
    Slot(#[from] SlotError),
    /// The new rules are no policy. The old ones stay.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The socket of the card can't be made.
    #[error("failed to make the socket `{path}` of the VM's network")]
    Socket {
        /// Its path.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The resolver can't be started.
    #[error("failed to start the resolver of the VM's network")]
    Resolver(#[source] io::Error),
}

impl NetworkError {
    /// Whether the request can't be carried out on any host.
    pub fn is_usage(&self) -> bool {
        let Self::Slot(error) = self else {
            return matches!(self, Self::Policy(_) | Self::RuleByName { .. } | Self::OfNetwork { .. });
        };
        matches!(error, SlotError::Name(_) | SlotError::Exists(_) | SlotError::NoNetwork(_) | SlotError::InUse { .. })
    }

    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotRoot => Some("--net user needs no root".into()),
            Self::RuleByName { .. } => Some("allow its addresses, or `public`".into()),
            Self::OfNetwork { .. } => Some("kiln net rm, and kiln net create with other rules".into()),
            Self::Slot(error) => error.hint(),
            Self::Policy(error) => error.hint(),
            Self::LabNotRoot | Self::Socket { .. } | Self::Resolver(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::every_variant::{chains, every_variant};

    #[test]
    fn each_error_has_its_text() {
        let refused = || io::Error::from(io::ErrorKind::PermissionDenied);
        let rule = || "127.0.0.1:80".parse().expect("a rule");
        let policy = kiln_net::policy::Policy::new(kiln_net::policy::PolicyDefault::Deny, false, vec![rule()], vec![]);
        let errors = every_variant!(NetworkError {
            NotRoot: [NetworkError::NotRoot],
            LabNotRoot: [NetworkError::LabNotRoot],
            RuleByName: [NetworkError::RuleByName { rule: "example.org:443".into() }],
            OfNetwork: [NetworkError::OfNetwork { network: "lab".into() }],
            Slot: [NetworkError::Slot(SlotError::Tap(refused()))],
            Policy: [NetworkError::Policy(policy.expect_err("the loopback never opens"))],
            Socket: [NetworkError::Socket { path: "/k/networks".into(), source: refused() }],
            Resolver: [NetworkError::Resolver(refused())],
        });
        insta::assert_snapshot!(chains(&errors, |error| error.hint().into_iter().collect()));
    }
}

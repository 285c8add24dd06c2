//! Arguments of networks: those of `kiln run`, and of `kiln net`.

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use kiln_engine::network::NetworkKind;
use kiln_net::policy::{Change, Policy, PolicyDefault, Rule};

use crate::failure::{Failure, USAGE};

/// The word that opens all public addresses, among rules.
const PUBLIC: &str = "public";

/// How a VM is connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum NetArg {
    /// No network card
    #[default]
    None,
    /// A network namespace with address translation; needs root
    #[value(alias = "bridge")]
    Nat,
    /// Connections made by kiln itself; needs no root
    User,
}

/// What a VM may reach.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct RulesArgs {
    /// Let the VM reach this, and nothing else: a name, address or network, with a port
    ///
    /// Such as example.org, '*.example.net:443', 203.0.113.7, 10.1.0.0/16:5432, udp/192.0.2.53:53, [2001:db8::1]:443. A name
    /// opens the addresses that it resolves to, as long as the answer is valid. `public` opens all public addresses.
    #[arg(long, value_name = "RULE")]
    pub allow: Vec<String>,
    /// Do not let the VM reach this; wins over --allow
    #[arg(long, value_name = "RULE")]
    pub deny: Vec<String>,
}

/// The network of a run.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct NetworkArgs {
    /// Connect the VM to a network: none, nat, user
    ///
    /// Without --allow the VM can reach all public addresses, and no private ones, no metadata service, and nothing on
    /// this host.
    #[arg(long = "net", alias = "network", value_name = "KIND", default_value = "none")]
    pub net: NetArg,
    #[command(flatten)]
    pub rules: RulesArgs,
}

impl NetworkArgs {
    /// The kind and policy; `None` without a network.
    pub fn wanted(&self) -> Result<Option<(NetworkKind, Policy)>, Failure> {
        let kind = match self.net {
            NetArg::None if self.rules.allow.is_empty() && self.rules.deny.is_empty() => return Ok(None),
            NetArg::None => {
                let failure = Failure::words(USAGE, "--allow and --deny need a network");
                return Err(failure.hint("--net nat, or --net user without root"));
            }
            NetArg::Nat => NetworkKind::Nat,
            NetArg::User => NetworkKind::User,
        };
        let Change { default, allow, deny, .. } = self.rules.change()?;
        let none_allowed = if allow.is_empty() { PolicyDefault::Public } else { PolicyDefault::Deny };
        let policy = Policy::new(default.unwrap_or(none_allowed), false, allow, deny).map_err(policy_failure)?;
        Ok(Some((kind, policy)))
    }
}

impl RulesArgs {
    /// The rules as a change of a policy.
    pub fn change(&self) -> Result<Change, Failure> {
        let mut change = Change::default();
        for text in &self.allow {
            match text.as_str() {
                PUBLIC => change.default = Some(PolicyDefault::Public),
                text => change.allow.push(rule("--allow", text)?),
            }
        }
        for text in &self.deny {
            match text.as_str() {
                PUBLIC => change.default = Some(PolicyDefault::Deny),
                text => change.deny.push(rule("--deny", text)?),
            }
        }
        Ok(change)
    }
}

/// Parses a rule of a flag.
pub fn rule(flag: &str, text: &str) -> Result<Rule, Failure> {
    text.parse::<Rule>().map_err(|error| {
        let hint = error.hint();
        Failure::words(USAGE, format!("{flag} {text}: {error}")).maybe_hint(hint)
    })
}

/// A policy that can't be.
pub fn policy_failure(error: kiln_net::policy::PolicyError) -> Failure {
    let hint = error.hint();
    Failure::new(USAGE, error).maybe_hint(hint)
}

/// See and change the networks of running VMs.
///
/// A VM of `kiln run --net` has a network of its own, which ends with it. Name a VM by the --name of its run, or by the
/// id that `kiln net ls` prints.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln net ls\n  \
    kiln net explain web example.org 443\n  \
    kiln net policy web --allow '*.example.net:80' --remove example.org")]
pub struct NetArgs {
    #[command(subcommand)]
    pub command: NetCommand,
}

#[derive(Debug, Subcommand)]
pub enum NetCommand {
    /// List the networks of running VMs, with what they were denied
    #[command(visible_alias = "list")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    Explain(ExplainArgs),
    Policy(PolicyArgs),
}

/// Name the rule that decides whether a VM can reach a destination.
///
/// Exit code 0 if it can, 1 if it can't.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln net explain web example.org 443\n  \
    kiln net explain web 169.254.169.254 80")]
pub struct ExplainArgs {
    /// Name or id of the VM
    pub vm: String,
    /// A name or an address
    pub host: String,
    /// The port
    pub port: u16,
    /// Ask about UDP instead of TCP
    #[arg(long)]
    pub udp: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Show or change what a running VM may reach.
///
/// Without rules, prints the policy. A change holds at once; connections that the new policy does not allow end. Forks
/// of a snapshot have the policy of their own run.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln net policy web\n  \
    kiln net policy web --allow '*.example.net:80' --remove example.org\n  \
    kiln net policy web --deny public")]
pub struct PolicyArgs {
    /// Name or id of the VM
    pub vm: String,
    #[command(flatten)]
    pub rules: RulesArgs,
    /// Remove a rule, as it was written, from both lists
    #[arg(long, value_name = "RULE")]
    pub remove: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

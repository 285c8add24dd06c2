//! Arguments of networks: those of `kiln run`, and of `kiln net`.

use clap::{Args as ClapArgs, Subcommand};
use kiln_engine::network::NetworkKind;
use kiln_net::policy::{Change, Policy, PolicyDefault, Rule};

use crate::failure::{Failure, USAGE};

/// The word that opens all public addresses, among rules.
const PUBLIC: &str = "public";

/// How a VM is connected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NetArg {
    /// No network card.
    #[default]
    None,
    /// A network namespace with address translation; needs root.
    Nat,
    /// Connections made by kiln itself; needs no root.
    User,
    /// A network of `kiln net create`, with other VMs; needs root.
    Named(String),
}

/// The network that a run asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WantedNetwork {
    /// One of its own.
    Alone(NetworkKind, Box<Policy>),
    /// A place in one that it shares.
    Shared(String),
}

impl WantedNetwork {
    /// How it gets out.
    pub fn kind(&self) -> NetworkKind {
        match self {
            Self::Alone(kind, _) => *kind,
            Self::Shared(_) => NetworkKind::Lab,
        }
    }
}

/// Longest name of a network that VMs share.
const NAME_BYTES_MAX: usize = 32;

/// `bridge` is docker's word for a network with address translation.
fn parse_net(text: &str) -> Result<NetArg, String> {
    let is_name = (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    Ok(match text {
        "host" | "default" => {
            return Err("a VM has no network of docker; use none, nat, user or a name of `kiln net ls`".into());
        }
        "none" => NetArg::None,
        "nat" | "bridge" => NetArg::Nat,
        "user" => NetArg::User,
        name if is_name => NetArg::Named(name.to_owned()),
        _ => return Err("use none, nat, user or the name of a network, which has 1 to 32 of [a-z0-9-]".into()),
    })
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
    /// Connect the VM to a network: none, nat, user, or the name of one that VMs share
    ///
    /// `nat` needs root and is fast, `user` needs no root. `kiln net create NAME` makes a network that several VMs share, and
    /// each of them reaches the others by their --name.
    ///
    /// Without --allow the VM can reach all public addresses, and no private ones, no metadata service, and nothing on
    /// this host.
    #[arg(long = "net", alias = "network", value_name = "KIND", default_value = "none", value_parser = parse_net)]
    pub net: NetArg,
    #[command(flatten)]
    pub rules: RulesArgs,
}

impl NetworkArgs {
    /// What is wanted; `None` without a network. A VM in a shared network needs a name.
    pub fn wanted(&self, name: Option<&str>) -> Result<Option<WantedNetwork>, Failure> {
        let has_rules = !self.rules.allow.is_empty() || !self.rules.deny.is_empty();
        let kind = match &self.net {
            NetArg::None if !has_rules => return Ok(None),
            NetArg::None => {
                let failure = Failure::words(USAGE, "--allow and --deny need a network");
                return Err(failure.hint("--net nat, or --net user without root"));
            }
            NetArg::Nat => NetworkKind::Nat,
            NetArg::User => NetworkKind::User,
            NetArg::Named(network) if has_rules => {
                let words = format!("--allow and --deny: what leaves the network `{network}` was set when it was made");
                return Err(Failure::words(USAGE, words).hint("kiln net create has --allow and --deny"));
            }
            NetArg::Named(network) => {
                let named = name.is_some_and(|name| kiln_net::policy::Domain::new(name).is_ok());
                if !named {
                    let words = format!("a VM in the network `{network}` needs a name that others can ask for");
                    return Err(Failure::words(USAGE, words).hint("--name web"));
                }
                return Ok(Some(WantedNetwork::Shared(network.clone())));
            }
        };
        let Change { default, allow, deny, .. } = self.rules.change()?;
        let none_allowed = if allow.is_empty() { PolicyDefault::Public } else { PolicyDefault::Deny };
        let policy = Policy::new(default.unwrap_or(none_allowed), false, allow, deny).map_err(policy_failure)?;
        Ok(Some(WantedNetwork::Alone(kind, Box::new(policy))))
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

/// See and change the networks of running VMs, and make networks that several VMs share.
///
/// A VM of `kiln run --net` has a network of its own, which ends with it. Name a VM by the --name of its run, or by the
/// id that `kiln net ls` prints.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln net ls\n  \
    kiln net create lab\n  \
    kiln net explain web example.org 443\n  \
    kiln net policy web --allow '*.example.net:80' --remove example.org")]
pub struct NetArgs {
    #[command(subcommand)]
    pub command: NetCommand,
}

#[derive(Debug, Subcommand)]
pub enum NetCommand {
    Create(CreateArgs),
    Rm(RemoveArgs),
    /// List the networks of running VMs, with what they were denied, and the networks that VMs share
    #[command(visible_alias = "list")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    Explain(ExplainArgs),
    Policy(PolicyArgs),
}

/// Make a network that several VMs share.
///
/// VMs of `kiln run --net NAME --name VM` reach each other, by the names of their runs. Nothing leaves the network,
/// unless --allow opens it. The network stays until `kiln net rm`. Needs root.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln net create lab\n  \
    kiln net create lab --allow public --deny '*:25'")]
pub struct CreateArgs {
    /// Its name: 1 to 32 of `[a-z0-9-]`
    pub name: String,
    /// Let the VMs reach this outside of the network: an address or a network, with a port, or `public`
    ///
    /// Such as 203.0.113.7, 10.1.0.0/16:5432, udp/192.0.2.53:53. Names are not possible here.
    #[arg(long, value_name = "RULE")]
    pub allow: Vec<String>,
    /// Do not let the VMs reach this; wins over --allow
    #[arg(long, value_name = "RULE")]
    pub deny: Vec<String>,
}

/// Remove networks that VMs shared. Refuses if a VM uses one.
#[derive(Debug, ClapArgs)]
pub struct RemoveArgs {
    /// Their names
    #[arg(required = true)]
    pub names: Vec<String>,
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

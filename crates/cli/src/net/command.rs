//! `kiln net …`: from arguments to requests, from replies to tables.

use std::net::Ipv4Addr;

use comfy_table::{Table, presets};
use kiln_engine::network::{Labs, NetworkKind};
use kiln_net::policy::{Change, Policy, PolicyDefault, Protocol};
use kiln_net::slots::{MemberAbout, Network};
use serde::Serialize;

use super::client;
use super::message::{Reply, Request, Status};
use crate::args::network::{
    CreateArgs, ExplainArgs, NetArgs, NetCommand, PolicyArgs, RemoveArgs, RulesArgs, policy_failure, rule,
};
use crate::engine_failure::network_failure;
use crate::failure::Failure;
use crate::image::home;
use crate::output::{plain, print, print_json};

/// Runs `kiln net …`.
pub fn run(args: NetArgs) -> Result<u8, Failure> {
    match args.command {
        NetCommand::Create(args) => create(&args),
        NetCommand::Rm(args) => remove(&args),
        NetCommand::Ls { json } => list(json),
        NetCommand::Explain(args) => explain(&args),
        NetCommand::Policy(args) => policy(&args),
    }
}

fn list(json: bool) -> Result<u8, Failure> {
    let home = home()?;
    let vms = client::list(&home)?;
    // They need root, so another user has none.
    let networks = if rustix::process::geteuid().is_root() {
        Labs::open(&home).and_then(|labs| labs.list()).map_err(network_failure)?
    } else {
        Vec::new()
    };
    if json {
        let networks = networks.iter().map(Shared::from).collect();
        print_json(&Listed { vms, networks })?;
        return Ok(0);
    }
    print(table(&vms))?;
    if !networks.is_empty() {
        print("")?;
        print(networks_table(&networks))?;
    }
    Ok(0)
}

/// What `kiln net ls --json` prints.
#[derive(Serialize)]
struct Listed {
    vms: Vec<Status>,
    networks: Vec<Shared>,
}

/// A network that VMs share.
#[derive(Serialize)]
struct Shared {
    name: String,
    policy: Policy,
    vms: Vec<Place>,
}

#[derive(Serialize)]
struct Place {
    name: String,
    address: Ipv4Addr,
}

impl From<&Network> for Shared {
    fn from(network: &Network) -> Self {
        let place = |member: &MemberAbout| Place { name: member.name.clone(), address: member.address };
        let vms = network.members.iter().map(place).collect();
        Self { name: network.name.clone(), policy: network.policy.clone(), vms }
    }
}

fn networks_table(networks: &[Network]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NETWORK", "POLICY", "VMS"]);
    for network in networks {
        let member = |member: &MemberAbout| format!("{} {}", plain(&member.name), member.address);
        let members = network.members.iter().map(member).collect::<Vec<_>>().join(", ");
        table.add_row([network.name.clone(), summary(&network.policy), members]);
    }
    table
}

fn create(args: &CreateArgs) -> Result<u8, Failure> {
    let rules = RulesArgs { allow: args.allow.clone(), deny: args.deny.clone() };
    let Change { default, allow, deny, .. } = rules.change()?;
    let policy = Policy::new(default.unwrap_or_default(), false, allow, deny).map_err(policy_failure)?;
    Labs::open(&home()?).and_then(|labs| labs.create(&args.name, &policy)).map_err(network_failure)?;
    Ok(0)
}

fn remove(args: &RemoveArgs) -> Result<u8, Failure> {
    let labs = Labs::open(&home()?).map_err(network_failure)?;
    args.names.iter().try_for_each(|name| labs.remove(name)).map_err(network_failure)?;
    Ok(0)
}

fn table(found: &[Status]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["VM", "NAME", "NETWORK", "POLICY", "DENIED"]);
    for one in found {
        let kind = match one.kind {
            NetworkKind::Nat => "nat".to_owned(),
            NetworkKind::User => "user".to_owned(),
            NetworkKind::Lab => one.network.clone().unwrap_or_default(),
        };
        let name = one.name.clone().unwrap_or_else(|| "-".into());
        table.add_row([one.vm.clone(), plain(&name), kind, summary(&one.policy), one.denied.to_string()]);
    }
    table
}

/// A policy on one line.
fn summary(policy: &Policy) -> String {
    let default = match policy.default_rule() {
        PolicyDefault::Public => "public",
        PolicyDefault::Deny => "deny",
    };
    format!("{default}, {} allowed, {} denied", policy.allow().len(), policy.deny().len())
}

fn explain(args: &ExplainArgs) -> Result<u8, Failure> {
    let protocol = if args.udp { Protocol::Udp } else { Protocol::Tcp };
    let request = Request::Explain { host: args.host.clone(), port: args.port, protocol };
    let reply = client::ask(&home()?, &args.vm, &request)?;
    let Reply::Explained { is_allowed, text, report } = reply else { return Err(odd()) };
    if args.json {
        print_json(&report)?;
    } else {
        for line in text.lines() {
            print(plain(line))?;
        }
    }
    Ok(u8::from(!is_allowed))
}

fn policy(args: &PolicyArgs) -> Result<u8, Failure> {
    let remove = args.remove.iter().map(|text| rule("--remove", text)).collect::<Result<_, _>>()?;
    let change = Change { remove, ..args.rules.change()? };
    let request = if change == Change::default() { Request::Status } else { Request::Change(change) };
    let Reply::Status(status) = client::ask(&home()?, &args.vm, &request)? else { return Err(odd()) };
    if args.json {
        print_json(&status.policy)?;
        return Ok(0);
    }
    print(summary(&status.policy))?;
    for (what, rules) in [("allow", status.policy.allow()), ("deny", status.policy.deny())] {
        for rule in rules {
            print(format!("{what} {rule}"))?;
        }
    }
    Ok(0)
}

fn odd() -> Failure {
    Failure::words(1, "the owner of the VM answered another question")
}

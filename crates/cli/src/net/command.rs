//! `kiln net …`: from arguments to requests, from replies to tables.

use comfy_table::{Table, presets};
use kiln_engine::network::NetworkKind;
use kiln_net::policy::{Change, Policy, PolicyDefault, Protocol};

use super::client;
use super::message::{Reply, Request, Status};
use crate::args::network::{ExplainArgs, NetArgs, NetCommand, PolicyArgs, rule};
use crate::failure::Failure;
use crate::image::home;
use crate::output::{plain, print, print_json};

/// Runs `kiln net …`.
pub fn run(args: NetArgs) -> Result<u8, Failure> {
    match args.command {
        NetCommand::Ls { json } => list(json),
        NetCommand::Explain(args) => explain(&args),
        NetCommand::Policy(args) => policy(&args),
    }
}

fn list(json: bool) -> Result<u8, Failure> {
    let found = client::list(&home()?)?;
    if json {
        print_json(&found)?;
    } else {
        print(table(&found))?;
    }
    Ok(0)
}

fn table(found: &[Status]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["VM", "NAME", "KIND", "POLICY", "DENIED"]);
    for one in found {
        let kind = match one.kind {
            NetworkKind::Nat => "nat",
            NetworkKind::User => "user",
        };
        let name = one.name.clone().unwrap_or_else(|| "-".into());
        table.add_row([one.vm.clone(), plain(&name), kind.into(), summary(&one.policy), one.denied.to_string()]);
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

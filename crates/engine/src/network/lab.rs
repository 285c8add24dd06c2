//! A place in a network of several VMs, see [`kiln_net::slots::Networks`].
//!
//! The network has its policy, and stays when its last VM ends. This process answers names for the network, too, as the
//! owner of each member does.

use std::sync::Arc;

use camino::Utf8PathBuf;
use kiln_net::gate::Gate;
use kiln_net::inner::MTU;
use kiln_net::names::{NoSink, Resolver, Upstream};
use kiln_net::policy::Policy;
use kiln_net::slots::{Member, MemberAbout, Networks, SlotTap, SlotsConfig};
use kiln_wire::{Interface, Network};
use tokio::task::JoinSet;

use super::error::NetworkError;
use super::resolver;
use crate::blocking::{OffRuntime, blocking};
use crate::engine::NicPart;
use crate::home::Home;
use crate::spec::{Attachment, Tap};

/// A place, and the tasks that answer names.
#[derive(Debug)]
pub(super) struct Lab {
    tasks: JoinSet<()>,
    /// Its drop gives up the place, which takes milliseconds.
    member: OffRuntime<Member>,
    pub(super) network: String,
    about: MemberAbout,
    tap: SlotTap,
    prefix: u8,
    gateway: std::net::Ipv4Addr,
}

/// The networks of a home.
///
/// # Errors
/// [`NetworkError::LabNotRoot`]; or their journal can't be opened.
pub(super) fn networks(home: &Home) -> Result<Networks, NetworkError> {
    if !rustix::process::geteuid().is_root() {
        return Err(NetworkError::LabNotRoot);
    }
    let directory: Utf8PathBuf = home.networks().join("slots");
    Ok(Networks::open(SlotsConfig::new(directory))?)
}

impl Lab {
    /// Gives a VM a place. Returns the gate of the network's policy.
    pub(super) async fn join(home: &Home, network: &str, vm: &str) -> Result<(Self, Arc<Gate>), NetworkError> {
        let (home, name, vm) = (home.clone(), network.to_owned(), vm.to_owned());
        let (member, sockets) = blocking(move || {
            let networks = networks(&home)?;
            networks.recover()?;
            let member = networks.join(&name, &vm)?;
            let sockets = member.resolver_sockets()?;
            Ok::<_, NetworkError>((OffRuntime::new(member), sockets))
        })
        .await?;
        let gate = Arc::new(Gate::new(member.policy().clone()));
        // A network has no rules by name, so what the resolver learns opens nothing.
        let resolver = Resolver::new(Arc::clone(&gate), Arc::new(NoSink), Upstream::default());
        let resolver = Arc::new(resolver.with_neighbours(Arc::new(member.names())));
        let mut tasks = JoinSet::new();
        resolver::serve(&resolver, sockets, &mut tasks)?;
        let (about, tap, (prefix, gateway)) = (member.about().clone(), member.tap(), member.network());
        Ok((Self { tasks, member, network: network.to_owned(), about, tap, prefix, gateway }, gate))
    }

    pub(super) fn nic(&self) -> NicPart {
        let SlotTap { device, namespace } = self.tap.clone();
        let text = self.about.mac.map(|byte| format!("{byte:02x}")).join(":");
        let mac = Some(text.parse().expect("the address of a member is one of a machine"));
        NicPart { mac, attachment: Attachment::Tap(Tap { device, namespace: Some(namespace) }) }
    }

    pub(super) fn guest(&self) -> Network {
        let (address, prefix, gateway) = (self.about.address, self.prefix, Some(self.gateway));
        let interface = Interface { address, prefix, gateway, mtu: Some(MTU) };
        Network { interfaces: vec![interface], nameservers: vec![self.gateway] }
    }

    /// Gives up the place.
    pub(super) async fn stop(self) -> Result<(), NetworkError> {
        let Self { mut tasks, member, .. } = self;
        tasks.shutdown().await;
        Ok(blocking(move || member.into_inner().leave()).await?)
    }
}

/// Whether a policy fits a network: it can't have rules by name, because no process keeps their addresses open.
pub(super) fn check(policy: &Policy) -> Result<(), NetworkError> {
    use kiln_net::policy::Target;
    let by_name = policy.allow().iter().find(|rule| matches!(rule.target, Target::Name(_)));
    by_name.map_or(Ok(()), |rule| Err(NetworkError::RuleByName { rule: rule.to_string() }))
}

//! A VM's network of either kind.

use std::sync::Arc;

use kiln_net::gate::{Denial, Denials, Gate};
use kiln_net::inner::{GATEWAY, GUEST, GUEST_MAC, MTU, PREFIX};
use kiln_net::policy::{Change, Policy};
use kiln_wire::{Interface, Network};
use serde::{Deserialize, Serialize};

use super::error::NetworkError;
use super::lab::Lab;
use super::nat::Nat;
use super::user::User;
use crate::engine::NicPart;
use crate::home::Home;
use crate::spec::{Attachment, MacAddress, Nic};

/// How a VM gets out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkKind {
    /// A network namespace of its own, a TAP device, and address translation. Needs root.
    Nat,
    /// This process makes each connection. Needs no root.
    User,
    /// A network that it shares with other VMs, see [`VmNetwork::join`]. Needs root.
    Lab,
}

/// A request for a network.
#[derive(Debug, Clone)]
pub struct NetworkRequest {
    /// How the VM gets out.
    pub kind: NetworkKind,
    /// What it may reach.
    pub policy: Policy,
    /// What it is for, for lists of networks: the VM's name.
    pub label: String,
}

/// What a network does now.
#[derive(Debug, Clone)]
pub struct NetworkStatus {
    /// How the VM gets out.
    pub kind: NetworkKind,
    /// The network that it shares with other VMs.
    pub network: Option<String>,
    /// What it may reach.
    pub policy: Arc<Policy>,
    /// How often it was denied something.
    pub denied: u64,
    /// The last things that it was denied and what decided, as text for users. The newest is first, as far as that is
    /// known.
    pub denials: Vec<String>,
}

/// The network of one VM. It ends when this is dropped.
///
/// ```no_run
/// # async fn example(
/// #     engine: &dyn kiln_engine::Engine,
/// #     home: &kiln_engine::home::Home,
/// #     spec: kiln_engine::VmSpec,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// use kiln_engine::network::{NetworkKind, NetworkRequest, VmNetwork};
/// use kiln_engine::{ForkPart, ForkSpec, ReadyRequest, VmSpec};
/// use kiln_net::policy::{Policy, PolicyDefault};
/// use std::time::Duration;
///
/// let policy = Policy::new(PolicyDefault::Deny, false, vec!["example.org:443".parse()?], vec![])?;
/// let request = NetworkRequest { kind: NetworkKind::Nat, policy, label: "web".into() };
/// let network = VmNetwork::start(home, request).await?;
///
/// let spec = VmSpec { nics: vec![VmNetwork::card(NetworkKind::Nat)], ..spec };
/// let request = ReadyRequest::new(&spec, "web", Duration::from_secs(60));
/// let ready = engine.ready(ReadyRequest { network: VmNetwork::ready(NetworkKind::Nat), ..request }).await?;
/// let part = ForkPart { nics: vec![network.nic()], network: Some(network.guest()), ..ForkPart::default() };
/// let forks = engine.restore(&ready, ForkSpec { parts: vec![part], ..ForkSpec::default() }).await?;
/// # drop(forks);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct VmNetwork {
    gate: Arc<Gate>,
    side: Side,
}

#[derive(Debug)]
enum Side {
    Nat(Nat),
    User(User),
    Lab(Box<Lab>),
}

impl VmNetwork {
    /// Makes a network of the kind [`Nat`](NetworkKind::Nat) or [`User`](NetworkKind::User), with its rules in place.
    ///
    /// # Errors
    /// [`NetworkError`]. Nothing of the network is left then.
    pub async fn start(home: &Home, request: NetworkRequest) -> Result<Self, NetworkError> {
        let gate = Arc::new(Gate::new(request.policy));
        let side = match request.kind {
            NetworkKind::Nat => Side::Nat(Nat::start(home, &request.label, &gate).await?),
            NetworkKind::User => Side::User(User::start(home, &gate).await?),
            // A place in it has a name, which others must not have.
            NetworkKind::Lab => return Self::join(home, &request.label, &request.label).await,
        };
        Ok(Self { gate, side })
    }

    /// Gives a VM a place in a network that it shares with others, which know it by its name.
    ///
    /// # Errors
    /// [`NetworkError`]. Nothing of the place is left then.
    pub async fn join(home: &Home, network: &str, vm: &str) -> Result<Self, NetworkError> {
        let (lab, gate) = Lab::join(home, network, vm).await?;
        Ok(Self { gate, side: Side::Lab(Box::new(lab)) })
    }

    /// The card of a spec whose VM or forks get a network of this kind. Each guest has the same address, because each is
    /// alone in its network: then a fork's address is not changed, and one ready-made snapshot serves all of a kind.
    pub fn card(kind: NetworkKind) -> Nic {
        let attachment = match kind {
            NetworkKind::Nat | NetworkKind::Lab => Attachment::Idle,
            NetworkKind::User => Attachment::Unplugged,
        };
        Nic { mac: Self::mac(), attachment }
    }

    /// What connects a fork's card to this network.
    pub fn nic(&self) -> NicPart {
        let attachment = match &self.side {
            Side::Nat(nat) => nat.attachment(),
            Side::User(user) => user.attachment(),
            Side::Lab(lab) => return lab.nic(),
        };
        NicPart { mac: Some(Self::mac()), attachment }
    }

    /// The addresses inside the guest, for [`ForkPart::network`](crate::ForkPart::network) or a
    /// [`Renewal`](crate::link::Renewal).
    pub fn guest(&self) -> Network {
        match &self.side {
            Side::Nat(_) | Side::User(_) => Self::alone(),
            Side::Lab(lab) => lab.guest(),
        }
    }

    /// The addresses inside the guest that a ready-made snapshot can have already, for
    /// [`ReadyRequest::network`](crate::ReadyRequest::network): those that are the same for each VM of the kind.
    pub fn ready(kind: NetworkKind) -> Option<Network> {
        match kind {
            NetworkKind::Nat | NetworkKind::User => Some(Self::alone()),
            NetworkKind::Lab => None,
        }
    }

    fn alone() -> Network {
        let interface = Interface { address: GUEST, prefix: PREFIX, gateway: Some(GATEWAY), mtu: Some(MTU) };
        Network { interfaces: vec![interface], nameservers: vec![GATEWAY] }
    }

    /// Its policy, and what was learned and denied.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// What it does now.
    ///
    /// # Errors
    /// The counters of its rules can't be read.
    pub async fn status(&self) -> Result<NetworkStatus, NetworkError> {
        // Names are refused by the resolver, with either kind. Flows are refused by this process, or by the kernel,
        // which knows only where they wanted to go.
        let Denials { count, last } = self.gate.denials();
        let shown = |denial: &Denial| format!("{}: {}", denial.what, denial.by);
        let mut status = NetworkStatus {
            kind: NetworkKind::User,
            network: None,
            policy: self.gate.policy(),
            denied: count,
            denials: last.iter().rev().map(shown).collect(),
        };
        if let Side::Nat(nat) = &self.side {
            let (refused, destinations) = nat.refusals().await?;
            status.kind = NetworkKind::Nat;
            status.denied += refused;
            let decided = destinations.iter().map(|to| format!("{to}: {}", self.gate.decide(to).by));
            status.denials.extend(decided);
        }
        if let Side::Lab(lab) = &self.side {
            (status.kind, status.network) = (NetworkKind::Lab, Some(lab.network.clone()));
        }
        Ok(status)
    }

    /// Changes the policy. Connections that the new one does not open end.
    ///
    /// # Errors
    /// [`NetworkError`]. The old policy stays.
    pub async fn change(&self, change: &Change) -> Result<Arc<Policy>, NetworkError> {
        match &self.side {
            Side::Nat(nat) => nat.change(change.clone(), &self.gate).await,
            // It asks the gate about each flow.
            Side::User(_) => self.gate.change(change, |_| Ok(())),
            Side::Lab(lab) => Err(NetworkError::OfNetwork { network: lab.network.clone() }),
        }
    }

    /// Ends it. A drop does the same in the background, and reports nothing.
    ///
    /// # Errors
    /// Something of it can't be removed. The next start of a network tries again.
    pub async fn stop(self) -> Result<(), NetworkError> {
        match self.side {
            Side::Nat(nat) => nat.stop().await,
            Side::User(_) => Ok(()),
            Side::Lab(lab) => lab.stop().await,
        }
    }

    fn mac() -> MacAddress {
        let text = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        text.parse().expect("a constant")
    }
}

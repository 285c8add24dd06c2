//! The network as root: a slot with its TAP device and rules.
//!
//! A task looks after the slot. Names whose addresses are in use stay open, so that a program which connects again
//! without asking is not cut off. And if another program has flushed or changed the rules, the guest is no longer held
//! to its policy: the task applies the policy again, or takes the link down.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kiln_net::gate::Gate;
use kiln_net::names::{Opens, Resolver, Upstream};
use kiln_net::policy::{Change, Destination, Opening, Policy};
use kiln_net::slots::{Denial, Obstacle, Slot, SlotTap, Slots, SlotsConfig};
use tokio::task::JoinSet;

use super::error::NetworkError;
use super::resolver;
use crate::blocking::{OffRuntime, blocking};
use crate::home::Home;
use crate::spec::{Attachment, Tap};

/// Time between two looks at a slot. Rules that were flushed are back within this.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// A slot, its tasks, and the shared state.
#[derive(Debug)]
pub(super) struct Nat {
    tasks: JoinSet<()>,
    /// Its drop removes the slot, which takes milliseconds.
    slot: OffRuntime<Shared>,
    tap: SlotTap,
}

/// The slot, which the resolver, the looks and the owner use one at a time. Calls block for milliseconds.
type Shared = Arc<Mutex<Slot>>;

impl Nat {
    /// Makes the slot. The guest can reach what the policy opens as soon as its card is on the TAP device.
    pub(super) async fn start(home: &Home, label: &str, gate: &Arc<Gate>) -> Result<Self, NetworkError> {
        if !rustix::process::geteuid().is_root() {
            return Err(NetworkError::NotRoot);
        }
        let (directory, label, policy) = (home.networks().join("slots"), label.to_owned(), gate.policy());
        let (slot, tap, own, sockets) = blocking(move || {
            let slots = Slots::open(SlotsConfig::new(directory))?;
            for error in slots.recover()?.failed {
                tracing::warn!(%error, "the network of a VM that is gone can't be removed yet");
            }
            let mut slot = slots.acquire(&label, &policy)?;
            let sockets = slot.resolver_sockets()?;
            let own: Vec<IpAddr> = slot.own_addresses().iter().copied().map(IpAddr::V4).collect();
            let tap = slot.tap();
            Ok::<_, NetworkError>((Arc::new(Mutex::new(slot)), tap, own, sockets))
        })
        .await?;
        gate.learned().set_host_addresses(own);
        // The resolver opens in the kernel what it has learned.
        let sink: Arc<dyn Opens> = slot.clone();
        let resolver = Arc::new(Resolver::new(Arc::clone(gate), sink, Upstream::default()));
        let mut tasks = JoinSet::new();
        resolver::serve(&resolver, sockets, &mut tasks)?;
        tasks.spawn(look_after(Arc::clone(&slot), Arc::clone(gate)));
        Ok(Self { tasks, slot: OffRuntime::new(slot), tap })
    }

    pub(super) fn attachment(&self) -> Attachment {
        let SlotTap { device, namespace } = self.tap.clone();
        Attachment::Tap(Tap { device, namespace: Some(namespace) })
    }

    /// Changes the rules and the gate. If that fails, the old policy stays.
    ///
    /// If the caller is cancelled, the thread still completes the change. So rules and gate never have two policies.
    pub(super) async fn change(&self, change: Change, gate: &Arc<Gate>) -> Result<Arc<Policy>, NetworkError> {
        let (slot, gate) = (Arc::clone(&*self.slot), Arc::clone(gate));
        blocking(move || {
            let mut slot = lock(&slot);
            gate.change(&change, |policy| Ok(slot.apply(policy, &openings(&gate))?))
        })
        .await
    }

    /// How many packets the rules refused, and the destinations of the last ones.
    pub(super) async fn refusals(&self) -> Result<(u64, Vec<Destination>), NetworkError> {
        let slot = Arc::clone(&*self.slot);
        let listed = blocking(move || {
            let mut slot = lock(&slot);
            Ok::<_, NetworkError>((slot.counters()?, slot.denials()?))
        });
        let (counters, denials) = listed.await?;
        let count = counters.iter().filter(|counter| counter.is_refusal()).map(|counter| counter.packets).sum();
        Ok((count, denials.iter().map(Denial::destination).collect()))
    }

    /// Removes the slot.
    pub(super) async fn stop(self) -> Result<(), NetworkError> {
        let Self { mut tasks, slot, .. } = self;
        tasks.shutdown().await;
        // The tasks have ended, so this is the last handle, unless a look still runs on its thread. That drops it.
        let removed = blocking(move || match Arc::into_inner(slot.into_inner()) {
            Some(slot) => slot.into_inner().unwrap_or_else(PoisonError::into_inner).release(),
            None => Ok(()),
        });
        Ok(removed.await?)
    }
}

fn lock(slot: &Shared) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is open for names now.
fn openings(gate: &Gate) -> Vec<Opening> {
    gate.learned().openings(Instant::now())
}

async fn look_after(slot: Shared, gate: Arc<Gate>) {
    // This starts a program, so the VM does not wait for it.
    match blocking(Slots::obstacles).await {
        Ok(obstacles) => obstacles.iter().for_each(|obstacle| {
            let Obstacle { table, chain } = obstacle;
            tracing::warn!(table, chain, "the chain drops packets of the VM's network, unless a rule lets them pass");
        }),
        Err(error) => tracing::warn!(%error, "the rules of this host can't be listed"),
    }
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let (slot, gate) = (Arc::clone(&slot), Arc::clone(&gate));
        blocking(move || look(&mut lock(&slot), &gate)).await;
    }
}

fn look(slot: &mut Slot, gate: &Gate) {
    match slot.check() {
        Ok(Ok(())) => {}
        Ok(Err(fault)) => {
            tracing::error!(%fault, "the rules of a VM's network were changed; applying them again");
            if let Err(error) = slot.apply(&gate.policy(), &openings(gate)) {
                tracing::error!(%error, "the rules can't be applied; taking the VM's link down");
                if let Err(error) = slot.close() {
                    tracing::error!(%error, "the VM's link can't be taken down");
                }
            }
        }
        Err(error) => tracing::warn!(%error, "the rules of a VM's network can't be read"),
    }
    if let Err(error) = slot.renew(gate) {
        tracing::warn!(%error, "addresses in use can't be kept open");
    }
}

//! All slots of one Kiln home.
//!
//! ```text
//!   acquire ─▶ a slot with an owner ─▶ drop: removed
//!                   │ leave                │ the owner is killed
//!                   ▼                      ▼
//!              a slot without an owner: recover removes it, unless a VMM has its TAP device open; adopt takes it
//! ```

use std::io;
use std::sync::Arc;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use super::build;
use super::device;
use super::error::SlotError;
use super::host::{self, Obstacle, RANGES, Shared, SlotRange};
use super::journal::{Entry, Journal, SlotId};
use super::link;
use super::namespace::Namespace;
use super::netlink::Netlink;
use super::nftables;
use super::rules::{Place, TAP};
use super::slot::Slot;
use crate::policy::Policy;

/// Where slots are kept, and which addresses they take.
#[derive(Debug, Clone)]
pub struct SlotsConfig {
    /// The journal of this Kiln home.
    pub directory: Utf8PathBuf,
    /// What all Kiln homes of the host share. It is lost at a restart of the host, as all networks are.
    pub shared: Utf8PathBuf,
    /// Ranges of addresses, in the order in which they are tried.
    pub ranges: Vec<SlotRange>,
    /// Called after each step of a slot's life. Tests stop the process there.
    #[doc(hidden)]
    pub on_step: fn(Step),
}

/// The steps of a slot's life, in their order. A process can be killed after each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The journal has the slot's id.
    Journaled,
    /// The namespace has its file.
    Namespace,
    /// The TAP device exists.
    Tap,
    /// The rules inside are applied.
    InnerRules,
    /// The pair of links exists.
    Links,
    /// The host forwards.
    Forwarding,
    /// The rules on the host are applied.
    HostRules,
    /// The links have addresses and are up.
    Addresses,
    /// The slot is ready.
    Ready,
    /// A removal deleted the links.
    LinksGone,
    /// A removal deleted the rules on the host.
    HostRulesGone,
    /// A removal deleted the namespace.
    NamespaceGone,
    /// The journal forgot the slot.
    Forgotten,
}

/// What is known about a slot without its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// What the owner uses it for, such as the name of a VM.
    pub label: String,
    /// The process that owns it.
    pub owner: u32,
    /// The address from which its packets come to the host.
    pub address: std::net::Ipv4Addr,
    /// The policy that was applied last. A new owner applies it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

/// What [`Slots::recover`] did.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Slots of dead owners, now removed.
    pub removed: Vec<SlotId>,
    /// Slots of dead owners whose VM still runs, see [`Slots::adopt`].
    pub in_use: Vec<SlotId>,
    /// Slots that could not be removed. The next recovery tries again.
    pub failed: Vec<SlotError>,
}

/// Makes, finds and removes the network slots of one Kiln home.
#[derive(Debug, Clone)]
pub struct Slots {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) config: SlotsConfig,
    pub(super) journal: Journal,
    pub(super) shared: Shared,
}

impl SlotsConfig {
    /// Slots with their journal in this directory.
    pub fn new(directory: impl Into<Utf8PathBuf>) -> Self {
        let shared = "/run/kiln-net".into();
        Self { directory: directory.into(), shared, ranges: RANGES.to_vec(), on_step: |_| {} }
    }
}

impl Slots {
    /// Opens the journal. Removes nothing, see [`Slots::recover`].
    pub fn open(config: SlotsConfig) -> Result<Self, SlotError> {
        Ok(Self { inner: Arc::new(Inner::open(config)?) })
    }

    /// Makes a slot under this policy. Its link is up, and its rules are in place.
    pub fn acquire(&self, label: &str, policy: &Policy) -> Result<Slot, SlotError> {
        build::slot(&self.inner, label, Place::SLOT, Some(policy))
    }

    /// Makes a slot without a policy. Its link is down until [`Slot::apply`].
    pub fn prepare(&self, label: &str) -> Result<Slot, SlotError> {
        build::slot(&self.inner, label, Place::SLOT, None)
    }

    /// Takes over a slot without an owner: that of a VM that outlived its owner. The caller applies the policy again,
    /// see [`About::policy`].
    pub fn adopt(&self, id: &SlotId) -> Result<Slot, SlotError> {
        let journal = &self.inner.journal;
        let entry = journal.claim(id).map_err(|source| self.inner.journal_failed(source))?;
        let entry = entry.ok_or_else(|| SlotError::NotFree(id.clone()))?;
        let about = journal.about::<About>(id).ok_or_else(|| SlotError::NotFree(id.clone()))?;
        build::existing(&self.inner, entry, Place::SLOT, &about)
    }

    /// All slots of this home, with and without an owner.
    pub fn list(&self) -> Result<Vec<(SlotId, Option<About>)>, SlotError> {
        let journal = &self.inner.journal;
        let ids = journal.ids().map_err(|source| self.inner.journal_failed(source))?;
        Ok(ids.into_iter().map(|id| (id.clone(), journal.about(&id))).collect())
    }

    /// Removes what dead owners left behind. Several processes may do so at once.
    pub fn recover(&self) -> Result<Recovered, SlotError> {
        let journal = &self.inner.journal;
        let mut recovered = Recovered::default();
        for id in journal.ids().map_err(|source| self.inner.journal_failed(source))? {
            let Some(entry) = journal.claim(&id).map_err(|source| self.inner.journal_failed(source))? else { continue };
            if is_in_use(&Namespace::existing(&entry.namespace())) {
                recovered.in_use.push(id);
                continue;
            }
            match self.inner.remove(entry) {
                Ok(()) => recovered.removed.push(id),
                Err(error) => recovered.failed.push(error),
            }
        }
        // An owner can be killed after it removed its last slot, and before it took back what that needed.
        self.inner.restore().map_err(SlotError::Links)?;
        Ok(recovered)
    }

    /// What on the host stops packets of slots, although their own rules let them pass.
    pub fn obstacles() -> Result<Vec<Obstacle>, SlotError> {
        Ok(host::obstacles()?)
    }
}

impl Inner {
    pub(super) fn open(config: SlotsConfig) -> Result<Self, SlotError> {
        let failed = |directory: &Utf8PathBuf, source| SlotError::Journal { directory: directory.clone(), source };
        let journal = Journal::open(&config.directory).map_err(|source| failed(&config.directory, source))?;
        let shared = Shared::open(&config.shared).map_err(|source| failed(&config.shared, source))?;
        Ok(Self { config, journal, shared })
    }

    pub(super) fn step(&self, step: Step) {
        (self.config.on_step)(step);
    }

    pub(super) fn journal_failed(&self, source: io::Error) -> SlotError {
        SlotError::Journal { directory: self.config.directory.clone(), source }
    }

    /// Removes all that may exist of a slot. Each part may be missing, because an earlier attempt ended halfway, or
    /// another program removed it.
    ///
    /// The links go first. Deleting the namespace deletes them as well, but the kernel does that later, on its own, and
    /// a link would be listed for a moment. Flows that the namespace tracks end with it.
    pub(super) fn remove(&self, entry: Entry) -> Result<(), SlotError> {
        let id = entry.id().clone();
        let failed = |source| SlotError::Remove { id: id.clone(), source };
        self.remove_parts(&entry)?;
        entry.remove().map_err(failed)?;
        self.step(Step::Forgotten);
        self.restore().map_err(failed)
    }

    /// Removes all of a slot except its place in the journal.
    pub(super) fn remove_parts(&self, entry: &Entry) -> Result<(), SlotError> {
        let id = entry.id().clone();
        let failed = |source| SlotError::Remove { id: id.clone(), source };
        let name = id.link();
        let mut netlink = Netlink::route().map_err(failed)?;
        match netlink.send([link::delete(&name)]) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            other => other.map_err(failed)?,
        }
        self.step(Step::LinksGone);
        nftables::delete_table(&mut Netlink::netfilter().map_err(failed)?, &name).map_err(failed)?;
        self.step(Step::HostRulesGone);
        Namespace::existing(&entry.namespace()).remove().map_err(failed)?;
        self.step(Step::NamespaceGone);
        Ok(())
    }

    pub(super) fn restore(&self) -> io::Result<()> {
        self.shared.hold()?.restore(&mut Netlink::route()?)
    }
}

/// Whether a VMM has the TAP device of a namespace open. A namespace that can't be entered has no VM that could be
/// adopted.
fn is_in_use(namespace: &Namespace) -> bool {
    matches!(namespace.run(|| device::tap_is_open(TAP)), Ok(Ok(true)))
}

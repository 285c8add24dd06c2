//! What all links of an agent share: who may open one, what Hello announces, and when they have to end.

use std::fs;
use std::rc::Rc;

use kiln_wire::{Capability, GoodbyeReason};
use tokio::sync::watch;

/// Shared by all links, one after the other or side by side, for as long as the agent runs.
#[derive(Debug)]
pub struct Links {
    token: Option<String>,
    capabilities: Vec<Capability>,
    boot_id: String,
    ending: watch::Sender<Option<GoodbyeReason>>,
    shutdown_asked: watch::Sender<bool>,
    up: watch::Sender<bool>,
}

impl Links {
    /// Links that require `token`, if there is one, and announce `capabilities`.
    pub fn new(token: Option<String>, capabilities: Vec<Capability>) -> Rc<Self> {
        Rc::new(Self {
            token,
            capabilities,
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned(),
            ending: watch::Sender::new(None),
            shutdown_asked: watch::Sender::new(false),
            up: watch::Sender::new(false),
        })
    }

    /// The token that a host has to send, if it needs one.
    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// What Hello announces.
    pub(super) fn capabilities(&self) -> &[Capability] {
        &self.capabilities
    }

    /// The kernel's boot id.
    pub(super) fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Ends all links, and each one that starts, with this reason.
    pub fn end(&self, reason: GoodbyeReason) {
        self.ending.send_replace(Some(reason));
    }

    /// Lets links start again.
    pub fn may_start(&self) {
        self.ending.send_replace(None);
    }

    /// Waits until links have to end.
    pub(super) async fn ending(&self) -> GoodbyeReason {
        let mut ending = self.ending.subscribe();
        let reason = ending.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or(GoodbyeReason::Shutdown)
    }

    /// The host asked for a shutdown of the machine.
    pub(super) fn host_wants_shutdown(&self) {
        self.shutdown_asked.send_replace(true);
    }

    /// Waits until the host asks for a shutdown of the machine.
    pub async fn shutdown_asked(&self) {
        // The wait can't fail: the sender lives as long as this value.
        let _ = self.shutdown_asked.subscribe().wait_for(|asked| *asked).await;
    }

    /// A host has said Hello.
    pub(super) fn is_up(&self) {
        self.up.send_replace(true);
    }

    /// Waits until a host has said Hello for the first time.
    pub async fn first(&self) {
        let _ = self.up.subscribe().wait_for(|up| *up).await;
    }
}

//! The state that all links of an agent share: the token, the content of Hello, and requests to end.

use std::fs;
use std::rc::Rc;

use kiln_wire::{Capability, GoodbyeReason};
use tokio::sync::watch;

/// Shared by all links for as long as the agent runs.
#[derive(Debug)]
pub struct Links {
    token: Option<String>,
    capabilities: Vec<Capability>,
    boot_id: String,
    ending: watch::Sender<Option<GoodbyeReason>>,
    shutdown_requested: watch::Sender<bool>,
    up: watch::Sender<bool>,
}

impl Links {
    /// Creates the state of links that require `token`, if there is one, and announce `capabilities`.
    pub fn new(token: Option<String>, capabilities: Vec<Capability>) -> Rc<Self> {
        Rc::new(Self {
            token,
            capabilities,
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned(),
            ending: watch::Sender::new(None),
            shutdown_requested: watch::Sender::new(false),
            up: watch::Sender::new(false),
        })
    }

    /// The token that a host must send, if one is required.
    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The capabilities that Hello announces.
    pub(super) fn capabilities(&self) -> &[Capability] {
        &self.capabilities
    }

    /// The kernel's boot id.
    pub(super) fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Ends all links with this reason, and each new link too, until [`allow`](Self::allow) is called.
    pub fn end(&self, reason: GoodbyeReason) {
        self.ending.send_replace(Some(reason));
    }

    /// Allows new links again.
    pub fn allow(&self) {
        self.ending.send_replace(None);
    }

    /// Waits until links must end.
    pub(super) async fn ending(&self) -> GoodbyeReason {
        let mut ending = self.ending.subscribe();
        let reason = ending.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or(GoodbyeReason::Shutdown)
    }

    /// Records that the host requested a shutdown of the machine.
    pub(super) fn request_shutdown(&self) {
        self.shutdown_requested.send_replace(true);
    }

    /// Waits until the host requests a shutdown of the machine.
    pub async fn shutdown_requested(&self) {
        // The wait can't fail: the sender lives as long as this value.
        let _ = self.shutdown_requested.subscribe().wait_for(|requested| *requested).await;
    }

    /// Records that a host has sent Hello.
    pub(super) fn mark_up(&self) {
        self.up.send_replace(true);
    }

    /// Waits until a host has sent Hello for the first time.
    pub async fn first_hello(&self) {
        let _ = self.up.subscribe().wait_for(|up| *up).await;
    }
}

//! QEMU's monitor in the form that the VM's owner uses.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::args::disk_node;
use super::cpus;
use super::qmp::{Qmp, QmpEvent};
use crate::vm::{BoxFuture, ExitReason, Monitor, MonitorEvent, MonitorEvents, VmmError};

impl Monitor for Qmp {
    fn pause(&self, deadline: Duration) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async move { self.execute("stop", None, deadline).await.map(drop) })
    }

    fn resume(&self, deadline: Duration) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async move { self.execute("cont", None, deadline).await.map(drop) })
    }

    fn power_down(&self, deadline: Duration) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async move { self.execute("system_powerdown", None, deadline).await.map(drop) })
    }

    fn grow_disk(&self, disk: usize, bytes: u64, deadline: Duration) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async move {
            let wanted = json!({"node-name": disk_node(disk), "size": bytes});
            self.execute("block_resize", Some(wanted), deadline).await.map(drop)
        })
    }

    fn is_running(&self, deadline: Duration) -> BoxFuture<'_, Result<bool, VmmError>> {
        Box::pin(async move {
            let status = self.execute("query-status", None, deadline).await?;
            Ok(status["running"] == Value::Bool(true))
        })
    }

    fn is_halted(&self, deadline: Duration) -> BoxFuture<'_, Result<bool, VmmError>> {
        Box::pin(cpus::all_halted(self, deadline))
    }
}

/// The texts of ENOSPC and EDQUOT in the C library.
const NO_SPACE: &str = "No space left on device";
const OVER_QUOTA: &str = "Disk quota exceeded";

/// QEMU's events about the guest.
#[derive(Debug)]
pub(super) struct GuestEvents(pub(super) mpsc::Receiver<QmpEvent>);

impl MonitorEvents for GuestEvents {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<MonitorEvent>> {
        loop {
            let Some(event) = ready!(self.0.poll_recv(context)) else { return Poll::Ready(None) };
            if let Some(event) = guest_event(&event) {
                return Poll::Ready(Some(event));
            }
        }
    }
}

fn guest_event(event: &QmpEvent) -> Option<MonitorEvent> {
    match (event.name.as_str(), event.data["reason"].as_str()) {
        ("STOP", _) => Some(MonitorEvent::Paused),
        ("RESUME", _) => Some(MonitorEvent::Resumed),
        ("SHUTDOWN", Some("guest-shutdown")) => Some(MonitorEvent::Ended(ExitReason::GuestPoweredOff)),
        ("SHUTDOWN", Some("guest-reset")) => Some(MonitorEvent::Ended(ExitReason::GuestReset)),
        // `nospace` in this event is set only if QEMU pauses the guest for it.
        ("BLOCK_IO_ERROR", Some(NO_SPACE | OVER_QUOTA)) => Some(MonitorEvent::NoSpace),
        ("SHUTDOWN", Some("guest-panic")) => Some(MonitorEvent::Ended(ExitReason::GuestPanicked)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_of_the_guest_come_through_in_order_and_others_do_not() {
        let (sender, receiver) = mpsc::channel(8);
        let event = |name: &str, data: Value| QmpEvent { name: name.into(), data };
        for event in [
            event("STOP", Value::Null),
            event("MIGRATION", json!({"status": "completed"})),
            event("SHUTDOWN", json!({"reason": "host-signal"})),
            event("RESUME", Value::Null),
            event("BLOCK_IO_ERROR", json!({"nospace": false, "reason": "Input/output error"})),
            event("BLOCK_IO_ERROR", json!({"nospace": false, "reason": "No space left on device"})),
            event("SHUTDOWN", json!({"reason": "guest-reset"})),
        ] {
            sender.send(event).await.expect("has room");
        }
        drop(sender);
        let mut events = GuestEvents(receiver);
        let mut seen = Vec::new();
        while let Some(event) = std::future::poll_fn(|context| events.poll_next(context)).await {
            seen.push(event);
        }
        let ended = MonitorEvent::Ended(ExitReason::GuestReset);
        assert_eq!(seen, [MonitorEvent::Paused, MonitorEvent::Resumed, MonitorEvent::NoSpace, ended]);
    }
}

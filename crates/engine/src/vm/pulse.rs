//! Observes a VM without holding it: the state of its CPUs, and how long they wait for a CPU of the host.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::control::{Command, Cpus, Shared};
use crate::blocking::blocking;

/// Most threads of a VMM that are read. A VMM has few, but one that its guest has taken over can start any number.
const THREADS_MAX: usize = 256;

/// Reads the state of a VM, without keeping the VM alive.
#[derive(Debug)]
pub(crate) struct Pulse {
    pid: u32,
    shared: Arc<Shared>,
    commands: mpsc::WeakSender<Command>,
}

impl Pulse {
    pub(super) fn new(pid: u32, shared: Arc<Shared>, commands: mpsc::WeakSender<Command>) -> Self {
        Self { pid, shared, commands }
    }

    /// The state of the CPUs. `Running` if the VMM does not answer by the deadline.
    pub(crate) async fn cpus(&self, deadline: Duration) -> Cpus {
        if self.shared.saving.load(Ordering::Acquire) {
            return Cpus::Paused;
        }
        let ask = async {
            let (reply, answer) = oneshot::channel();
            self.commands.upgrade()?.send(Command::Cpus(reply)).await.ok()?;
            answer.await.ok()
        };
        timeout(deadline, ask).await.ok().flatten().unwrap_or(Cpus::Running)
    }

    /// How long the VMM's threads have waited for a CPU of the host, summed over all threads since their start. Only
    /// the difference of two values has a meaning.
    pub(crate) async fn waited_for_a_cpu(&self) -> Duration {
        let pid = self.pid;
        blocking(move || waited_for_a_cpu(pid)).await
    }
}

#[expect(clippy::disallowed_methods, reason = "called by `blocking`")]
fn waited_for_a_cpu(pid: u32) -> Duration {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Duration::ZERO };
    let waited = |text: String| text.split_whitespace().nth(1)?.parse().ok();
    let threads = threads.flatten().take(THREADS_MAX);
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
    Duration::from_nanos(stats.filter_map(waited).fold(0, u64::saturating_add))
}

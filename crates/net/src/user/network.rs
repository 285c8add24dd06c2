//! The thread that runs a VM's network.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use tokio::runtime::Handle;

use super::host::HostSockets;
use super::stack::{Counts, Stack};
use crate::gate::Gate;
use crate::names::Resolver;
use crate::policy::Policy;

/// The longest wait without anything to do.
const WAIT: Duration = Duration::from_secs(1);

/// A port of the host that leads to a port of the guest. The guest sees such connections from its gateway.
#[derive(Debug)]
pub struct Published {
    /// The socket, which the caller has bound and which listens.
    pub listener: TcpListener,
    /// The guest's port.
    pub guest_port: u16,
}

/// A VM's network without root. It ends when it is dropped, or when QEMU closes its end of the socket pair; then all of
/// its connections are closed too.
pub struct UserNetwork {
    gate: Arc<Gate>,
    counts: Arc<Counts>,
    wake: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl UserNetwork {
    /// Starts the network on one end of a socket pair, whose other end QEMU gets as
    /// `-netdev stream,addr.type=fd,addr.str=N`. `resolver` must be under the same gate.
    pub fn start(
        link: OwnedFd,
        gate: Arc<Gate>,
        resolver: Arc<Resolver>,
        published: Vec<Published>,
        mtu: u16,
        runtime: Handle,
    ) -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let host = HostSockets::new(runtime, resolver, Arc::clone(&wake));
        let mut stack = Stack::new(link, host, Arc::clone(&gate), Arc::clone(&wake), published, mtu)?;
        let (counts, stop) = (stack.counts(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let run = move || {
            while !stopped.load(Ordering::Acquire) && stack.turn(WAIT)? {}
            Ok(())
        };
        let thread = std::thread::Builder::new().name("kiln-net".into()).spawn(run)?;
        Ok(Self { gate, counts, wake, stop, thread: Some(thread) })
    }

    /// Sets another policy. New flows are judged by it, and open flows that it denies are reset.
    pub fn set_policy(&self, policy: Policy) {
        self.gate.set_policy(policy);
        self.wake();
    }

    /// The counters.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Whether QEMU still has its end.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Ends the network and returns why it had ended before, if it had.
    pub fn stop(mut self) -> io::Result<()> {
        self.join()
    }

    fn wake(&self) {
        // A counter that is full wakes the thread as well.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }

    fn join(&mut self) -> io::Result<()> {
        self.stop.store(true, Ordering::Release);
        self.wake();
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for UserNetwork {
    fn drop(&mut self) {
        // A panic of the thread must not become a second one here, and an error has no reader.
        self.stop.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for UserNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserNetwork").field("counts", &self.counts).finish_non_exhaustive()
    }
}

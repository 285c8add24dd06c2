//! Claims about the network without root: a guest with a TCP of its own on one end, servers on loopback on the other.

mod flows;
mod guest;
mod hostile;
mod servers;

use std::sync::Arc;
use std::time::{Duration, Instant};

use guest::Guest;
use servers::TestHost;

use super::*;
use crate::gate::Gate;
use crate::policy::{Policy, PolicyDefault};

const TEST_TIME: Duration = Duration::from_secs(60);

/// A guest, its network, and the host's side of it.
struct Net {
    guest: Guest,
    stack: Stack<TestHost>,
    gate: Arc<Gate>,
    host: Arc<servers::Shared>,
    wake: Arc<std::os::fd::OwnedFd>,
}

fn policy(default: PolicyDefault, allow: &[&str], deny: &[&str]) -> Policy {
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a rule")).collect();
    Policy::new(default, false, rules(allow), rules(deny)).expect("a policy")
}

impl Net {
    fn new(policy: Policy) -> Self {
        Self::publishing(policy, vec![])
    }

    fn publishing(policy: Policy, published: Vec<Published>) -> Self {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a socket pair");
        let gate = Arc::new(Gate::new(policy));
        let wake = Arc::new(rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).expect("an eventfd"));
        let host = Arc::new(servers::Shared::default());
        let test_host = TestHost(Arc::clone(&host));
        let stack = Stack::new(ours.into(), test_host, Arc::clone(&gate), Arc::clone(&wake), published, 1500);
        Self { guest: Guest::new(theirs.into()), stack: stack.expect("a network"), gate, host, wake }
    }

    /// Lets both sides run until the function returns something.
    fn until<T>(&mut self, what: &str, mut ready: impl FnMut(&mut Guest) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            self.guest.poll();
            assert!(self.stack.turn(Duration::from_millis(1)).expect("the network runs"), "the network ended");
            self.guest.poll();
            if let Some(value) = ready(&mut self.guest) {
                return value;
            }
            assert!(start.elapsed() < TEST_TIME, "waited too long: {what}");
        }
    }
}

//! The agent as a whole: its parts, put together. What each part does is its own module's matter.

use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use kiln_wire::Capability;

use crate::drivers::{Drivers, Loaded};
use crate::link::{self, Links, Service};
use crate::process::Commands;
use crate::process::cgroup::Cgroups;
use crate::services::{Machine, Services};
use crate::transport::Transport;

/// What this agent is.
#[derive(Debug, Default)]
pub struct Setup {
    /// Whether it is PID 1 and may change the machine.
    pub pid_1: bool,
    /// The token that a host has to send, if it needs one.
    pub token: Option<String>,
    /// Control groups, if there are any.
    pub cgroups: Option<Cgroups>,
    /// Where programs leave their leases.
    pub leases: Option<PathBuf>,
    /// It stands in for a guest in tests: what it runs starts in this directory, a sync writes its names to
    /// `etc/hostname` and `etc/machine-id` below, and a freeze holds back commands that are asked for. The host's clock,
    /// randomness and names are left alone, and commands that run go on.
    pub stand_in: Option<PathBuf>,
}

/// The parts of an agent.
#[derive(Debug)]
pub struct Agent {
    /// What its links share.
    pub links: Rc<Links>,
    /// The commands of the guest.
    pub commands: Rc<Commands>,
    /// The drivers of the guest's devices.
    pub drivers: Rc<Drivers>,
    services: Rc<Services>,
}

impl Agent {
    /// An agent that serves no link yet.
    ///
    /// # Errors
    /// `/dev/null` can't be opened.
    pub fn new(setup: Setup) -> io::Result<Self> {
        let Setup { pid_1, token, cgroups, leases, stand_in } = setup;
        let optional = [(cgroups.is_some(), Capability::Cgroups), (pid_1, Capability::Init)];
        let capabilities = optional.into_iter().filter_map(|(has, capability)| has.then_some(capability));
        let links = Links::new(token, capabilities.chain([Capability::Grace]).collect());
        let commands = Rc::new(Commands::new(pid_1, cgroups, stand_in.as_deref())?);
        let drivers = Rc::new(Drivers::new(if pid_1 { Loaded::Few } else { Loaded::All }));
        let machine = match stand_in {
            Some(home) => Machine::StandIn(home),
            None if pid_1 => Machine::Guest,
            None => Machine::Foreign,
        };
        let services = Services::new(Rc::clone(&commands), Rc::clone(&drivers), machine, leases);
        Ok(Self { links, commands, drivers, services })
    }

    /// Serves links on `transport` until it ends; a port never ends by itself.
    pub fn serve(&self, transport: Transport) -> impl Future<Output = io::Result<()>> + use<> {
        let services: Rc<dyn Service> = self.services.clone();
        link::serve(Rc::clone(&self.links), services, transport)
    }
}

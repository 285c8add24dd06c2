//! The agent: creates its parts and connects them.

use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use kiln_wire::Capability;

use crate::drivers::{Drivers, Loaded};
use crate::files::is_overlay;
use crate::link::{self, Links, Service};
use crate::process::Commands;
use crate::process::cgroup::Cgroups;
use crate::services::{Machine, Services};
use crate::transport::Transport;

/// The configuration of an agent.
#[derive(Debug, Default)]
pub struct Setup {
    /// Whether it is PID 1, or was started by PID 1, and may change the machine.
    pub pid_1: bool,
    /// The token that a host must send, if one is required.
    pub token: Option<String>,
    /// Control groups, if there are any.
    pub cgroups: Option<Cgroups>,
    /// The directory of leases, if there is one.
    pub leases: Option<PathBuf>,
    /// A directory, if the agent stands in for a guest in tests. Commands start in it, a sync writes names to
    /// `etc/hostname` and `etc/machine-id` below it, and a freeze only delays new commands. Clock, randomness and names
    /// of the machine are not changed, and running commands continue.
    pub stand_in: Option<PathBuf>,
}

/// The parts of an agent.
#[derive(Debug)]
pub struct Agent {
    /// The state that its links share.
    pub links: Rc<Links>,
    /// The commands of the guest.
    pub commands: Rc<Commands>,
    /// The drivers of the guest's devices.
    pub drivers: Rc<Drivers>,
    services: Rc<Services>,
}

impl Agent {
    /// Creates an agent that serves no link yet.
    ///
    /// # Errors
    /// If `/dev/null` can't be opened.
    pub fn new(setup: Setup) -> io::Result<Self> {
        let Setup { pid_1, token, cgroups, leases, stand_in } = setup;
        let optional = [
            (cgroups.is_some(), Capability::Cgroups),
            (pid_1, Capability::Init),
            (pid_1, Capability::Setup),
            (is_overlay(), Capability::Changes),
        ];
        let capabilities = optional.into_iter().filter_map(|(has, capability)| has.then_some(capability));
        let links = Links::new(token, capabilities.chain([Capability::Grace, Capability::StopSignal]).collect());
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

    /// Serves links on `transport` until it ends. A port ends only with the agent.
    pub fn serve(&self, transport: Transport) -> impl Future<Output = io::Result<()>> + use<> {
        let services: Rc<dyn Service> = self.services.clone();
        link::serve(Rc::clone(&self.links), services, transport)
    }
}

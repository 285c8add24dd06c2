//! Dispatches requests to services.

use std::path::PathBuf;
use std::rc::Rc;

use kiln_wire::{ErrorCode, Fault, Message};

use super::forward::Forwards;
use super::{activity, exec, files, forward, freeze, logs, metrics, sync, watch};
use crate::drivers::Drivers;
use crate::link::{Service, Stream, Task};
use crate::process::Commands;
use crate::session::{self, Sessions};
use crate::tally::Tally;

/// All services of the agent.
#[derive(Debug)]
pub struct Services {
    commands: Rc<Commands>,
    drivers: Rc<Drivers>,
    sessions: Rc<Sessions>,
    machine: sync::Machine,
    watches: Rc<Tally>,
    forwards: Rc<Forwards>,
    /// The directory of leases, if there is one.
    leases: Option<PathBuf>,
}

impl Services {
    /// Creates the services for the commands of a guest.
    pub fn new(
        commands: Rc<Commands>,
        drivers: Rc<Drivers>,
        machine: sync::Machine,
        leases: Option<PathBuf>,
    ) -> Rc<Self> {
        Rc::new(Self {
            commands,
            drivers,
            sessions: Rc::default(),
            machine,
            watches: Rc::default(),
            forwards: Rc::default(),
            leases,
        })
    }

    fn activity(&self) -> kiln_wire::Activity {
        let open = activity::Open { watches: self.watches.count(), forwards: self.forwards.count() };
        activity::of(&self.commands, open, self.leases.as_deref())
    }
}

impl Service for Services {
    fn open(&self, stream: Stream, request: Message<'_>) -> Option<Task> {
        let commands = || Rc::clone(&self.commands);
        let sessions = || Rc::clone(&self.sessions);
        let drivers = || Rc::clone(&self.drivers);
        Some(match request {
            Message::Exec(request) => Box::pin(exec::serve(commands(), sessions(), drivers(), stream, *request)),
            Message::Attach(request) => Box::pin(session::attach(sessions(), stream, request)),
            Message::Sessions(request) => Box::pin(session::manage(sessions(), stream, request)),
            Message::Files(request) => Box::pin(files::serve(stream, *request)),
            Message::Watch(request) => Box::pin(watch::serve(Rc::clone(&self.watches), stream, request)),
            Message::Forward(request) => Box::pin(forward::serve(Rc::clone(&self.forwards), stream, request)),
            Message::Metrics(request) => Box::pin(metrics::serve(commands(), stream, request)),
            Message::Logs(request) => Box::pin(logs::serve(stream, request)),
            Message::Freeze => Box::pin(freeze::freeze(commands(), drivers(), stream)),
            Message::Thaw => Box::pin(freeze::thaw(commands(), stream)),
            Message::Activity => Box::pin(activity::serve(self.activity(), stream)),
            // A fork needs its own identity before its next request is handled, so this runs before the call returns.
            Message::Sync(request) => match sync::begin(&self.commands, &self.machine, request) {
                Ok(Some(setup)) => Box::pin(sync::finish(commands(), drivers(), stream, setup)),
                done => {
                    sync::end(&stream, done.map(drop));
                    return None;
                }
            },
            other => {
                let message = format!("{:?} streams are not served by this agent", other.kind());
                stream.outlet.fail(Fault::new(ErrorCode::Unsupported, message));
                return None;
            }
        })
    }
}

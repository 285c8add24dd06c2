//! One exec stream: a command that lives as long as the stream does.

use std::rc::Rc;

use kiln_wire::{ExecRequest, Message, Started};

use crate::drivers::Drivers;
use crate::link::{Stream, cancelled};
use crate::process::{Commands, Job, Outcome, Output, supervise};
use crate::session::{self, Sessions};

/// Serves the stream to its end.
pub async fn serve(
    commands: Rc<Commands>,
    sessions: Rc<Sessions>,
    drivers: Rc<Drivers>,
    stream: Stream,
    request: ExecRequest,
) {
    drivers.ready().await;
    if let Some(spec) = &request.session {
        return session::start(commands, sessions, stream, &request, spec).await;
    }
    let job = match Job::start(&commands, &request, Output::Apart, &stream.inbox, None).await {
        Ok(job) => job,
        Err(fault) => return stream.outlet.fail(fault.unwrap_or_else(cancelled)),
    };
    let started = Started { pid: job.pid(), session: None };
    if stream.outlet.send(&Message::Started(started)).await.is_err() {
        return;
    }
    match supervise(job, &stream.inbox, &stream.outlet).await {
        Outcome::Exited(exited) => stream.outlet.end(&Message::Exited(exited)),
        Outcome::Ended(end, _) => stream.outlet.fail(end.into_fault()),
    }
}

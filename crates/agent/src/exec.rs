//! One exec stream: a command that lives as long as the stream does.

use std::rc::Rc;

use kiln_wire::{Channel, ErrorCode, ExecRequest, Fault, Message, Started};

use crate::agent::Agent;
use crate::link::{End, Gone, Outlet, Stream};
use crate::process::{Job, Outcome, Output, Sink, supervise};
use crate::session;

impl Sink for Outlet {
    async fn room(&self) -> Result<usize, Gone> {
        Self::room(self).await
    }

    fn put(&self, channel: Channel, frame: &mut Vec<u8>) {
        self.data(channel, frame);
    }
}

/// Serves the stream to its end.
pub async fn serve(agent: Rc<Agent>, stream: Stream, request: ExecRequest) {
    agent.ready().await;
    if let Some(spec) = &request.session {
        return session::start(agent, stream, &request, spec).await;
    }
    let job = match Job::start(&agent, &request, Output::Apart, &stream.inbox, None).await {
        Ok(job) => job,
        Err(fault) => return stream.outlet.fail(fault.unwrap_or_else(cancelled)),
    };
    let started = Started { pid: job.pid(), session: None };
    if stream.outlet.send(&Message::Started(started)).await.is_err() {
        return;
    }
    match supervise(job, &stream.inbox, &stream.outlet).await {
        Outcome::Exited(exited) => stream.outlet.end(&Message::Exited(exited)),
        Outcome::Ended(End::Fault(fault), _) => stream.outlet.fail(fault),
        Outcome::Ended(End::Cancelled | End::LinkLost, _) => stream.outlet.fail(cancelled()),
    }
}

/// The end of a stream that was cancelled.
pub fn cancelled() -> Fault {
    Fault::new(ErrorCode::Cancelled, "cancelled")
}

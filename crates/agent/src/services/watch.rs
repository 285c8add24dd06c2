//! Reports changes of files until the host ends the stream.

use std::os::fd::AsFd as _;
use std::rc::Rc;

use kiln_wire::{ErrorCode, Fault, Message, Reply, WatchRequest};
use tokio::task::spawn_blocking;

use crate::files::{Root, Watcher};
use crate::link::{Gone, Outlet, Stream, cancelled};
use crate::tally::Tally;
use crate::watched::watch_reading;

/// Serves the stream until it fails or is cancelled.
pub async fn serve(watches: Rc<Tally>, stream: Stream, request: WatchRequest) {
    let _open = watches.one();
    let fault = tokio::select! {
        biased;
        end = stream.inbox.ended() => end.into_fault(),
        result = report(&stream.outlet, request) => match result {
            Err(fault) => fault,
            Ok(never) => match never {},
        },
    };
    stream.outlet.fail(fault);
}

async fn report(outlet: &Outlet, request: WatchRequest) -> Result<std::convert::Infallible, Fault> {
    let failed = |error: &dyn std::fmt::Display| Fault::new(ErrorCode::Io, format!("the watch failed: {error}"));
    let place = spawn_blocking(move || Watcher::new(Root::new(None)?, &request.path, request.recursive));
    let mut watcher = place.await.map_err(|error| failed(&error))??;
    let descriptor = watcher.as_fd().try_clone_to_owned().map_err(|error| failed(&error))?;
    let events_wait = watch_reading(descriptor).map_err(|error| failed(&error))?;
    send(outlet, Reply::Watching).await?;
    loop {
        let mut guard = events_wait.readable().await.map_err(|error| failed(&error))?;
        // A new directory in a tree is walked, so this may block.
        let turn = spawn_blocking(move || {
            let mut events = Vec::new();
            let count = watcher.read(&mut events)?;
            Ok::<_, Fault>((watcher, events, count))
        });
        let (same, events, count) = turn.await.map_err(|error| failed(&error))??;
        watcher = same;
        if count == 0 {
            guard.clear_ready();
        }
        drop(guard);
        for event in events {
            send(outlet, Reply::Changed(event)).await?;
        }
    }
}

async fn send(outlet: &Outlet, reply: Reply) -> Result<(), Fault> {
    outlet.send(&Message::Reply(Box::new(reply))).await.map_err(|Gone| cancelled())
}

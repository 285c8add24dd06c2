//! Streams that freeze and thaw all commands of the guest, see [`process::freezer`](crate::process).

use std::rc::Rc;

use kiln_wire::{Done, Fault, Message};

use crate::drivers::Drivers;
use crate::link::Stream;
use crate::process::Commands;

/// Serves `Freeze` to its end.
pub async fn freeze(commands: Rc<Commands>, drivers: Rc<Drivers>, stream: Stream) {
    let outcome = tokio::select! {
        biased;
        end = stream.inbox.ended() => Err(end.into_fault()),
        // Drivers that are loaded before the snapshot are loaded in each fork.
        outcome = commands.freeze(drivers.all()) => outcome,
    };
    end(&stream, outcome);
}

/// Serves `Thaw` to its end. Succeeds also if the guest is not frozen or can't be.
pub async fn thaw(commands: Rc<Commands>, stream: Stream) {
    end(&stream, commands.thaw());
}

fn end(stream: &Stream, outcome: Result<(), Fault>) {
    match outcome {
        Ok(()) => stream.outlet.end(&Message::Done(Done::default())),
        Err(fault) => stream.outlet.fail(fault),
    }
}

//! Streams that freeze and thaw every command of the guest. How that is done: [`process::freezer`](crate::process).

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
        // What is loaded before the snapshot is there in each fork.
        outcome = commands.freeze(drivers.all()) => outcome,
    };
    answer(&stream, outcome);
}

/// Serves `Thaw` to its end. A guest that is not frozen, or can't be, has nothing to thaw.
pub async fn thaw(commands: Rc<Commands>, stream: Stream) {
    answer(&stream, commands.thaw());
}

fn answer(stream: &Stream, outcome: Result<(), Fault>) {
    match outcome {
        Ok(()) => stream.outlet.end(&Message::Done(Done::default())),
        Err(fault) => stream.outlet.fail(fault),
    }
}

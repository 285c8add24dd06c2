//! `--console`: prints the guest's console on stderr while the guest runs.

use kiln_engine::guest::{Events, GuestEvent, Watch};
use tokio::runtime::Handle;

use crate::output::{console_row, say};

/// A watch for a guest. Prints its console if `show` is set. Must be called in a runtime.
pub fn watch(show: bool) -> Watch {
    let watch = Watch::default();
    if show {
        let (runtime, events) = (Handle::current(), watch.events_kept());
        // A thread, because a write to stderr blocks while its reader does not read. The thread ends with the guest,
        // and the runtime waits for it.
        drop(tokio::task::spawn_blocking(move || runtime.block_on(print(events))));
    }
    watch
}

async fn print(mut events: Events) {
    while let Some(entry) = events.next().await {
        match entry.map(|entry| entry.event) {
            Ok(GuestEvent::Console(row)) => console_row(&row),
            Ok(_) => {}
            Err(lagged) => say(format_args!("kiln: stderr is too slow for the console: {lagged}")),
        }
    }
}

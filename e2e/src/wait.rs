//! Waiting for a state, never for a time.

use std::future::Future;
use std::thread;
use std::time::{Duration, Instant};

use crate::kiln::KILN_DEADLINE;

/// The longest that a test waits for one thing. Long, since the agent may run under valgrind on a busy machine; nothing
/// waits that long unless it is broken.
pub const WAIT_DEADLINE: Duration = Duration::from_secs(20);
/// How often [`until`] looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Runs the body of an async test, which must end within [`WAIT_DEADLINE`].
///
/// # Panics
/// If it does not.
pub fn bounded<T>(body: impl Future<Output = T>) -> T {
    // A worker thread, so that a link keeps working while the test blocks.
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build().expect("a runtime can be built");
    runtime.block_on(async { tokio::time::timeout(WAIT_DEADLINE, body).await.expect("the test hangs") })
}

/// Calls `state` until it returns a value.
///
/// # Panics
/// If it does not within [`WAIT_DEADLINE`]. `what` names the state in the message.
pub fn until<T>(what: &str, state: impl FnMut() -> Option<T>) -> T {
    until_within(WAIT_DEADLINE, what, state)
}

/// [`until`] for what a VM does that has to boot first.
///
/// # Panics
/// See [`until`]; the deadline is [`KILN_DEADLINE`].
pub fn until_booted<T>(what: &str, state: impl FnMut() -> Option<T>) -> T {
    until_within(KILN_DEADLINE, what, state)
}

/// [`until`] with a deadline of its own.
///
/// # Panics
/// See [`until`].
pub fn until_within<T>(limit: Duration, what: &str, mut state: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = state() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what} did not come within {limit:?}");
        thread::sleep(LOOK_INTERVAL);
    }
}

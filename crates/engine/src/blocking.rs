//! The way off the async runtime, for everything that blocks: files, locks, checksums, the end of a process.
//!
//! ```text
//!   async fn ──▶ blocking(work) ──▶ a thread of the runtime's pool ──▶ its result
//!                    └── dropped while it waits: the work goes on to its end, and its result is dropped on that thread
//! ```
//! A runtime thread that waits for a disk holds up every VM, link and timer of this process. So nothing here waits on one:
//! work moves to a thread together with what it works on, which therefore stays valid, and locked, for as long as the work
//! runs. If the caller is gone, dropping the result undoes what has to be undone.
//!
//! The threads are the runtime's own, at most 512 at a time: work beyond that waits for a thread, the runtime does not.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

thread_local! {
    /// This thread runs [`blocking`] work now.
    static MAY_BLOCK: Cell<bool> = const { Cell::new(false) };
}

/// Runs what blocks on a thread of its own.
///
/// Safe to cancel: the work then goes on to its end, with all that it owns, and its result is dropped on its thread.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let hosts = kiln_engine::blocking(|| std::fs::read_to_string("/etc/hosts")).await?;
/// # drop(hosts);
/// # Ok(())
/// # }
/// ```
///
/// # Panics
/// If the work does.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = oneshot::channel();
    #[expect(clippy::disallowed_methods, reason = "the one way to a thread")]
    let task = spawn_blocking(move || {
        here(move || {
            let result = catch_unwind(AssertUnwindSafe(work));
            // The caller is gone: the result is dropped here. If that happens between this and its arrival, it comes back here.
            drop(sender.send(OffRuntime::new(result)));
        });
    });
    drop(task);
    match receiver.await.map(OffRuntime::into_inner) {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => resume_unwind(panic),
        // The runtime is being shut down, and this task is dropped next.
        Err(_) => std::future::pending().await,
    }
}

/// Runs an operation that waits and blocks in turns on a thread of its own: the start of a VMM, with its files before and its
/// monitor after. All that it holds is dropped on that thread too, so an error is returned once what was begun is undone.
///
/// Dropped, it stops where it waits, and undoes what it began on its thread.
pub(crate) async fn operation<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let (wanted, unwanted) = oneshot::channel::<()>();
    let runtime = Handle::current();
    let result = blocking(move || {
        runtime.block_on(async move {
            tokio::select! {
                biased;
                _ = unwanted => None,
                result = work => Some(result),
            }
        })
    });
    let result = result.await.expect("it is wanted for as long as this waits");
    drop(wanted);
    result
}

/// Runs blocking work on a thread of its own, without a caller that waits for it. A runtime that ends waits for it, or drops it without
/// having begun.
pub(crate) fn in_background(work: impl FnOnce() + Send + 'static) {
    #[expect(clippy::disallowed_methods, reason = "the one way to a thread")]
    drop(spawn_blocking(move || here(work)));
}

/// Runs work that blocks on this thread, which has nothing else to do.
fn here<T>(work: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            MAY_BLOCK.set(self.0);
        }
    }
    let _before = Before(MAY_BLOCK.replace(true));
    work()
}

/// Whether this thread may wait: it runs [`blocking`] work, or no runtime at all.
pub(crate) fn may_block() -> bool {
    MAY_BLOCK.get() || Handle::try_current().is_err()
}

/// Finds code that would hold up a runtime, wherever assertions are on. Called by what blocks for longer than a moment.
#[track_caller]
pub(crate) fn assert_may_block() {
    debug_assert!(may_block(), "this blocks, so it must not be called on a thread of the runtime: use `blocking`");
}

/// Holds a value whose drop blocks: one that removes a directory, or waits for a process. On a runtime it is dropped by a
/// thread, at some time.
#[derive(Debug)]
pub(crate) struct OffRuntime<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> OffRuntime<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// The value, whose drop is the caller's matter from now on.
    pub(crate) fn into_inner(mut self) -> T {
        self.0.take().expect("it is there until this or the drop")
    }
}

impl<T: Send + 'static> Deref for OffRuntime<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is there until the drop")
    }
}

impl<T: Send + 'static> DerefMut for OffRuntime<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("it is there until the drop")
    }
}

impl<T: Send + 'static> Drop for OffRuntime<T> {
    fn drop(&mut self) {
        let Some(value) = self.0.take() else { return };
        if may_block() {
            drop(value);
            return;
        }
        // A runtime that is being shut down drops the closure without running it, and the value with it, there and then:
        // nothing else runs on that runtime any more. It is dropped exactly once either way.
        #[expect(clippy::disallowed_methods, reason = "a drop can't wait")]
        let task = spawn_blocking(move || here(|| drop(value)));
        drop(task);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::sync::{Arc, Condvar, Mutex};
    use std::thread::{ThreadId, current};
    use std::time::Duration;

    use tokio::time::{interval, timeout};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);

    /// Opens once, for all who wait.
    #[derive(Debug, Default)]
    struct Gate(Mutex<bool>, Condvar);

    impl Gate {
        fn pass(&self) {
            let open = self.0.lock().expect("not poisoned");
            drop(self.1.wait_while(open, |open| !*open).expect("not poisoned"));
        }

        fn open(&self) {
            *self.0.lock().expect("not poisoned") = true;
            self.1.notify_all();
        }
    }

    /// Reports the thread that drops it.
    #[derive(Debug)]
    struct Reports(mpsc::Sender<ThreadId>);

    impl Drop for Reports {
        fn drop(&mut self) {
            assert!(may_block(), "it blocks");
            let _ = self.0.send(current().id());
        }
    }

    fn reports() -> (Reports, mpsc::Receiver<ThreadId>) {
        let (sender, receiver) = mpsc::channel();
        (Reports(sender), receiver)
    }

    #[tokio::test]
    async fn a_hundred_operations_that_do_not_end_make_no_timer_wait() {
        let gate = Arc::new(Gate::default());
        let slow: Vec<_> = (0..100)
            .map(|_| {
                let gate = Arc::clone(&gate);
                tokio::spawn(blocking(move || gate.pass()))
            })
            .collect();
        // None of them ends before the last tick. On this thread, which is the only one, any of them would end that.
        let ticks = async {
            let mut ticks = interval(Duration::from_millis(1));
            for _ in 0..50 {
                ticks.tick().await;
            }
        };
        timeout(DEADLINE, ticks).await.expect("the timer ticks");
        assert!(slow.iter().all(|task| !task.is_finished()));
        gate.open();
        for task in slow {
            timeout(DEADLINE, task).await.expect("it ends").expect("it does not panic");
        }
    }

    #[tokio::test]
    async fn work_without_a_waiting_caller_continues_and_its_result_is_dropped_elsewhere() {
        let gate = Arc::new(Gate::default());
        let (result, dropped) = reports();
        let work = {
            let gate = Arc::clone(&gate);
            blocking(move || {
                gate.pass();
                result
            })
        };
        timeout(Duration::from_millis(10), work).await.expect_err("the gate is closed");
        gate.open();
        let thread = blocking(move || dropped.recv_timeout(DEADLINE)).await.expect("it went on to its end");
        assert_ne!(thread, current().id());
    }

    #[tokio::test]
    async fn what_blocks_in_its_drop_is_dropped_elsewhere() {
        let (value, dropped) = reports();
        drop(OffRuntime::new(value));
        let thread = blocking(move || dropped.recv_timeout(DEADLINE)).await.expect("it is dropped");
        assert_ne!(thread, current().id());
    }

    #[test]
    fn without_a_runtime_it_is_dropped_at_once() {
        let (value, dropped) = reports();
        drop(OffRuntime::new(value));
        assert_eq!(dropped.try_recv(), Ok(current().id()));
    }

    #[test]
    fn the_end_of_a_runtime_drops_what_its_threads_did_not_come_to() {
        struct Counts(mpsc::Sender<()>);
        impl Drop for Counts {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }
        let (sender, dropped) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().expect("a runtime");
        let gate = Arc::new(Gate::default());
        let inside = runtime.enter();
        let held = Arc::clone(&gate);
        // The only thread is taken, so what follows waits for it.
        drop(runtime.spawn(blocking(move || held.pass())));
        runtime.block_on(tokio::task::yield_now());
        drop(OffRuntime::new(Counts(sender)));
        drop(inside);
        runtime.shutdown_background();
        gate.open();
        dropped.recv_timeout(DEADLINE).expect("it is dropped");
        assert!(dropped.recv().is_err(), "once");
    }

    #[tokio::test]
    async fn an_operation_without_a_waiting_caller_is_undone_elsewhere() {
        let (held, dropped) = reports();
        let begun = Arc::new(Gate::default());
        let begins = {
            let begun = Arc::clone(&begun);
            operation(async move {
                let _held = held;
                assert!(may_block());
                begun.open();
                std::future::pending::<()>().await;
            })
        };
        let begins = tokio::spawn(begins);
        timeout(DEADLINE, blocking(move || begun.pass())).await.expect("it begins");
        begins.abort();
        let thread = blocking(move || dropped.recv_timeout(DEADLINE)).await.expect("it is undone");
        assert_ne!(thread, current().id());
        assert_eq!(operation(async { tokio::time::sleep(Duration::from_millis(1)).await }).await, ());
    }

    #[tokio::test]
    #[should_panic(expected = "the work's own")]
    async fn a_panic_is_the_callers() {
        blocking(|| panic!("the work's own")).await;
    }

    #[tokio::test]
    async fn a_runtime_thread_is_told_from_one_that_may_block() {
        assert!(!may_block());
        assert!(blocking(may_block).await);
        assert!(!may_block());
    }
}

//! Runs blocking work on threads that may block: files, locks, checksums, waiting for the end of a process.
//!
//! ```text
//!   async fn ──▶ blocking(work) ──▶ a thread of the runtime's pool ──▶ its result
//!                    └── cancelled: the work continues to its end, and its result is dropped on that thread
//! ```
//! A runtime thread that waits for a disk delays every VM, link and timer of this process. So blocking work never runs
//! on one.
//!
//! Blocking work can't be cancelled, because a system call can't. So a cancelled caller must not free anything that the
//! work still uses: a directory's lock that is released while a thread still writes to the directory would let another
//! process take the directory. The work therefore owns everything that it uses, and gives it back in its result. If the
//! caller is gone, the thread drops the result, and the drops undo what was done: they remove a directory, kill a VMM.
//! The same value is never freed while it is in use, and never leaked, whenever the caller is cancelled.
//!
//! The threads are tokio's, at most 512. More work waits for a free thread. The runtime's own threads do not wait.

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

/// Runs blocking work on another thread.
///
/// Safe to cancel: the work then continues to its end, with everything that it owns, and its thread drops the result.
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
            // If the caller is gone, `send` returns the result, and it is dropped here, on a thread that may block. If
            // the caller goes after the send, the channel drops the result on the caller's thread. Then `OffRuntime`
            // moves the drop to a thread like this one.
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

/// Runs an operation that both awaits and blocks on another thread: for example the start of a VMM, which writes files
/// and then waits for the monitor. The thread also drops everything that the operation owns. So an error is returned
/// only after the operation has undone what it did.
///
/// Safe to cancel: the operation then stops at its current await, and its thread undoes what it did.
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
    let result = result.await.expect("`wanted` is dropped only below, so the first branch can't have run");
    drop(wanted);
    result
}

/// Runs blocking work on another thread, without waiting for it. At its end the runtime waits for work that has
/// started, and drops work that has not.
pub(crate) fn in_background(work: impl FnOnce() + Send + 'static) {
    #[expect(clippy::disallowed_methods, reason = "the one way to a thread")]
    drop(spawn_blocking(move || here(work)));
}

/// Marks this thread as one that may block while the work runs.
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

/// Whether this thread may block: it runs [`blocking`] work, or does not belong to a runtime.
pub(crate) fn may_block() -> bool {
    MAY_BLOCK.get() || Handle::try_current().is_err()
}

/// Panics on a thread that must not block, if debug assertions are on. Functions that block for more than a moment call
/// it.
#[track_caller]
pub(crate) fn assert_may_block() {
    debug_assert!(may_block(), "this blocks, so it must not be called on a thread of the runtime: use `blocking`");
}

/// Holds a value whose drop blocks, such as one that removes a directory or waits for a process. On a runtime thread,
/// the drop moves to another thread and happens later.
#[derive(Debug)]
pub(crate) struct OffRuntime<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> OffRuntime<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// Takes the value out. The caller must drop it on a thread that may block.
    pub(crate) fn into_inner(mut self) -> T {
        self.0.take().expect("only this function and the drop take it")
    }
}

impl<T: Send + 'static> Deref for OffRuntime<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("only `into_inner` and the drop take it")
    }
}

impl<T: Send + 'static> DerefMut for OffRuntime<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("only `into_inner` and the drop take it")
    }
}

impl<T: Send + 'static> Drop for OffRuntime<T> {
    fn drop(&mut self) {
        let Some(value) = self.0.take() else { return };
        if may_block() {
            drop(value);
            return;
        }
        // A runtime that is shutting down drops the closure without running it, and so drops the value on this thread.
        // That may block, but nothing else runs on that runtime any more. The value is dropped exactly once in both
        // cases.
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
    async fn a_hundred_blocked_operations_delay_no_timer() {
        let gate = Arc::new(Gate::default());
        let slow: Vec<_> = (0..100)
            .map(|_| {
                let gate = Arc::clone(&gate);
                tokio::spawn(blocking(move || gate.pass()))
            })
            .collect();
        // None of them ends before the last tick. If one ran on this thread, which is the runtime's only one, it would
        // stop the ticks.
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
    async fn cancelled_work_continues_and_its_result_is_dropped_on_another_thread() {
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
    async fn a_value_whose_drop_blocks_is_dropped_on_another_thread() {
        let (value, dropped) = reports();
        drop(OffRuntime::new(value));
        let thread = blocking(move || dropped.recv_timeout(DEADLINE)).await.expect("it is dropped");
        assert_ne!(thread, current().id());
    }

    #[test]
    fn without_a_runtime_a_value_is_dropped_at_once() {
        let (value, dropped) = reports();
        drop(OffRuntime::new(value));
        assert_eq!(dropped.try_recv(), Ok(current().id()));
    }

    #[test]
    fn the_end_of_a_runtime_drops_a_value_whose_thread_has_not_started() {
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
    async fn a_cancelled_operation_is_undone_on_another_thread() {
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
    async fn a_panic_of_the_work_reaches_the_caller() {
        blocking(|| panic!("the work's own")).await;
    }

    #[tokio::test]
    async fn a_runtime_thread_may_not_block_and_a_thread_of_work_may() {
        assert!(!may_block());
        assert!(blocking(may_block).await);
        assert!(!may_block());
    }
}

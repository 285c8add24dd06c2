//! Freezing: all commands are frozen while a snapshot is made, and in each fork until the fork has its own identity.
//!
//! ```text
//!            Freeze                 all drivers loaded, no child between clone and execve, all groups `frozen 1`
//!   Thawed ─────────▶ Freezing ─────────────────────────────────────────────────────────────────────▶ Frozen
//!      ▲                 │ deadline, cancel, loss of the link                                             │
//!      └─────────────────┴─────────────────────────── Thaw, Sync ─────────────────────────────────────────┘
//! ```
//!
//! A link that ends doesn't change a frozen guest. New commands wait and start in order after the thaw. A frozen
//! command can still be killed.
//!
//! # No child is born into a frozen group
//! A child that is between clone and execve must not be frozen: it would never reach its execve, and the thread that
//! cloned it is suspended until it does. A snapshot would contain that thread, and in this guest and each fork the
//! thread would be missing in the pool until the thaw. So each child is counted from before its clone until after its
//! execve (`births`), and freezing takes three steps, in this order:
//!
//! 1. The state becomes `Freezing`. From then on [`Freezer::pass`] returns no permit.
//! 2. Wait until no birth is counted.
//! 3. Write to the kernel's freezer.
//!
//! No birth can begin between 2 and 3: all this runs on one thread, and `pass` checks the state and counts the birth
//! without an await between them. So a birth is either counted before step 1, and step 2 waits for it, or it sees the
//! state and waits for the thaw. If a child hangs before its execve, step 2 runs into the deadline, and commands
//! continue.
//!
//! # An attempt that is given up
//! A cancel, an error or the deadline drops the [`Attempt`], which thaws. But between two awaits of this attempt a
//! `Thaw` may have ended it, and another `Freeze` may have begun a new one. Thawing then would end the new attempt. So
//! each attempt has a number, and it thaws only if the state still has its number.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use kiln_wire::{ErrorCode, Fault};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::cgroup::Cgroups;
use crate::log::note;
use crate::tally::{Counted, Tally};

/// How long freezing may take. A command that blocks in the kernel can't be frozen, and then the guest is not frozen.
const FREEZE_DEADLINE: Duration = Duration::from_secs(2);
/// First wait between two checks. The kernel signals changes of `cgroup.events` at most every 10 ms, so polling is
/// faster.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// The wait is doubled up to this.
const POLL_INTERVAL_MAX: Duration = Duration::from_millis(20);

/// Whether commands may run.
#[derive(Debug, Default)]
pub struct Freezer {
    state: Cell<State>,
    attempts: Cell<u64>,
    thawed: Notify,
    /// Children that are about to be cloned or have not reached their execve.
    births: Tally,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Thawed,
    /// By the attempt with this number.
    Freezing(u64),
    Frozen,
}

impl Freezer {
    /// Whether commands are frozen or are being frozen.
    pub fn is_closed(&self) -> bool {
        self.state.get() != State::Thawed
    }

    /// Waits until commands may start. The caller must hold the returned guard until the child has passed its execve.
    pub async fn pass(&self) -> Counted {
        while self.is_closed() {
            self.thawed.notified().await;
        }
        self.births.one()
    }

    /// Makes new commands wait for the thaw. Running commands continue.
    pub fn close(&self) {
        self.state.set(State::Frozen);
    }

    /// Freezes all commands after `prepared` has ended. Does nothing if the guest is already frozen.
    ///
    /// # Errors
    /// If `prepared` fails, a command isn't frozen in time, or a thaw comes first. Commands continue then.
    pub async fn freeze(
        &self,
        cgroups: &Cgroups,
        prepared: impl Future<Output = Result<(), Fault>>,
    ) -> Result<(), Fault> {
        match self.state.get() {
            State::Frozen => return Ok(()),
            State::Freezing(_) => return Err(Fault::new(ErrorCode::Busy, "the guest is already being frozen")),
            State::Thawed => {}
        }
        let attempt = Attempt::new(self, cgroups);
        prepared.await?;
        let settled = timeout(FREEZE_DEADLINE, attempt.settle()).await;
        settled.map_err(|_| {
            let message = format!("a command could not be frozen within {FREEZE_DEADLINE:?}");
            Fault::new(ErrorCode::TimedOut, message)
        })?
    }

    /// Thaws all commands, and starts those that wait.
    ///
    /// # Errors
    /// If the kernel refuses. Commands are still frozen then.
    pub fn thaw(&self, cgroups: Option<&Cgroups>) -> Result<(), Fault> {
        if self.is_closed() {
            if let Some(cgroups) = cgroups {
                cgroups.thaw().map_err(|error| failed("thaw", &error))?;
            }
            self.state.set(State::Thawed);
            self.thawed.notify_waiters();
        }
        Ok(())
    }
}

/// One attempt to freeze. Dropping it thaws, unless it has succeeded or was ended by a thaw.
struct Attempt<'a> {
    freezer: &'a Freezer,
    cgroups: &'a Cgroups,
    number: u64,
}

impl<'a> Attempt<'a> {
    fn new(freezer: &'a Freezer, cgroups: &'a Cgroups) -> Self {
        let number = freezer.attempts.get() + 1;
        freezer.attempts.set(number);
        freezer.state.set(State::Freezing(number));
        Self { freezer, cgroups, number }
    }

    async fn settle(&self) -> Result<(), Fault> {
        self.until(|| Ok(self.freezer.births.count() == 0)).await?;
        self.cgroups.freeze().map_err(|error| failed("freeze", &error))?;
        self.until(|| self.cgroups.is_frozen().map_err(|error| failed("freeze", &error))).await?;
        self.freezer.state.set(State::Frozen);
        Ok(())
    }

    async fn until(&self, reached: impl Fn() -> Result<bool, Fault>) -> Result<(), Fault> {
        let mut wait = POLL_INTERVAL;
        loop {
            if !self.is_current() {
                return Err(Fault::new(ErrorCode::Cancelled, "the guest was thawed before it was frozen"));
            }
            if reached()? {
                return Ok(());
            }
            sleep(wait).await;
            wait = (wait * 2).min(POLL_INTERVAL_MAX);
        }
    }

    fn is_current(&self) -> bool {
        self.freezer.state.get() == State::Freezing(self.number)
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.is_current()
            && let Err(fault) = self.freezer.thaw(Some(self.cgroups))
        {
            note(fault.message);
        }
    }
}

fn failed(what: &str, error: &io::Error) -> Fault {
    Fault::new(ErrorCode::Io, format!("can't {what} the guest's commands: {error}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::future::ready;
    use std::path::Path;
    use std::rc::Rc;

    use tempfile::TempDir;

    use super::super::Commands;
    use super::*;

    /// Longest wait of a test.
    const DEADLINE: Duration = Duration::from_secs(10);

    /// Files like the kernel's control groups. Groups become frozen only when a test writes that they are.
    struct Hierarchy {
        root: TempDir,
        commands: Rc<Commands>,
    }

    impl Hierarchy {
        fn new() -> Self {
            let root = tempfile::tempdir().expect("a folder");
            let cgroups = Cgroups::take_over(root.path()).expect("plain files accept all writes");
            let commands = Rc::new(Commands::new(false, Some(cgroups), None).expect("/dev/null opens"));
            add_group(root.path(), "jobs", "0");
            Self { root, commands }
        }

        fn freezer(&self) -> &Freezer {
            self.commands.freezer()
        }

        fn requested(&self, group: &str) -> String {
            fs::read_to_string(self.root.path().join(group).join("cgroup.freeze")).expect("it is there")
        }

        fn mark_frozen(&self) {
            fs::write(self.root.path().join("jobs/cgroup.events"), "populated 1\nfrozen 1\n").expect("it is there");
        }

        /// Runs `future` until `state` holds. `future` must not end first.
        async fn until(&self, future: impl Future<Output = Result<(), Fault>>, state: impl Fn(&Self) -> bool) {
            let poll = async {
                while !state(self) {
                    sleep(POLL_INTERVAL).await;
                }
            };
            tokio::select! {
                outcome = future => panic!("it ended: {outcome:?}"),
                reached = timeout(DEADLINE, poll) => reached.expect("the state is reached in time"),
            }
        }
    }

    fn add_group(root: &Path, name: &str, freeze: &str) {
        fs::create_dir_all(root.join(name)).expect("a folder");
        fs::write(root.join(name).join("cgroup.freeze"), freeze).expect("a file");
        fs::write(root.join(name).join("cgroup.events"), "populated 1\nfrozen 0\n").expect("a file");
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async { timeout(DEADLINE, test).await.expect("the test hangs") });
    }

    #[test]
    fn a_freeze_that_is_cancelled_thaws() {
        run(async {
            let guest = Hierarchy::new();
            guest.until(guest.commands.freeze(ready(Ok(()))), |guest| guest.requested("jobs") == "1").await;
            assert_eq!((guest.requested("jobs").as_str(), guest.freezer().is_closed()), ("0", false));
        });
    }

    #[test]
    fn commands_that_are_not_frozen_in_time_continue() {
        run(async {
            let guest = Hierarchy::new();
            let fault = guest.commands.freeze(ready(Ok(()))).await.expect_err("no group becomes frozen");
            assert_eq!(fault.code, ErrorCode::TimedOut);
            assert_eq!((guest.requested("jobs").as_str(), guest.freezer().is_closed()), ("0", false));
        });
    }

    #[test]
    fn a_freeze_waits_for_children_before_their_execve() {
        run(async {
            let guest = Hierarchy::new();
            guest.mark_frozen();
            let birth = guest.freezer().pass().await;
            let mut freeze = std::pin::pin!(guest.commands.freeze(ready(Ok(()))));
            guest.until(freeze.as_mut(), |guest| guest.freezer().is_closed()).await;
            assert_eq!(guest.requested("jobs"), "0");
            drop(birth);
            assert_eq!(freeze.await, Ok(()));
            assert_eq!(guest.requested("jobs"), "1");
        });
    }

    #[test]
    fn commands_that_wait_start_in_order_after_the_thaw() {
        run(async {
            let guest = Hierarchy::new();
            guest.mark_frozen();
            assert_eq!(guest.commands.freeze(ready(Ok(()))).await, Ok(()));
            let order = Rc::new(std::cell::RefCell::new(Vec::new()));
            let tasks = tokio::task::LocalSet::new();
            for number in 1..=3 {
                let (commands, order) = (Rc::clone(&guest.commands), Rc::clone(&order));
                tasks.spawn_local(async move {
                    let _birth = commands.freezer().pass().await;
                    order.borrow_mut().push(number);
                });
            }
            tasks.run_until(sleep(POLL_INTERVAL)).await;
            assert_eq!(*order.borrow(), [0; 0]);
            assert_eq!(guest.commands.thaw(), Ok(()));
            tasks.await;
            assert_eq!(*order.borrow(), [1, 2, 3]);
        });
    }

    #[test]
    fn a_thaw_ends_a_freeze_in_progress() {
        run(async {
            let guest = Hierarchy::new();
            let mut freeze = std::pin::pin!(guest.commands.freeze(ready(Ok(()))));
            guest.until(freeze.as_mut(), |guest| guest.requested("jobs") == "1").await;
            let second = guest.commands.freeze(ready(Ok(()))).await.map_err(|fault| fault.code);
            assert_eq!(second, Err(ErrorCode::Busy));
            assert_eq!(guest.commands.thaw(), Ok(()));
            assert_eq!(freeze.await.map_err(|fault| fault.code), Err(ErrorCode::Cancelled));
            assert_eq!(guest.requested("jobs"), "0");
        });
    }

    #[test]
    fn all_groups_but_the_agents_are_frozen_and_a_group_that_a_command_froze_stays_frozen() {
        run(async {
            let guest = Hierarchy::new();
            guest.mark_frozen();
            add_group(guest.root.path(), "containers", "0");
            add_group(guest.root.path(), "paused", "1");
            add_group(guest.root.path(), "agent", "0");
            let requested =
                |guest: &Hierarchy| ["jobs", "containers", "paused", "agent"].map(|group| guest.requested(group));
            let mut freeze = std::pin::pin!(guest.commands.freeze(ready(Ok(()))));
            guest.until(freeze.as_mut(), |guest| guest.requested("containers") == "1").await;
            assert_eq!(requested(&guest), ["1", "1", "1", "0"]);
            fs::remove_dir_all(guest.root.path().join("containers")).expect("it is there");
            assert_eq!(freeze.await, Ok(()), "a group that was removed counts as frozen");
            assert_eq!(guest.commands.thaw(), Ok(()));
            assert_eq!(["jobs", "paused", "agent"].map(|group| guest.requested(group)), ["0", "1", "0"]);
        });
    }
}

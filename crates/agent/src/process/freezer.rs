//! Freezing: every command stands still while a snapshot is made, and in a fork of it until the fork has an identity of
//! its own.
//!
//! ```text
//!            Freeze                 all drivers loaded, no child between clone and execve, the kernel says `frozen`
//!   Thawed ─────────▶ Freezing ───────────────────────────────────────────────────────────────────────▶ Frozen
//!      ▲                 │ deadline, cancel, loss of the link                                               │
//!      └─────────────────┴─────────────────────────── Thaw, Sync ───────────────────────────────────────────┘
//! ```
//!
//! A link that ends changes nothing once the guest is frozen. Commands that are asked for meanwhile wait, in order: a
//! child born into a frozen control group would never come to its execve, and the agent's thread stands still until
//! then. Whoever is frozen can still be killed.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use kiln_wire::{ErrorCode, Fault};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::cgroup::Cgroups;
use crate::log::note;
use crate::tally::{Counted, Tally};

/// How long commands may take to stand still. One that hangs inside the kernel keeps the guest from being frozen.
const FREEZE_DEADLINE: Duration = Duration::from_secs(2);
/// First wait between two looks. The kernel would tell, but no more often than each 10 ms, so looking is faster …
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// … and the wait is doubled up to this.
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(20);

/// Whether commands may run.
#[derive(Debug, Default)]
pub struct Freezer {
    state: Cell<State>,
    attempts: Cell<u64>,
    thawed: Notify,
    /// Children that were cloned and did not come to their execve yet.
    births: Tally,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Thawed,
    /// By the attempt of this number.
    Freezing(u64),
    Frozen,
}

impl Freezer {
    /// Whether commands stand still, or are about to.
    pub fn is_closed(&self) -> bool {
        self.state.get() != State::Thawed
    }

    /// Waits until commands may start. What it gives back is to be held until the child is past its execve.
    pub async fn pass(&self) -> Counted {
        while self.is_closed() {
            self.thawed.notified().await;
        }
        self.births.one()
    }

    /// Holds back commands that are asked for from now on; those that run go on.
    pub fn close(&self) {
        self.state.set(State::Frozen);
    }

    /// Stops every command, once `prepared` has come to its end. A guest that is frozen already stays so.
    ///
    /// # Errors
    /// `prepared` fails, a command does not stand still in time, or a thaw comes first. Commands go on then.
    pub async fn freeze(
        &self,
        cgroups: &Cgroups,
        prepared: impl Future<Output = Result<(), Fault>>,
    ) -> Result<(), Fault> {
        match self.state.get() {
            State::Frozen => return Ok(()),
            State::Freezing(_) => return Err(Fault::new(ErrorCode::Busy, "the guest is being frozen already")),
            State::Thawed => {}
        }
        let attempt = Attempt::new(self, cgroups);
        prepared.await?;
        let settled = timeout(FREEZE_DEADLINE, attempt.settle()).await;
        settled.map_err(|_| {
            let words = format!("a command did not stand still within {FREEZE_DEADLINE:?}");
            Fault::new(ErrorCode::TimedOut, words)
        })?
    }

    /// Lets commands go on, those that wait to start too.
    ///
    /// # Errors
    /// The kernel refuses; commands still stand then.
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

/// One try to freeze. Dropping it thaws, unless it came to its end.
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
        let mut wait = LOOK_AGAIN;
        loop {
            if !self.goes_on() {
                return Err(Fault::new(ErrorCode::Cancelled, "the guest was thawed before it was frozen"));
            }
            if reached()? {
                return Ok(());
            }
            sleep(wait).await;
            wait = (wait * 2).min(LOOK_AGAIN_MAX);
        }
    }

    fn goes_on(&self) -> bool {
        self.freezer.state.get() == State::Freezing(self.number)
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.goes_on()
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

    /// What a test waits for comes at once, or never.
    const DEADLINE: Duration = Duration::from_secs(10);

    /// Files like those of a kernel that stops processes only when the test says so.
    struct Hierarchy {
        root: TempDir,
        commands: Rc<Commands>,
    }

    impl Hierarchy {
        fn new() -> Self {
            let root = tempfile::tempdir().expect("a folder");
            let cgroups = Cgroups::take_over(root.path()).expect("plain files take everything");
            let commands = Rc::new(Commands::new(false, Some(cgroups), None).expect("/dev/null opens"));
            add_group(root.path(), "jobs", "0");
            Self { root, commands }
        }

        fn freezer(&self) -> &Freezer {
            self.commands.freezer()
        }

        fn asked(&self, group: &str) -> String {
            fs::read_to_string(self.root.path().join(group).join("cgroup.freeze")).expect("it is there")
        }

        fn stands(&self) {
            fs::write(self.root.path().join("jobs/cgroup.events"), "populated 1\nfrozen 1\n").expect("it is there");
        }

        /// Looks on while `future` runs, until `state` holds.
        async fn until(&self, future: impl Future<Output = Result<(), Fault>>, state: impl Fn(&Self) -> bool) {
            let look = async {
                while !state(self) {
                    sleep(LOOK_AGAIN).await;
                }
            };
            tokio::select! {
                outcome = future => panic!("it ended: {outcome:?}"),
                looked = timeout(DEADLINE, look) => looked.expect("the state comes"),
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
    fn a_freeze_that_is_given_up_thaws() {
        run(async {
            let guest = Hierarchy::new();
            guest.until(guest.commands.freeze(ready(Ok(()))), |guest| guest.asked("jobs") == "1").await;
            assert_eq!((guest.asked("jobs").as_str(), guest.freezer().is_closed()), ("0", false));
        });
    }

    #[test]
    fn commands_that_do_not_stand_still_go_on_after_the_deadline() {
        run(async {
            let guest = Hierarchy::new();
            let fault = guest.commands.freeze(ready(Ok(()))).await.expect_err("nothing stands still");
            assert_eq!(fault.code, ErrorCode::TimedOut);
            assert_eq!((guest.asked("jobs").as_str(), guest.freezer().is_closed()), ("0", false));
        });
    }

    #[test]
    fn nothing_is_frozen_while_a_child_is_being_made() {
        run(async {
            let guest = Hierarchy::new();
            guest.stands();
            let birth = guest.freezer().pass().await;
            let mut freeze = std::pin::pin!(guest.commands.freeze(ready(Ok(()))));
            guest.until(freeze.as_mut(), |guest| guest.freezer().is_closed()).await;
            assert_eq!(guest.asked("jobs"), "0");
            drop(birth);
            assert_eq!(freeze.await, Ok(()));
            assert_eq!(guest.asked("jobs"), "1");
        });
    }

    #[test]
    fn commands_that_wait_start_in_order_after_the_thaw() {
        run(async {
            let guest = Hierarchy::new();
            guest.stands();
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
            tasks.run_until(sleep(LOOK_AGAIN)).await;
            assert_eq!(*order.borrow(), [0; 0]);
            assert_eq!(guest.commands.thaw(), Ok(()));
            tasks.await;
            assert_eq!(*order.borrow(), [1, 2, 3]);
        });
    }

    #[test]
    fn a_thaw_ends_a_freeze_that_is_under_way() {
        run(async {
            let guest = Hierarchy::new();
            let mut freeze = std::pin::pin!(guest.commands.freeze(ready(Ok(()))));
            guest.until(freeze.as_mut(), |guest| guest.asked("jobs") == "1").await;
            let second = guest.commands.freeze(ready(Ok(()))).await.map_err(|fault| fault.code);
            assert_eq!(second, Err(ErrorCode::Busy));
            assert_eq!(guest.commands.thaw(), Ok(()));
            assert_eq!(freeze.await.map_err(|fault| fault.code), Err(ErrorCode::Cancelled));
            assert_eq!(guest.asked("jobs"), "0");
        });
    }

    #[test]
    fn every_group_but_the_agents_is_frozen_and_what_a_command_froze_stays_so() {
        run(async {
            let guest = Hierarchy::new();
            guest.stands();
            add_group(guest.root.path(), "containers", "0");
            add_group(guest.root.path(), "paused", "1");
            add_group(guest.root.path(), "agent", "0");
            let asked = |guest: &Hierarchy| ["jobs", "containers", "paused", "agent"].map(|group| guest.asked(group));
            let mut freeze = std::pin::pin!(guest.commands.freeze(ready(Ok(()))));
            guest.until(freeze.as_mut(), |guest| guest.asked("containers") == "1").await;
            assert_eq!(asked(&guest), ["1", "1", "1", "0"]);
            fs::remove_dir_all(guest.root.path().join("containers")).expect("it is there");
            assert_eq!(freeze.await, Ok(()), "a group that is gone stands still");
            assert_eq!(guest.commands.thaw(), Ok(()));
            assert_eq!(["jobs", "paused", "agent"].map(|group| guest.asked(group)), ["0", "1", "0"]);
        });
    }
}

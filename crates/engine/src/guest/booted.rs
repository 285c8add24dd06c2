//! From a spec or a snapshot to a guest whose agent answers.

use std::time::Duration;

use kiln_detect::{Finding, Lines};
use tokio::time::{Instant, timeout};

use super::vitals::Vitals;
use super::watch::{CRASH_GRACE, End, Gone, Watch};
use crate::driver::{LaunchError, RestoreError};
use crate::engine::{Engine, Fork, ForkSpec};
use crate::link::{Command, GuestLink, LinkError};
use crate::snapshot::Snapshot;
use crate::spec::VmSpec;
use crate::vm::Vm;

/// Rows of the console that come with a [`BootError`].
pub const BOOT_TAIL_ROWS: usize = 20;

/// A VM whose agent answers. Dropping it kills the VM.
///
/// ```no_run
/// # async fn example(
/// #     engine: &dyn kiln_engine::Engine,
/// #     spec: kiln_engine::VmSpec,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// use kiln_engine::Guest;
/// use kiln_engine::guest::Watch;
/// use std::time::Duration;
///
/// let guest = Guest::start(engine, spec, Duration::from_secs(60), Watch::default()).await?;
/// tokio::select! {
///     round_trip = guest.link.ping() => println!("it answers after {:?}", round_trip?),
///     gone = guest.gone() => println!("it is gone: {gone}"),
/// }
/// guest.vm.kill().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Guest {
    /// The VM.
    pub vm: Vm,
    /// The link to its agent.
    pub link: GuestLink,
    /// Time from the request to the agent's answer. For a fork, until it has its own identity.
    pub boot: Duration,
    watch: Watch,
    end: End,
    vitals: Vitals,
}

/// Why a guest did not come up. Its VM has ended.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Its VM did not start.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// Its VMM did not start in time.
    #[error("the guest did not come up within {waited:?}: it has no console yet, its VMM is still starting")]
    NoVmm {
        /// The deadline.
        waited: Duration,
    },
    /// Its agent did not answer.
    #[error("the guest did not come up")]
    Link {
        /// Why.
        #[source]
        source: LinkError,
        /// The last rows of its console.
        console: Vec<String>,
    },
    /// It ended before its agent answered.
    #[error("the guest ended while it booted: {gone}")]
    Gone {
        /// How.
        gone: Gone,
        /// The last rows of its console.
        console: Vec<String>,
    },
}

impl Guest {
    /// Starts a VM and waits for its agent, all within `boot_timeout`. `watch` follows it meanwhile.
    ///
    /// # Errors
    /// [`BootError`]. Nothing of the VM is left then.
    pub async fn start(
        engine: &dyn Engine,
        spec: VmSpec,
        boot_timeout: Duration,
        watch: Watch,
    ) -> Result<Self, BootError> {
        let started = Instant::now();
        let launched = timeout(boot_timeout, engine.launch(spec)).await;
        let mut vm = launched.map_err(|_| BootError::NoVmm { waited: boot_timeout })??;
        let end = follow(&mut vm, &watch);
        let left = boot_timeout.saturating_sub(started.elapsed());
        match link_while_it_lives(&vm, left, &end).await {
            Ok(link) => {
                let vitals = Vitals::watch(&vm, &link, &watch);
                Ok(Self { vm, link, boot: started.elapsed(), watch, end, vitals })
            }
            Err(error) => {
                vm.kill().await;
                Err(error)
            }
        }
    }

    /// Makes one fork of a snapshot. Console output from before the save is not repeated.
    ///
    /// # Errors
    /// [`RestoreError`]. Nothing of the fork is left then.
    pub async fn fork(
        engine: &dyn Engine,
        snapshot: &Snapshot,
        forks: ForkSpec,
        watch: Watch,
    ) -> Result<Self, RestoreError> {
        let started = Instant::now();
        let forks = engine.restore(snapshot, ForkSpec { count: 1, ..forks }).await?;
        let fork = forks.into_iter().next().expect("all that were asked for are there");
        Ok(Self::of(fork, started.elapsed(), watch))
    }

    /// Watches a running fork. `boot` is the time that it took.
    ///
    /// # Panics
    /// If its VM's events were taken before.
    pub fn of(fork: Fork, boot: Duration, watch: Watch) -> Self {
        let Fork { mut vm, link } = fork;
        let end = follow(&mut vm, &watch);
        let vitals = Vitals::watch(&vm, &link, &watch);
        Self { vm, link, boot, watch, end, vitals }
    }

    /// A command to run in it.
    pub fn command(&self, program: impl Into<kiln_wire::Text>) -> Command {
        self.link.command(program)
    }

    /// Its events and findings.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// The findings of its kernel so far. If only the host can see that the guest is over, that is a finding too.
    pub fn findings(&self) -> Vec<Finding> {
        self.watch.findings()
    }

    /// The last rows of its console, oldest first, safe for a terminal. Also available after its end.
    pub fn console_tail(&self, rows: usize) -> Vec<String> {
        console_rows(&self.vm, rows)
    }

    /// Links to its agent again after the link was lost.
    ///
    /// # Errors
    /// The agent does not answer. The guest keeps its old link.
    pub async fn relink(&mut self, deadline: Duration) -> Result<(), LinkError> {
        self.link = self.vm.connect(deadline).await?;
        self.vitals = Vitals::watch(&self.vm, &self.link, &self.watch);
        Ok(())
    }

    /// Waits until the guest is over: its VM has ended, its kernel reported a fatal error, its CPUs are halted for
    /// good, or its agent was silent for too long. Safe to cancel, and to call more than once.
    pub async fn gone(&self) -> Gone {
        tokio::select! {
            // A report of its kernel or its VMM explains more.
            biased;
            gone = self.end.gone() => gone,
            over = self.vitals.over() => over.into(),
        }
    }

    /// Returns how the VM ended, if its end explains the lost link. Waits a moment for that.
    pub async fn gone_soon(&self) -> Option<Gone> {
        gone_soon(&self.end).await
    }
}

fn follow(vm: &mut Vm, watch: &Watch) -> End {
    watch.follow(vm.take_events().expect("only this call takes the VM's events"))
}

async fn link_while_it_lives(vm: &Vm, deadline: Duration, end: &End) -> Result<GuestLink, BootError> {
    let linked = tokio::select! {
        linked = vm.connect(deadline) => linked,
        gone = end.gone() => return Err(BootError::Gone { gone, console: console_rows(vm, BOOT_TAIL_ROWS) }),
    };
    match linked {
        Ok(link) => Ok(link),
        Err(source) => Err(not_up(vm, source, end).await),
    }
}

async fn gone_soon(end: &End) -> Option<Gone> {
    // A crash is reported only after the grace, and its report takes some time to be printed.
    timeout(2 * CRASH_GRACE, end.gone()).await.ok()
}

async fn not_up(vm: &Vm, source: LinkError, end: &End) -> BootError {
    let gone = match source {
        LinkError::Closed { .. } | LinkError::Io(_) => gone_soon(end).await,
        _ => end.now(),
    };
    let console = console_rows(vm, BOOT_TAIL_ROWS);
    match gone {
        Some(gone) => BootError::Gone { gone, console },
        None => BootError::Link { source, console },
    }
}

fn console_rows(vm: &Vm, rows: usize) -> Vec<String> {
    last_rows(&vm.console_tail(rows), rows)
}

/// The last rows of a console, safe for a terminal. A guest can draw and send escape sequences, which split one line
/// into any number of rows.
fn last_rows(raw: &[String], count: usize) -> Vec<String> {
    let mut lines = Lines::new();
    let mut rows: Vec<String> = raw.iter().flat_map(|line| lines.push(format!("{line}\n").as_bytes())).collect();
    rows.drain(..rows.len().saturating_sub(count));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::every_variant::{chains, every_variant};
    use crate::guest::Lagged;

    #[test]
    fn the_end_of_a_console_cannot_steer_the_terminal_of_its_reader() {
        let mut raw = vec!["\x1b]0;title\x07boot\r\x1b[2Jok".to_owned()];
        raw.extend((0..BOOT_TAIL_ROWS).map(|number| format!("\x1b[31m{number}\rx")));
        let rows = last_rows(&raw, BOOT_TAIL_ROWS);
        assert_eq!(rows.len(), BOOT_TAIL_ROWS);
        assert!(rows.iter().all(|row| !row.contains('\x1b') && !row.contains('\r')), "{rows:?}");
        assert_eq!(rows.last().map(String::as_str), Some("x"));
    }

    fn panic() -> Box<Finding> {
        let (title, at) = ("kernel panic: no working init found".to_owned(), Duration::from_secs(1));
        Box::new(Finding::new(title, kiln_detect::Kind::Panic, kiln_detect::Severity::Fatal, Vec::new(), at))
    }

    #[test]
    fn each_error_has_its_text() {
        let waited = Duration::from_secs(60);
        let gone = every_variant!(Gone {
            Crashed: [Gone::Crashed(panic())],
            Exited: [Gone::Exited(crate::vm::VmExit {
                status: crate::process::VmmStatus::Code(0),
                reason: crate::vm::ExitReason::GuestPoweredOff,
            })],
            Halted: [Gone::Halted],
            Silent: [Gone::Silent(waited)],
        });
        let gone: Vec<_> = gone.iter().map(|(name, gone)| format!("{name}\n  {gone}")).collect();
        let source = LinkError::TimedOut { waiting_for: "hello", waited };
        let errors = every_variant!(BootError {
            Launch: [BootError::Launch(LaunchError::VmmMissing { program: "qemu-system-x86_64".into() })],
            NoVmm: [BootError::NoVmm { waited }],
            Link: [BootError::Link { source, console: Vec::new() }],
            Gone: [BootError::Gone { gone: Gone::Halted, console: Vec::new() }],
        });
        let texts = [
            gone.join("\n"),
            chains(&errors, |_| Vec::new()),
            chains(&[("Lagged", Lagged { missed: 3 })], |_| Vec::new()),
            chains(&[("TooSlow", crate::deadlines::TooSlow)], |_| Vec::new()),
        ];
        insta::assert_snapshot!(texts.join("\n"));
    }
}

//! The steps of a run in its guest, and what can end each of them early.
//!
//! ```text
//!   --in ─▶ the command starts ─▶ it runs ─▶ --out ─▶ its exit code
//!     └──────────┴───────────────────┴─────────┴──▶ the guest is gone · a signal to kiln · --timeout
//! ```

use std::fmt;

use kiln_engine::Guest;
use kiln_engine::deadlines::RunClock;
use kiln_engine::guest::Gone;
use serde::Serialize;

use super::job::{Job, rename};
use super::report::Report;
use super::transfer;
use crate::failure::{Failure, TIMED_OUT, VM};
use crate::guest;
use crate::interrupt::Interrupts;

/// The phases of a run that `--timeout` bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// `--in`.
    CopyIn,
    /// Starting the command.
    Start,
    /// Running the command.
    Command,
    /// `--out`.
    CopyOut,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CopyIn => "copying files into the guest",
            Self::Start => "waiting for the command to start",
            Self::Command => "waiting for the guest to end the command",
            Self::CopyOut => "copying files out of the guest",
        })
    }
}

/// What all steps share.
pub(super) struct Steps<'a> {
    pub guest: &'a Guest,
    pub interrupts: &'a mut Interrupts,
    pub clock: RunClock,
}

/// Why a run ends before its last step.
pub(super) enum Cut {
    Failed(Failure),
    TimedOut(Phase),
    /// The guest ended on its own.
    Gone(Gone),
    /// A signal arrived; kiln exits with this code.
    Interrupted(u8),
}

impl From<Failure> for Cut {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Job {
    /// Runs all steps in order. `--timeout` counts from here, since the VM runs now.
    pub(super) async fn in_guest(
        &self,
        guest: &Guest,
        interrupts: &mut Interrupts,
        report: &mut Report,
    ) -> Result<u8, Failure> {
        let clock = RunClock::start(self.args.timeout, self.args.grace);
        match self.steps(&mut Steps { guest, interrupts, clock }, report).await {
            Ok(code) | Err(Cut::Interrupted(code)) => Ok(code),
            Err(Cut::Failed(failure)) => Err(failure),
            Err(Cut::Gone(gone)) => Err(guest::cut_off(guest, &gone)),
            Err(Cut::TimedOut(phase)) => {
                report.timed_out_in(phase);
                let after = self.args.timeout.unwrap_or_default();
                Err(Failure::words(TIMED_OUT, format!("timed out after {after:?} while {phase}: killed the VM")))
            }
        }
    }

    async fn steps(&self, steps: &mut Steps<'_>, report: &mut Report) -> Result<u8, Cut> {
        let (guest, clock) = (steps.guest, steps.clock);
        let copied = async {
            if let Some(name) = &self.args.docker.hostname {
                rename(&guest.link, name).await?;
            }
            for copy in &self.copy_in {
                transfer::copy_in(&guest.link, copy).await.map_err(|error| Failure::new(VM, error))?;
            }
            Ok(())
        };
        steps.run(Phase::CopyIn, clock.up(), copied).await?;
        let ended = self.command(steps, report).await?;
        let fetched = transfer::copy_all_out(&guest.link, &self.copy_out, self.args.out_limit);
        // The files of a command that timed out are useful, so copying them gets some time more.
        let late = async { if ended.timed_out { clock.overdue().await } else { clock.up().await } };
        match steps.run(Phase::CopyOut, late, fetched).await {
            // The command's exit code is more important than a failure to copy its result.
            Err(Cut::Failed(failure)) if ended.code != 0 => {
                self.note(&failure, report);
                Ok(ended.code)
            }
            Err(Cut::Gone(gone)) if ended.code != 0 => {
                self.note(&guest::cut_off(guest, &gone), report);
                Ok(ended.code)
            }
            other => other.map(|()| ended.code),
        }
    }

    /// Reports a failure that does not decide kiln's exit code.
    fn note(&self, failure: &Failure, report: &mut Report) {
        if self.args.json {
            report.failed(failure);
        } else {
            failure.print();
        }
    }
}

impl Steps<'_> {
    /// Runs one step, unless something ends it early.
    pub(super) async fn run<T>(
        &mut self,
        phase: Phase,
        late: impl Future<Output = ()>,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Cut> {
        tokio::select! {
            done = work => Ok(done?),
            gone = self.guest.gone() => Err(Cut::Gone(gone)),
            code = self.interrupts.any() => Err(Cut::Interrupted(code)),
            () = late => Err(Cut::TimedOut(phase)),
        }
    }
}

//! What `kiln verify fork` prints.

use std::time::Duration;

use owo_colors::OwoColorize as _;
use serde::Serialize;

use super::checks::Check;
use super::proof::Times;
use crate::args::VerifyForkArgs;
use crate::output::{plain, print, print_json};

/// What no fork can have of its own: a process that goes on is one because it is the same.
const ALIKE: &str = "alike in all forks, as it must be: PID 1 and every process that goes on, and what they had in memory \
                     when they were saved (keys, seeds, a boot id read earlier)";

/// A proof that came to its end.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Every check holds.
    pub ok: bool,
    checks: Vec<Check>,
    /// What forks share on purpose.
    alike: &'static str,
    image: String,
    accel: &'static str,
    forks: usize,
    boot_ms: f64,
    save_ms: f64,
    fork_p50_ms: f64,
    fork_max_ms: f64,
    total_ms: f64,
}

impl Report {
    /// Of a proof that took `total`.
    pub fn new(checks: Vec<Check>, args: &VerifyForkArgs, accel: &'static str, times: &Times, total: Duration) -> Self {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let mut forks: Vec<f64> = times.forks.iter().copied().map(ms).collect();
        forks.sort_by(f64::total_cmp);
        Self {
            ok: checks.iter().all(|check| check.ok),
            checks,
            alike: ALIKE,
            image: args.image.clone(),
            accel,
            forks: args.forks,
            boot_ms: ms(times.boot),
            save_ms: ms(times.save),
            fork_p50_ms: forks.get(forks.len().saturating_sub(1) / 2).copied().unwrap_or_default(),
            fork_max_ms: forks.last().copied().unwrap_or_default(),
            total_ms: ms(total),
        }
    }

    /// Prints it as one line of JSON.
    pub fn print_json(&self) -> anyhow::Result<()> {
        print_json(self)
    }

    /// Prints a line for each check, and a summary.
    pub fn print(&self) -> anyhow::Result<()> {
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
        for Check { name, ok, evidence } in &self.checks {
            let verdict = if *ok { "ok  ".green().to_string() } else { "FAIL".red().bold().to_string() };
            print(format_args!("{verdict}  {name:<width$}  {}", plain(evidence)))?;
        }
        let held = self.checks.iter().filter(|check| check.ok).count();
        let Self { forks, image, accel, boot_ms, save_ms, fork_p50_ms, fork_max_ms, total_ms, .. } = self;
        print(format_args!(
            "{held} of {} checks hold, with {forks} forks of {image} under {accel}",
            self.checks.len()
        ))?;
        print(ALIKE)?;
        print(format_args!(
            "boot {boot_ms:.0} ms · save {save_ms:.0} ms · fork p50 {fork_p50_ms:.0} ms, max {fork_max_ms:.0} ms · \
             all {:.1} s",
            total_ms / 1000.0
        ))
    }
}

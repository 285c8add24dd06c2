//! What `kiln verify fork` prints.

use std::time::Duration;

use owo_colors::OwoColorize as _;
use serde::Serialize;

use super::checks::Check;
use super::proof::Times;
use crate::args::VerifyForkArgs;
use crate::output::{plain, print, print_json};

/// What no fork can have of its own, because a fork continues the processes of the VM that was saved.
const ALIKE: &str = "the same in all forks, as it must be: PID 1, every process that ran when the VM was saved, and what they \
                     had in memory (keys, seeds, a boot id read earlier)";

/// The report of a complete proof.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether every check holds.
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
    /// The report of a proof that took `total`.
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

    /// Prints the report as one line of JSON.
    pub fn print_json(&self) -> anyhow::Result<()> {
        print_json(self)
    }

    /// Prints a line for each check, and a summary.
    pub fn print(&self) -> anyhow::Result<()> {
        print(self.text())
    }

    fn text(&self) -> String {
        let mut lines = Vec::new();
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
        for Check { name, ok, evidence } in &self.checks {
            let verdict = if *ok { "ok  ".green().to_string() } else { "FAIL".red().bold().to_string() };
            lines.push(format!("{verdict}  {name:<width$}  {}", plain(evidence)));
        }
        let held = self.checks.iter().filter(|check| check.ok).count();
        let Self { forks, image, accel, boot_ms, save_ms, fork_p50_ms, fork_max_ms, total_ms, .. } = self;
        lines.push(format!("{held} of {} checks hold, with {forks} forks of {image} under {accel}", self.checks.len()));
        lines.push(ALIKE.into());
        lines.push(format!(
            "boot {boot_ms:.0} ms · save {save_ms:.0} ms · fork p50 {fork_p50_ms:.0} ms, max {fork_max_ms:.0} ms · \
             total {:.1} s",
            total_ms / 1000.0
        ));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Args, Command, VerifyCommand};

    #[test]
    fn a_report_has_a_line_for_each_check_and_a_summary() {
        let line = Args::try_parse_from(["kiln", "verify", "fork", "--forks", "2", "--image", "mini"]);
        let Command::Verify(verify) = line.expect("a good line").command else { panic!("another command") };
        let VerifyCommand::Fork(args) = verify.command;
        let check = |name, ok, evidence: &str| Check { name, ok, evidence: evidence.into() };
        let checks = vec![
            check("uuids differ", true, "4 of 4, such as a and b"),
            check("host names differ", false, "fork 1 and fork 2 both have kiln-7"),
        ];
        let ms = Duration::from_millis;
        let times = Times { boot: ms(2100), save: ms(40), forks: vec![ms(90), ms(70)] };
        let report = Report::new(checks, &args, "tcg", &times, ms(20_400));
        insta::assert_snapshot!(anstream::adapter::strip_str(&report.text()));
    }
}

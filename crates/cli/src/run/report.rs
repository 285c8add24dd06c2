//! The JSON object that `kiln run --json` prints, also if the run fails.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_detect::{CrashType, Finding, Kind, Severity};
use kiln_engine::image::MINI;
use kiln_engine::snapshot::SnapshotId;
use kiln_wire::{ExitStatus, Exited, Text};
use serde::Serialize;

use super::job::Times;
use super::pump::Captured;
use super::step::Phase;
use crate::args::RunArgs;
use crate::args::docker::DockerArgs;
use crate::failure::Failure;
use crate::image::accel_name;
use crate::output::print_json;

/// One run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Kiln's exit code.
    pub exit_code: u8,
    /// The command's exit code, 128 + n if signal n ended it; `None` if it did not end. Differs from `exit_code` if
    /// another step failed, such as --out.
    pub command_exit_code: Option<i32>,
    /// The signal that ended the command.
    pub signal: Option<i32>,
    /// What failed, if it was not the command.
    pub error: Option<String>,
    /// What the user can do about `error`.
    pub hint: Option<String>,
    /// The command's stdout: a string, or `{"base64": …}` if it is not UTF-8.
    pub stdout: Text,
    /// The command's stderr, in the form of `stdout`.
    pub stderr: Text,
    /// Some output was dropped.
    pub truncated: bool,
    pub timed_out: bool,
    /// The phase in which `--timeout` killed the VM; `None` if the agent stopped the command in time.
    pub timed_out_in: Option<Phase>,
    pub oom_killed: bool,
    /// A process outlived the command, held its output open and was killed.
    pub pipes_held: bool,
    /// What the command used; `None` if it did not end.
    pub usage: Option<Usage>,
    /// From --name and --label.
    pub name: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// The image; `None` with `--from`.
    pub image: Option<String>,
    /// The snapshot that `--from` names.
    pub from: Option<SnapshotId>,
    /// The snapshot that `kiln snapshot create` saved.
    pub snapshot: Option<SnapshotId>,
    /// `kvm` or `tcg`; `None` if no VM started.
    pub accel: Option<&'static str>,
    /// How the VM started; `None` if it did not.
    pub start: Option<Start>,
    /// Time from the request for the VM to its agent's first reply, in milliseconds, if the VM was forked.
    pub fork_ms: Option<f64>,
    /// The same, if the VM booted.
    pub boot_ms: Option<f64>,
    /// Time for making the ready-made snapshot, in milliseconds, if it did not exist.
    pub ready_ms: Option<f64>,
    pub total_ms: f64,
    /// Findings in the guest's kernel log.
    pub findings: Vec<FindingReport>,
}

/// How a VM started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Forked from a snapshot.
    Fork,
    /// Booted.
    Boot,
}

/// What a command used.
#[derive(Debug, Serialize)]
pub struct Usage {
    pub wall_ms: f64,
    pub user_ms: f64,
    pub sys_ms: f64,
    pub max_rss_bytes: u64,
}

/// One finding in the guest's kernel log, or the end of the guest if only the host noticed it.
#[derive(Debug, Serialize)]
pub struct FindingReport {
    pub title: String,
    pub kind: Kind,
    #[serde(rename = "type")]
    pub crash_type: CrashType,
    pub severity: Severity,
    pub log: Vec<String>,
}

impl From<Finding> for FindingReport {
    fn from(finding: Finding) -> Self {
        let Finding { title, kind, crash_type, severity, extract: log, .. } = finding;
        Self { title, kind, crash_type, severity, log }
    }
}

impl Report {
    /// The report of a run that has not started.
    pub fn of(args: &RunArgs, image: Option<&str>) -> Self {
        let DockerArgs { name, labels, .. } = &args.docker;
        let labels = labels.iter().cloned().collect();
        let image = args.from.is_none().then(|| image.unwrap_or(MINI).to_owned());
        Self { image, name: name.clone(), labels, ..Self::default() }
    }

    pub fn failed(&mut self, failure: &Failure) {
        self.error = Some(failure.message());
        self.hint = failure.hint_text().map(str::to_owned);
    }

    pub fn exited(&mut self, exited: &Exited) {
        self.command_exit_code = Some(match exited.status {
            ExitStatus::Code(code) => code & 0xff,
            signal @ ExitStatus::Signal(_) => signal.shell_code().clamp(0, 255),
        });
        if let ExitStatus::Signal(signal) = exited.status {
            self.signal = Some(signal);
        }
        self.truncated |= exited.truncated;
        self.timed_out = exited.timed_out;
        self.oom_killed = exited.oom_killed;
        self.pipes_held = exited.pipes_held;
        let ms = |us: u64| us as f64 / 1000.0;
        self.usage = Some(Usage {
            wall_ms: ms(exited.wall_us),
            user_ms: ms(exited.user_us),
            sys_ms: ms(exited.sys_us),
            max_rss_bytes: exited.max_rss_bytes,
        });
    }

    pub fn timed_out_in(&mut self, phase: Phase) {
        self.timed_out = true;
        self.timed_out_in = Some(phase);
    }

    pub fn output(&mut self, captured: Captured) {
        self.stdout = captured.stdout.into();
        self.stderr = captured.stderr.into();
        self.truncated |= captured.truncated;
    }

    pub fn started(&mut self, start: Start, took: Duration) {
        self.start = Some(start);
        match start {
            Start::Fork => self.fork_ms = Some(ms(took)),
            Start::Boot => self.boot_ms = Some(ms(took)),
        }
    }

    pub fn times(&mut self, times: &Times) {
        self.accel = times.accel.map(accel_name);
        self.ready_ms = times.ready.map(ms);
        self.total_ms = ms(times.start.elapsed());
    }

    /// Prints the report as one line of JSON.
    pub fn print(&self) -> anyhow::Result<()> {
        print_json(self)
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_these_fields_also_if_no_vm_started() {
        let report = serde_json::to_string_pretty(&Report::default()).expect("a report is JSON");
        insta::assert_snapshot!(report);
    }

    #[test]
    fn a_report_of_a_command_has_its_end_and_its_findings() {
        let finding = FindingReport {
            title: "kernel panic: sysrq triggered crash".into(),
            kind: Kind::Panic,
            crash_type: CrashType::DenialOfService,
            severity: Severity::Fatal,
            log: vec!["Kernel panic - not syncing: sysrq triggered crash".into()],
        };
        let mut report = Report { findings: vec![finding], ..Report::default() };
        report.exited(&Exited {
            status: ExitStatus::Signal(9),
            wall_us: 6100,
            user_us: 900,
            sys_us: 4200,
            max_rss_bytes: 1 << 20,
            oom_killed: false,
            timed_out: true,
            truncated: false,
            pipes_held: true,
        });
        report.timed_out_in(Phase::CopyOut);
        report.started(Start::Fork, Duration::from_millis(85));
        report.failed(&Failure::words(125, "the guest crashed").hint("look at its console"));
        report.output(Captured { stdout: b"text".to_vec(), stderr: vec![0xff], truncated: true });
        insta::assert_snapshot!(serde_json::to_string_pretty(&report).expect("a report is JSON"));
    }
}

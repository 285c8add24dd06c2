//! A plan that is right.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What to test, where and how.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The name in reports and in the history.
    pub name: String,
    /// What it is for.
    pub about: Option<String>,
    /// 1: minutes, 2: under an hour, 3: hours.
    pub level: u8,
    /// Time for a whole run.
    pub budget: Duration,
    /// The VM of each cell.
    pub vm: VmPlan,
    /// Axes of the matrix, in the order of their names.
    pub matrix: BTreeMap<String, Vec<String>>,
    /// What runs once in each cell.
    pub prepare: Prepare,
    /// The suites, in their order.
    pub suites: Vec<Suite>,
    /// Which cases share a VM.
    pub isolate: Isolate,
    /// Which reports of the kernel fail a case.
    pub detect: Detect,
    /// Further attempts of a case that failed.
    pub retry: Retry,
    /// Who is informed of what.
    pub alert: Option<Alert>,
}

/// The VM of each cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmPlan {
    /// The image.
    pub image: String,
    /// The kernel, unless it is that of the image.
    pub kernel: Option<String>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory_mib: u64,
    /// Scratch disks.
    pub disks: Vec<ScratchDisk>,
    /// Modules that the agent loads at boot.
    pub modules: Vec<String>,
    /// Time until the agent answers.
    pub boot_timeout: Duration,
    /// Variables of all commands.
    pub env: BTreeMap<String, String>,
}

/// A scratch disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ScratchDisk {
    /// Its device is in the variable `KILN_DISK_<name>`.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
}

/// What runs once in each cell, before it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prepare {
    /// Scripts.
    pub run: Vec<String>,
    /// Files that are copied in before them: from the host, to the guest.
    pub copy: Vec<(String, String)>,
    /// Time for each script.
    pub timeout: Duration,
}

/// How results of a suite are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SuiteKind {
    /// The exit code is the result of the one case.
    Command,
    /// Test Anything Protocol, versions 12 to 14.
    Tap,
    /// The kernel's TAP.
    Ktap,
    /// JUnit XML.
    Junit,
    /// JSON lines of libtest and nextest.
    Libtest,
}

/// A suite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Suite {
    /// How its results are read.
    pub kind: SuiteKind,
    /// The name, unique in the plan.
    pub name: String,
    /// A script.
    pub run: String,
    /// Time for one attempt.
    pub timeout: Duration,
    /// The lowest level at which it runs.
    pub level: u8,
    /// Variables of its command.
    pub env: BTreeMap<String, String>,
    /// The file with the results, unless it is stdout.
    pub results: Option<String>,
    /// What a pass looks like.
    pub expect: Expect,
    /// Whether its failures count.
    pub quarantine: Option<Quarantine>,
    /// Values of the matrix with which it runs.
    pub only: BTreeMap<String, Vec<String>>,
}

/// What a pass looks like.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Expect {
    /// The exit code.
    pub exit: u8,
    /// A title of a finding that must come, in which `*` matches any text.
    pub finding: Option<String>,
    /// Text that stdout contains.
    pub stdout: Option<String>,
}

/// A suite or some of its cases whose failures don't count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quarantine {
    /// Why.
    pub reason: String,
    /// The last day.
    pub until: Day,
    /// Patterns of names of cases. Empty means all.
    pub cases: Vec<String>,
}

/// A day: year, month, day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Day(pub u16, pub u8, pub u8);

/// Which cases share a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolate {
    /// A fork for each case.
    #[default]
    Case,
    /// A fork for each suite.
    Suite,
    /// A fork for all suites of a cell.
    Cell,
}

/// Which reports of the kernel fail a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Detect {
    /// The least severe that does. `None` if none does.
    pub fail_on: Option<kiln_detect::Severity>,
    /// Those that don't.
    pub ignore: Vec<Ignored>,
    /// Whether new taint of the kernel does.
    pub taint: bool,
}

/// Findings that don't fail a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ignored {
    /// Their title, in which `*` matches any text.
    pub title: String,
    /// Why.
    pub reason: String,
    /// The last day.
    pub until: Option<Day>,
}

/// Further attempts of a case that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Retry {
    /// Attempts in all.
    pub attempts: u32,
    /// Whether a case that fails first and passes then fails the run.
    pub flaky_fails: bool,
}

/// Who is informed of what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// Events that cause an alert.
    pub when: Vec<AlertEvent>,
    /// The share of failed cases that causes an alert.
    pub failure_rate_percent: u8,
    /// A URL.
    pub webhook: Option<String>,
    /// A script of the host.
    pub command: Option<String>,
    /// An address.
    pub mail: Option<String>,
    /// Patterns of keys of alerts that are not sent.
    pub silence: Vec<String>,
}

/// An event that causes an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlertEvent {
    /// A title that the history does not have.
    NewFinding,
    /// A case fails that passed before.
    Regression,
    /// Many cases fail.
    FailureRate,
    /// The host is short of memory or disk.
    HostShort,
    /// A VM can't be reached.
    VmUnreachable,
}

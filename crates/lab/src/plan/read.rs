//! Text in, a plan or all its problems out.
//!
//! ```text
//!   text ── TOML ──▶ document ── check: keys and kinds ──▶ read: defaults, cross references ──▶ Plan
//!            │                     │                         │
//!            └─────────────────────┴── problems ─────────────┘
//! ```
//! The document is read only if its keys and kinds are right, so that a wrong key is not reported twice.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use kiln_detect::Severity;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use toml::value::Datetime;

use super::check::{self, Places};
use super::keys;
use super::model::{
    Alert, AlertEvent, Day, Detect, Expect, Ignored, Isolate, Plan, Prepare, Quarantine, Retry, ScratchDisk, Suite,
    SuiteKind, VmPlan,
};
use super::problem::{Problem, Problems};

/// The largest plan. It is read as a whole.
pub const PLAN_BYTES_MAX: usize = 4 << 20;
/// Cells of one plan. Each is prepared and saved.
pub const CELLS_MAX: usize = 1000;

const MEBIBYTE: u64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);
/// Budgets of the levels 1, 2 and 3.
const BUDGETS: [Duration; 3] =
    [Duration::from_secs(10 * 60), Duration::from_secs(3600), Duration::from_secs(12 * 3600)];

impl Plan {
    /// Reads a plan.
    ///
    /// ```
    /// use kiln_lab::plan::Plan;
    ///
    /// let plan = Plan::parse("[plan]\nname = 'one'\n[[suite]]\nkind = 'command'\nname = 'true'\nrun = 'true'\n").unwrap();
    /// assert_eq!(plan.suites[0].run, "true");
    /// let problems = Plan::parse("[plan]\nnam = 'one'\n").unwrap_err();
    /// assert_eq!(problems[1].to_string(), "2:1: plan: unknown key `nam` (did you mean `name`?)");
    /// ```
    ///
    /// # Errors
    /// All problems that were found, in the order of the file.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let mut problems = Problems::of(text);
        if text.len() > PLAN_BYTES_MAX {
            problems.add(&(0..0), "", format!("has more than {PLAN_BYTES_MAX} bytes"));
            return Err(problems.into_sorted());
        }
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            problems.add(&error.span().unwrap_or(0..0), "", error.message());
        }
        if !problems.is_empty() {
            // The document lacks what could not be read, so more problems of it would mislead.
            return Err(problems.into_sorted());
        }
        let places = check::check(&document, &keys::PLAN, &mut problems);
        if !problems.is_empty() {
            return Err(problems.into_sorted());
        }
        let plan = plan(&Section(Some(document.get_ref())));
        Across { plan: &plan, places: &places, problems: &mut problems }.check();
        if problems.is_empty() { Ok(plan) } else { Err(problems.into_sorted()) }
    }
}

/// MiB of text such as `512M`.
pub(crate) fn size_mib(text: &str) -> Option<u64> {
    check::size(text).ok().map(|bytes| bytes / MEBIBYTE)
}

/// A table of a document whose keys and kinds are right. `None` if the table is absent.
#[derive(Clone, Copy)]
struct Section<'a>(Option<&'a DeTable<'a>>);

impl<'a> Section<'a> {
    fn get(self, key: &str) -> Option<&'a DeValue<'a>> {
        self.0?.get(key).map(Spanned::get_ref)
    }

    fn section(self, key: &str) -> Option<Self> {
        match self.get(key)? {
            DeValue::Table(table) => Some(Self(Some(table))),
            _ => None,
        }
    }

    fn section_or_empty(self, key: &str) -> Self {
        self.section(key).unwrap_or(Self(None))
    }

    fn list(self, key: &str) -> impl Iterator<Item = &'a DeValue<'a>> {
        let entries = match self.get(key) {
            Some(DeValue::Array(entries)) => Some(entries),
            _ => None,
        };
        entries.into_iter().flat_map(|entries| entries.iter().map(Spanned::get_ref))
    }

    fn sections(self, key: &str) -> impl Iterator<Item = Self> {
        self.list(key).filter_map(|value| match value {
            DeValue::Table(table) => Some(Self(Some(table))),
            _ => None,
        })
    }

    fn text(self, key: &str) -> Option<String> {
        self.get(key).map(scalar)
    }

    fn texts(self, key: &str) -> Vec<String> {
        self.list(key).map(scalar).collect()
    }

    fn number<T: TryFrom<i64>>(self, key: &str) -> Option<T> {
        check::integer(self.get(key)?)?.try_into().ok()
    }

    fn flag(self, key: &str) -> Option<bool> {
        match self.get(key)? {
            DeValue::Boolean(flag) => Some(*flag),
            _ => None,
        }
    }

    fn duration(self, key: &str) -> Option<Duration> {
        check::duration(self.get(key)?.as_str()?).ok()
    }

    fn size(self, key: &str) -> Option<u64> {
        check::size(self.get(key)?.as_str()?).ok()
    }

    fn day(self, key: &str) -> Option<Day> {
        let date = match self.get(key)? {
            DeValue::Datetime(Datetime { date, .. }) => *date,
            DeValue::String(text) => check::date(text),
            _ => None,
        }?;
        Some(Day(date.year, date.month, date.day))
    }

    fn map<T>(self, key: &str, of: impl Fn(&'a DeValue<'a>) -> T) -> BTreeMap<String, T> {
        let entries = self.section_or_empty(key).0.into_iter().flatten();
        entries.map(|(name, value)| (name.get_ref().to_string(), of(value.get_ref()))).collect()
    }

    fn env(self) -> BTreeMap<String, String> {
        self.map("env", scalar)
    }

    fn axes(self, key: &str) -> BTreeMap<String, Vec<String>> {
        self.map(key, |value| match value {
            DeValue::Array(entries) => entries.iter().map(|entry| scalar(entry.get_ref())).collect(),
            _ => Vec::new(),
        })
    }
}

/// Text or a number, as a command sees it.
fn scalar(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(_) => check::integer(value).map_or_else(String::new, |number| number.to_string()),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(flag) => flag.to_string(),
        _ => String::new(),
    }
}

fn plan(document: &Section<'_>) -> Plan {
    let head = document.section_or_empty("plan");
    let level = head.number("level").unwrap_or(1_u8);
    Plan {
        name: head.text("name").unwrap_or_default(),
        about: head.text("about"),
        level,
        budget: head.duration("budget").unwrap_or(BUDGETS[usize::from(level.clamp(1, 3)) - 1]),
        vm: vm(document.section_or_empty("vm")),
        matrix: document.axes("matrix"),
        prepare: prepare(document.section_or_empty("prepare")),
        suites: document.sections("suite").map(|section| suite(section, level)).collect(),
        isolate: match document.section_or_empty("isolate").text("per").as_deref() {
            Some("suite") => Isolate::Suite,
            Some("cell") => Isolate::Cell,
            _ => Isolate::Case,
        },
        detect: detect(document.section_or_empty("detect")),
        retry: retry(document.section_or_empty("retry")),
        alert: document.section("alert").map(alert),
    }
}

fn vm(section: Section<'_>) -> VmPlan {
    let disk = |disk: Section<'_>| ScratchDisk {
        name: disk.text("name").unwrap_or_default(),
        size_bytes: disk.size("size").unwrap_or_default(),
    };
    VmPlan {
        image: section.text("image").unwrap_or_else(|| "mini".into()),
        kernel: section.text("kernel"),
        cpus: section.number("cpus").unwrap_or(1),
        memory_mib: section.size("memory").unwrap_or(256 * MEBIBYTE) / MEBIBYTE,
        disks: section.sections("disks").map(disk).collect(),
        modules: section.texts("modules"),
        boot_timeout: section.duration("boot_timeout").unwrap_or(MINUTE),
        env: section.env(),
    }
}

fn prepare(section: Section<'_>) -> Prepare {
    let copy = |copy: Section<'_>| (copy.text("from").unwrap_or_default(), copy.text("to").unwrap_or_default());
    Prepare {
        run: section.texts("run"),
        copy: section.sections("copy").map(copy).collect(),
        timeout: section.duration("timeout").unwrap_or(5 * MINUTE),
    }
}

fn suite(section: Section<'_>, level: u8) -> Suite {
    let expect = section.section_or_empty("expect");
    let quarantine = section.section("quarantine").map(|quarantine| Quarantine {
        reason: quarantine.text("reason").unwrap_or_default(),
        until: quarantine.day("until").unwrap_or(Day(0, 0, 0)),
        cases: quarantine.texts("cases"),
    });
    Suite {
        kind: match section.text("kind").as_deref() {
            Some("tap") => SuiteKind::Tap,
            Some("ktap") => SuiteKind::Ktap,
            Some("junit") => SuiteKind::Junit,
            Some("libtest") => SuiteKind::Libtest,
            _ => SuiteKind::Command,
        },
        name: section.text("name").unwrap_or_default(),
        run: section.text("run").unwrap_or_default(),
        timeout: section.duration("timeout").unwrap_or(MINUTE),
        level: section.number("level").unwrap_or(level),
        env: section.env(),
        results: section.text("results"),
        expect: Expect {
            exit: expect.number("exit").unwrap_or(0),
            finding: expect.text("finding"),
            stdout: expect.text("stdout"),
        },
        quarantine,
        only: section.axes("only"),
    }
}

fn detect(section: Section<'_>) -> Detect {
    let ignored = |ignored: Section<'_>| Ignored {
        title: ignored.text("title").unwrap_or_default(),
        reason: ignored.text("reason").unwrap_or_default(),
        until: ignored.day("until"),
    };
    Detect {
        fail_on: match section.text("fail_on").as_deref() {
            Some("never") => None,
            Some("error") => Some(Severity::Error),
            Some("fatal") => Some(Severity::Fatal),
            _ => Some(Severity::Warning),
        },
        ignore: section.sections("ignore").map(ignored).collect(),
        taint: section.flag("taint").unwrap_or(true),
    }
}

fn retry(section: Section<'_>) -> Retry {
    Retry {
        attempts: section.number("attempts").unwrap_or(1),
        flaky_fails: section.text("flaky").as_deref() == Some("fail"),
    }
}

fn alert(section: Section<'_>) -> Alert {
    const ALL: [(&str, AlertEvent); 5] = [
        ("new-finding", AlertEvent::NewFinding),
        ("regression", AlertEvent::Regression),
        ("failure-rate", AlertEvent::FailureRate),
        ("host-short", AlertEvent::HostShort),
        ("vm-unreachable", AlertEvent::VmUnreachable),
    ];
    let wanted = section.texts("when");
    let is_wanted = |name: &str| section.get("when").is_none() || wanted.iter().any(|one| one == name);
    Alert {
        when: ALL.into_iter().filter(|(name, _)| is_wanted(name)).map(|(_, event)| event).collect(),
        failure_rate_percent: section.number("failure_rate_percent").unwrap_or(10),
        webhook: section.text("webhook"),
        command: section.text("command"),
        mail: section.text("mail"),
        silence: section.texts("silence"),
    }
}

/// What no single key shows.
struct Across<'a, 'text> {
    plan: &'a Plan,
    places: &'a Places,
    problems: &'a mut Problems<'text>,
}

impl Across<'_, '_> {
    fn check(&mut self) {
        if self.plan.suites.is_empty() {
            self.add("suite", "the plan has no suite, so it tests nothing");
        }
        self.names();
        self.matrix();
        self.suites();
        for (index, (_, to)) in self.plan.prepare.copy.iter().enumerate() {
            if !to.starts_with('/') {
                self.add(&format!("prepare.copy[{index}].to"), "must be an absolute path");
            }
        }
    }

    /// Names that must differ.
    fn names(&mut self) {
        let mut suites = BTreeSet::new();
        for (index, suite) in self.plan.suites.iter().enumerate() {
            if !suites.insert(&suite.name) {
                self.add(&format!("suite[{index}].name"), &format!("`{}` is the name of two suites", suite.name));
            }
        }
        let mut disks = BTreeSet::new();
        for (index, disk) in self.plan.vm.disks.iter().enumerate() {
            let key = format!("vm.disks[{index}].name");
            if !check::is_variable(&disk.name) {
                self.add(&key, "must be letters, digits and `_`, because it is a part of a variable's name");
            } else if !disks.insert(&disk.name) {
                self.add(&key, &format!("`{}` is the name of two disks", disk.name));
            }
        }
    }

    fn matrix(&mut self) {
        let mut cells = 1_usize;
        for (axis, values) in &self.plan.matrix {
            let key = format!("matrix.{axis}");
            if values.is_empty() {
                self.add(&key, "has no value, so the plan has no cell");
            }
            let distinct: BTreeSet<_> = values.iter().collect();
            if distinct.len() < values.len() {
                self.add(&key, "has a value twice");
            }
            cells = cells.saturating_mul(values.len());
            let problem = |value: &String| match axis.as_str() {
                "cpus" => value
                    .parse()
                    .ok()
                    .is_none_or(|cpus: u8| cpus == 0)
                    .then(|| format!("`{value}` is not a number of CPUs")),
                "memory" => check::size(value).err(),
                "image" | "kernel" => value.is_empty().then(|| "must not be empty".to_owned()),
                _ => None,
            };
            for (index, value) in values.iter().enumerate() {
                if let Some(problem) = problem(value) {
                    self.add(&format!("{key}[{index}]"), &problem);
                }
            }
        }
        if cells > CELLS_MAX {
            self.add("matrix", &format!("makes {cells} cells, more than {CELLS_MAX}"));
        }
    }

    fn suites(&mut self) {
        for (index, suite) in self.plan.suites.iter().enumerate() {
            let key = format!("suite[{index}]");
            if suite.level < self.plan.level {
                let message = format!("is below the level {} of the plan", self.plan.level);
                self.add(&format!("{key}.level"), &message);
            }
            for (axis, values) in &suite.only {
                let at = format!("{key}.only.{axis}");
                match self.plan.matrix.get(axis) {
                    None => self.add(&at, &format!("the matrix has no axis `{axis}`")),
                    Some(known) => {
                        for value in values.iter().filter(|value| !known.contains(value)) {
                            self.add(&at, &format!("the axis `{axis}` has no value `{value}`"));
                        }
                    }
                }
            }
        }
    }

    fn add(&mut self, key: &str, message: &str) {
        let start: Range<usize> = 0..0;
        // A problem of a key that is absent is at the closest table above it.
        let mut above = Some(key);
        let place = std::iter::from_fn(|| {
            let current = above?;
            above = current.rfind(['.', '[']).map(|end| &current[..end]);
            Some(current)
        });
        let span = place.filter_map(|key| self.places.get(key)).next().unwrap_or(&start);
        self.problems.add(span, key, message);
    }
}

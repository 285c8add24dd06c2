//! The keys of a plan: one table that the check, the JSON schema and the hints for wrong keys are made from.

/// The keys of a table.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) keys: &'static [Key],
}

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) required: bool,
    pub(super) about: &'static str,
}

/// What a key holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Text that is not empty.
    Text,
    /// A number from the first to the last, both included.
    Integer(i64, i64),
    Boolean,
    /// Text such as `90s` or `5m`.
    Duration,
    /// Text such as `512M` or `2G`.
    Size,
    /// A day, `2027-01-31`.
    Date,
    /// One of some words.
    Word(&'static [&'static str]),
    /// Several.
    List(&'static Kind),
    /// A table with fixed keys.
    Table(&'static Table),
    /// A table whose keys the user chooses.
    Map(&'static Kind),
    /// Text or a number, which commands get as text.
    Scalar,
}

const fn required(name: &'static str, kind: Kind, about: &'static str) -> Key {
    Key { name, kind, required: true, about }
}

const fn optional(name: &'static str, kind: Kind, about: &'static str) -> Key {
    Key { name, kind, required: false, about }
}

/// The kinds of suites.
pub(super) const SUITE_KINDS: &[&str] = &["command", "tap", "ktap", "junit", "libtest"];

/// A whole plan.
#[rustfmt::skip]
pub(super) static PLAN: Table = Table { keys: &[
    required("plan", Kind::Table(&HEAD), "The plan's name and level."),
    optional("vm", Kind::Table(&VM), "The VM of each cell."),
    optional("matrix", Kind::Map(&Kind::List(&Kind::Scalar)), "Axes of the matrix. Each cell has one value of each axis. `image`, `kernel`, `cpus` and `memory` replace those of `[vm]`. Commands find each value in a variable of the axis's name."),
    optional("prepare", Kind::Table(&PREPARE), "What runs once in each cell, before it is saved."),
    optional("suite", Kind::List(&Kind::Table(&SUITE)), "The suites, in their order."),
    optional("isolate", Kind::Table(&ISOLATE), "Which cases share a VM."),
    optional("detect", Kind::Table(&DETECT), "Which reports of the kernel fail a case."),
    optional("retry", Kind::Table(&RETRY), "Further attempts of a case that failed."),
    optional("alert", Kind::Table(&ALERT), "Who is informed of what."),
] };

#[rustfmt::skip]
static HEAD: Table = Table { keys: &[
    required("name", Kind::Text, "The name of the plan in reports and in the history."),
    optional("about", Kind::Text, "What the plan is for."),
    optional("level", Kind::Integer(1, 3), "1: minutes, for each commit. 2: under an hour. 3: hours. Default: 1."),
    optional("budget", Kind::Duration, "Time for a whole run. Cases that have not begun by then are skipped. Default: 10m, 1h or 12h by level."),
] };

#[rustfmt::skip]
static VM: Table = Table { keys: &[
    optional("image", Kind::Text, "The image. Default: mini."),
    optional("kernel", Kind::Text, "The kernel. Default: that of the image."),
    optional("cpus", Kind::Integer(1, 255), "Virtual CPUs. Default: 1."),
    optional("memory", Kind::Size, "Memory. Default: 256M."),
    optional("disks", Kind::List(&Kind::Table(&DISK)), "Scratch disks. Commands find the device of a disk in KILN_DISK_<name>."),
    optional("modules", Kind::List(&Kind::Text), "Modules that the agent loads at boot."),
    optional("boot_timeout", Kind::Duration, "Time from the start of a VM until its agent answers. Default: 60s."),
    optional("env", Kind::Map(&Kind::Scalar), "Variables of all commands."),
] };

#[rustfmt::skip]
static DISK: Table = Table { keys: &[
    required("name", Kind::Text, "The name: letters, digits and `_`."),
    required("size", Kind::Size, "The size."),
] };

#[rustfmt::skip]
static PREPARE: Table = Table { keys: &[
    optional("run", Kind::List(&Kind::Text), "Scripts for `sh -c`, in their order."),
    optional("copy", Kind::List(&Kind::Table(&COPY)), "Files of the host that are copied in first."),
    optional("timeout", Kind::Duration, "Time for each script. Default: 5m."),
] };

#[rustfmt::skip]
static COPY: Table = Table { keys: &[
    required("from", Kind::Text, "A file or directory of the host, relative to the plan."),
    required("to", Kind::Text, "An absolute path in the guest."),
] };

#[rustfmt::skip]
static SUITE: Table = Table { keys: &[
    required("kind", Kind::Word(SUITE_KINDS), "How its results are read."),
    required("name", Kind::Text, "The name, unique in the plan."),
    required("run", Kind::Text, "A script for `sh -c`."),
    optional("timeout", Kind::Duration, "Time for one attempt. Default: 1m."),
    optional("level", Kind::Integer(1, 3), "The lowest level at which it runs. Default: that of the plan."),
    optional("env", Kind::Map(&Kind::Scalar), "Variables of its command."),
    optional("results", Kind::Text, "A file of the guest with the results. Default: its stdout."),
    optional("expect", Kind::Table(&EXPECT), "What a pass looks like."),
    optional("quarantine", Kind::Table(&QUARANTINE), "Its failures are reported and don't fail the run."),
    optional("only", Kind::Map(&Kind::List(&Kind::Scalar)), "Values of the matrix with which it runs. In other cells it is left out."),
] };

#[rustfmt::skip]
static EXPECT: Table = Table { keys: &[
    optional("exit", Kind::Integer(0, 255), "The exit code. Default: 0."),
    optional("finding", Kind::Text, "A report of the kernel that must come, by its title. `*` matches any text."),
    optional("stdout", Kind::Text, "Text that its stdout contains."),
] };

#[rustfmt::skip]
static QUARANTINE: Table = Table { keys: &[
    required("reason", Kind::Text, "Why."),
    required("until", Kind::Date, "The last day. Later its failures count again."),
    optional("cases", Kind::List(&Kind::Text), "Names of cases, in which `*` matches any text. Default: all."),
] };

#[rustfmt::skip]
static ISOLATE: Table = Table { keys: &[
    optional("per", Kind::Word(&["case", "suite", "cell"]), "What gets a fork of its own. Default: case."),
] };

#[rustfmt::skip]
static DETECT: Table = Table { keys: &[
    optional("fail_on", Kind::Word(&["warning", "error", "fatal", "never"]), "The least severe finding that fails a case. Default: warning."),
    optional("ignore", Kind::List(&Kind::Table(&IGNORE)), "Findings that don't fail a case."),
    optional("taint", Kind::Boolean, "Whether new taint of the kernel fails a case. Default: true."),
] };

#[rustfmt::skip]
static IGNORE: Table = Table { keys: &[
    required("title", Kind::Text, "The title. `*` matches any text."),
    required("reason", Kind::Text, "Why."),
    optional("until", Kind::Date, "The last day."),
] };

#[rustfmt::skip]
static RETRY: Table = Table { keys: &[
    optional("attempts", Kind::Integer(1, 20), "Attempts of a case that fails. Default: 1."),
    optional("flaky", Kind::Word(&["report", "fail"]), "Whether a case that fails first and passes then fails the run. Default: report."),
] };

#[rustfmt::skip]
static ALERT: Table = Table { keys: &[
    optional("when", Kind::List(&Kind::Word(&["new-finding", "regression", "failure-rate", "host-short", "vm-unreachable"])), "Events that cause an alert. Default: all."),
    optional("failure_rate_percent", Kind::Integer(1, 100), "The share of failed cases that causes an alert. Default: 10."),
    optional("webhook", Kind::Text, "A URL that gets each alert as JSON."),
    optional("command", Kind::Text, "A script for `sh -c` of the host, which gets each alert as JSON on stdin."),
    optional("mail", Kind::Text, "An address that gets each alert by sendmail."),
    optional("silence", Kind::List(&Kind::Text), "Keys of alerts that are not sent. `*` matches any text."),
] };

//! The same crashes, saved in all the usual forms of kernel logs, must give the same findings.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_detect::{ConsoleLine, Finding, KernelLine, Kind, Lines, SavedLog, Scanner};

/// Fewer logs than this means that they were not found.
const LOGS_MIN: usize = 30;
/// Rows of programs. Daemons save them in the same file as the kernel's.
const PROGRAM_ROWS: [&str; 3] =
    ["sshd[812]: Kernel panic - not syncing: I am a program", "cron[7]: BUG: unable to handle", "sudo: WARNING: x"];

/// One message of the kernel.
struct Message {
    stamp: Duration,
    /// Time since the log began. It continues when the machine boots again.
    wall: Duration,
    text: String,
}

/// A form in which a log is saved.
struct Form {
    name: &'static str,
    row: fn(&Message) -> String,
    /// The form of another program's row, if logs in this form have such rows.
    program: Option<fn(&str) -> String>,
}

impl Form {
    const fn new(name: &'static str, row: fn(&Message) -> String) -> Self {
        Self { name, row, program: None }
    }

    const fn with_programs(name: &'static str, row: fn(&Message) -> String, program: fn(&str) -> String) -> Self {
        Self { name, row, program: Some(program) }
    }
}

fn seconds(message: &Message) -> String {
    format!("{:5}.{:06}", message.stamp.as_secs(), message.stamp.subsec_micros())
}

/// `12:01:07` of a log that begins at noon.
fn clock(message: &Message) -> String {
    let all = 12 * 3600 + message.wall.as_secs();
    format!("{:02}:{:02}:{:02}", all / 3600, all / 60 % 60, all % 60)
}

fn micros(message: &Message) -> u32 {
    message.wall.subsec_micros()
}

const FORMS: &[Form] = &[
    Form::new("dmesg", |message| format!("[{}] {}", seconds(message), message.text)),
    Form::new("dmesg -r", |message| format!("<4>[{}] {}", seconds(message), message.text)),
    Form::new("dmesg -x", |message| format!("kern  :warn  : [{}] {}", seconds(message), message.text)),
    Form::new("dmesg -T", |message| format!("[Sun Nov  1 {} 2026] {}", clock(message), message.text)),
    Form::new("dmesg -T, another language", |message| format!("[So Nov. 1 {} 2026] {}", clock(message), message.text)),
    Form::new("dmesg -xT", |message| format!("kern  :err   : [Sun Nov  1 {} 2026] {}", clock(message), message.text)),
    Form::new("dmesg -d", |message| format!("[{} <    0.000012>] {}", seconds(message), message.text)),
    Form::new("dmesg --time-format iso", |message| {
        format!("2026-11-01T{},{:06}+00:00 {}", clock(message), micros(message), message.text)
    }),
    Form::new("dmesg of a kernel with callers", |message| {
        format!("[{}] [    T312] {}", seconds(message), message.text)
    }),
    Form::new("console of a kernel with callers", |message| format!("[{}][  T312] {}", seconds(message), message.text)),
    Form::new("dmesg -T of a kernel with callers", |message| {
        format!("[Sun Nov  1 {} 2026] [      C0] {}", clock(message), message.text)
    }),
    Form::new("dmesg without brackets", |message| format!("{} {}", seconds(message), message.text)),
    Form::new("dmesg with half of its brackets", |message| format!("{}] {}", seconds(message), message.text)),
    Form::new("/dev/kmsg", |message| format!("4,339,{},-;{}", message.stamp.as_micros(), message.text)),
    Form::new("/dev/kmsg with callers", |message| {
        format!("4,339,{},-,caller=T1;{}\n SUBSYSTEM=pci", message.stamp.as_micros(), message.text)
    }),
    Form::with_programs(
        "journalctl -k",
        |message| format!("Nov 01 {} web-1 kernel: {}", clock(message), message.text),
        |row| format!("Nov 01 12:00:00 web-1 {row}"),
    ),
    Form::with_programs(
        "journalctl -o short-precise",
        |message| format!("Nov 01 {}.{:06} web-1 kernel: {}", clock(message), micros(message), message.text),
        |row| format!("Nov 01 12:00:00.000000 web-1 {row}"),
    ),
    Form::with_programs(
        "journalctl -o short-iso",
        |message| format!("2026-11-01T{}+0100 web-1 kernel: {}", clock(message), message.text),
        |row| format!("2026-11-01T12:00:00+0100 web-1 {row}"),
    ),
    Form::with_programs(
        "journalctl -o short-iso-precise",
        |message| format!("2026-11-01T{}.{:06}+01:00 web-1 kernel: {}", clock(message), micros(message), message.text),
        |row| format!("2026-11-01T12:00:00.000000+01:00 web-1 {row}"),
    ),
    Form::with_programs(
        "journalctl -o short-full",
        |message| format!("Sun 2026-11-01 {} UTC web-1 kernel: {}", clock(message), message.text),
        |row| format!("Sun 2026-11-01 12:00:00 UTC web-1 {row}"),
    ),
    Form::with_programs(
        "journalctl -o short-unix",
        |message| {
            format!("{}.{:06} web-1 kernel: {}", 1_793_534_400 + message.wall.as_secs(), micros(message), message.text)
        },
        |row| format!("1793534400.000000 web-1 {row}"),
    ),
    Form::with_programs(
        "journalctl -o short-monotonic",
        |message| format!("[{}] web-1 kernel: {}", seconds(message), message.text),
        |row| format!("[    0.000000] web-1 {row}"),
    ),
    Form::with_programs(
        "journalctl --no-hostname",
        |message| format!("Nov 01 {} kernel: {}", clock(message), message.text),
        |row| format!("Nov 01 12:00:00 {row}"),
    ),
    Form::with_programs(
        "syslog",
        |message| format!("Nov  1 {} web-1 kernel: [{}] {}", clock(message), seconds(message), message.text),
        |row| format!("Nov  1 12:00:00 web-1 {row}"),
    ),
    Form::with_programs(
        "syslog with priorities",
        |message| format!("<4>Nov  1 {} web-1 kernel: [{}] {}", clock(message), seconds(message), message.text),
        |row| format!("<4>Nov  1 12:00:00 web-1 {row}"),
    ),
    Form::with_programs(
        "rsyslog, ISO times",
        |message| {
            format!(
                "2026-11-01T{}.{:06}+00:00 web-1 kernel: [{}] {}",
                clock(message),
                micros(message),
                seconds(message),
                message.text
            )
        },
        |row| format!("2026-11-01T12:00:00.000000+00:00 web-1 {row}"),
    ),
    Form::with_programs(
        "RFC 5424",
        |message| {
            format!("<4>1 2026-11-01T{}Z web-1 kernel - - - [{}] {}", clock(message), seconds(message), message.text)
        },
        |row| format!("<4>1 2026-11-01T12:00:00Z web-1 prog 7 - - {row}"),
    ),
    Form::with_programs(
        "busybox syslogd",
        |message| format!("Nov  1 {} web-1 kern.warn kernel: [{}] {}", clock(message), seconds(message), message.text),
        |row| format!("Nov  1 12:00:00 web-1 user.notice {row}"),
    ),
    Form::new("console with ISO times", |message| {
        format!("2026-11-01T{}Z [{}] {}", clock(message), seconds(message), message.text)
    }),
    Form::new("console with ISO times in brackets", |message| {
        format!("[2026-11-01 {}.{:03}] [{}] {}", clock(message), micros(message) / 1000, seconds(message), message.text)
    }),
    Form::new("console behind ts", |message| {
        format!("Nov 01 {} [{}] {}", clock(message), seconds(message), message.text)
    }),
];

/// Forms without any clock. In these, a report that ends by being quiet doesn't end.
const TIMELESS: &[Form] = &[
    Form::new("dmesg -t", |message| message.text.clone()),
    Form::new("dmesg -xt", |message| format!("kern  :warn  : {}", message.text)),
    Form::new("broadcasts of syslogd", |message| format!(" kernel:{}", message.text)),
];

fn fixtures() -> Vec<PathBuf> {
    logs(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"), "log")
}

fn logs(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    let mut logs: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    logs.retain(|path| path.extension().is_some_and(|found| found == extension));
    logs.sort();
    assert!(logs.len() >= LOGS_MIN, "only {} logs", logs.len());
    logs
}

/// The kernel's messages on a console, without the output of programs.
fn messages(console: &[u8]) -> Vec<Message> {
    let mut lines = Lines::new();
    let mut rows = lines.push(console);
    rows.extend(lines.finish());
    let split: Vec<KernelLine<'_>> = rows.iter().flat_map(|row| KernelLine::split(row)).collect();
    let is_stamped = split.iter().any(|line| line.stamp.is_some());
    let (mut last, mut offset) = (Duration::ZERO, Duration::ZERO);
    let kernels = split.iter().filter(|line| line.stamp.is_some() || !is_stamped);
    kernels
        .map(|line| {
            let stamp = line.stamp.unwrap_or_default();
            if stamp + Duration::from_secs(1) < last {
                // The machine boots again.
                offset += last + Duration::from_secs(2);
            }
            last = stamp;
            Message { stamp, wall: offset + stamp, text: line.text.to_owned() }
        })
        .collect()
}

fn scan(log: &str) -> (Vec<Finding>, bool) {
    let mut saved = SavedLog::new();
    let mut findings = saved.push(log.as_bytes());
    findings.extend(saved.finish());
    (findings, saved.has_kernel_lines())
}

/// Scans a console like the engine scans a live one.
fn scan_live(console: &str) -> Vec<Finding> {
    let (mut lines, mut scanner, mut before) = (Lines::new(), Scanner::new(), Duration::ZERO);
    let mut rows = lines.push(console.as_bytes());
    rows.extend(lines.finish());
    let mut findings = Vec::new();
    for text in rows {
        let row = ConsoleLine::saved(text, before);
        before = row.at;
        findings.extend(scanner.push(&row));
    }
    findings.extend(scanner.finish());
    findings
}

/// The parts of a finding that don't depend on how the log was saved.
fn gist(findings: &[Finding]) -> Vec<String> {
    let gist = |Finding { title, kind, severity, function, .. }: &Finding| {
        format!("{title} {kind:?} {severity:?} {function:?}")
    };
    findings.iter().map(gist).collect()
}

fn render(form: &Form, messages: &[Message]) -> String {
    let mut log = String::new();
    for (number, one) in messages.iter().enumerate() {
        writeln!(log, "{}", (form.row)(one)).expect("a string takes everything");
        if let Some(program) = form.program
            && number > 0
        {
            let row = PROGRAM_ROWS[number % PROGRAM_ROWS.len()];
            writeln!(log, "{}", program(row)).expect("a string takes everything");
        }
    }
    log
}

/// The differences between the findings of a console and of the same log in other forms.
fn differences(name: &str, console: &[u8], forms: &[Form]) -> String {
    let messages = messages(console);
    let stamped = render(&FORMS[0], &messages);
    let unstamped = render(&TIMELESS[0], &messages);
    let has_stamps = messages.iter().any(|one| !one.stamp.is_zero());
    let expected = scan(if has_stamps { &stamped } else { &unstamped }).0;
    let mut differences = String::new();
    for form in forms {
        let (found, is_kernel_log) = scan(&render(form, &messages));
        // A daemon is stopped before an orderly restart, so its log doesn't show whether a restart was requested.
        let expected: Vec<Finding> =
            expected.iter().filter(|one| form.program.is_none() || one.kind != Kind::Reboot).cloned().collect();
        if gist(&found) != gist(&expected) {
            let (found, expected) = (gist(&found), gist(&expected));
            writeln!(differences, "{name} as {}:\n  {found:#?}\n  and not {expected:#?}", form.name).expect("a string");
        }
        if !is_kernel_log {
            writeln!(differences, "{name} as {}: no kernel lines", form.name).expect("a string");
        }
    }
    differences
}

#[test]
fn a_crash_is_the_same_in_every_form_of_log() {
    let mut differ = String::new();
    for path in fixtures() {
        let console = std::fs::read(&path).expect("it was listed");
        // A log whose kernel has no stamps has no times to show.
        let forms = if messages(&console).iter().any(|one| !one.stamp.is_zero()) { FORMS } else { &[] };
        differ += &differences(&path.file_stem().expect("a name").display().to_string(), &console, forms);
        differ += &differences(&path.file_stem().expect("a name").display().to_string(), &console, TIMELESS);
    }
    assert!(differ.is_empty(), "{differ}");
}

#[test]
fn a_live_and_a_saved_console_have_the_same_findings() {
    for path in fixtures() {
        let console = String::from_utf8_lossy(&std::fs::read(&path).expect("it was listed")).into_owned();
        assert_eq!(scan(&console).0, scan_live(&console), "{}", path.display());
    }
}

#[test]
#[ignore = "needs KILN_TEST_KERNEL_LOGS, a folder of consoles with a head of `NAME: value` lines"]
fn foreign_crashes_are_the_same_in_every_form_of_log() {
    let folder = std::env::var_os("KILN_TEST_KERNEL_LOGS").expect("KILN_TEST_KERNEL_LOGS is set");
    let mut differ = 0;
    let mut compared = 0;
    for path in logs(Path::new(&folder), "txt") {
        let text = String::from_utf8_lossy(&std::fs::read(&path).expect("it was listed")).into_owned();
        let console =
            text.split_once("\n\n").map_or("", |(_, console)| console).split("\n\nREPORT:").next().unwrap_or("");
        if !messages(console.as_bytes()).iter().any(|one| !one.stamp.is_zero()) {
            continue;
        }
        for form in FORMS {
            compared += 1;
            let found = differences(&path.display().to_string(), console.as_bytes(), std::slice::from_ref(form));
            differ += usize::from(!found.is_empty());
            print!("{found}");
        }
    }
    println!("{differ} of {compared} differ");
    assert!(differ * 100 <= compared, "more than one in a hundred differs");
}

#[test]
fn rows_of_programs_in_a_syslog_are_not_findings_even_before_the_first_row_of_the_kernel() {
    let log = "Nov  1 12:00:00 web-1 app[7]: Kernel panic - not syncing: fake\n\
               Nov  1 12:00:01 web-1 kernel: [    1.000000] usb 1-1: new device\n\
               Nov  1 12:00:02 web-1 sudo: Kernel panic - not syncing: fake\n";
    assert_eq!(scan(log), (vec![], true));
}

#[test]
fn a_restart_in_a_syslog_is_not_unexpected() {
    let boot = |minute: u32| {
        format!(
            "Nov  1 12:{minute:02}:00 web-1 kernel: [    0.000000] Linux version 6.1.0\n\
             Nov  1 12:{minute:02}:01 web-1 kernel: [    1.{minute:06}] Run /init as init process\n"
        )
    };
    assert_eq!(scan(&format!("{}{}", boot(0), boot(5))), (vec![], true));
}

#[test]
fn text_without_a_line_of_a_kernel_is_not_a_kernel_log() {
    for text in [
        "",
        "\n\n",
        "# A page\n\nCPU: none. Memory: none. version 1.2: old; at 12:30:15: nothing.\n",
        "Nov  1 12:00:00 web-1 sshd[812]: Accepted publickey for root\n",
        "1.5 2.5\n3.5 4.5\n",
        include_str!("../Cargo.toml"),
        include_str!("fixtures/README.md"),
    ] {
        assert_eq!(scan(text), (vec![], false), "{text}");
    }
    for text in ["usb 1-1: new high-speed USB device\n", "[    1.000000] x\n", "Nov  1 12:00:00 h kernel: x\n"] {
        assert_eq!(scan(text), (vec![], true), "{text}");
    }
}

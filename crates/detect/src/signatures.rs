//! What a heading means: the title and class of the finding, and where its report names the function to blame.
//!
//! The headings themselves are in [`headings`](crate::headings). In titles, `{0}`, `{1}` … are the heading's holes,
//! `{fn}` is the function to blame, `{access}` is `Read` or `Write`, `{message}` is the line after the heading.

use std::sync::LazyLock;

use crate::finding::{Kind, Severity};
use crate::pattern::{Table, Text};
use crate::words::Words;

/// One way in which a report begins.
#[derive(Debug)]
pub(crate) struct Signature {
    pub(crate) heading: &'static str,
    pub(crate) title: &'static str,
    pub(crate) kind: Kind,
    pub(crate) severity: Severity,
    pub(crate) role: Role,
    /// Lines that every whole report of this kind has, in this order. If one is missing, the report is cut: its title is
    /// then [`cut_title`](Self::cut_title).
    pub(crate) needs: &'static [Need],
    /// The title of a cut report, in which `{line}` is the rest of the heading's line after its first literal.
    pub(crate) cut_title: &'static str,
    /// How to get to the frame to blame.
    pub(crate) steps: &'static [Step],
    /// Other ways, one after the other, if there is no such frame on the first.
    pub(crate) other_steps: &'static [&'static [Step]],
    /// Functions that are not to blame for reports of this kind, in addition to the usual ones.
    pub(crate) skip: &'static [&'static str],
    pub(crate) choice: Choice,
    /// A title that reports of the same defect share, even if another check notices it first.
    pub(crate) alike: &'static str,
    pub(crate) stack: Stack,
    /// The heading follows from a report that is not in the log.
    pub(crate) is_remainder: bool,
}

/// What a heading means for the report that the same caller has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Closes the report and opens a new one.
    Report,
    /// Closes the report and opens a new one, which the next heading continues: a sentence before a `BUG()` or
    /// `WARN()`.
    Preamble,
    /// Like `Preamble`, but the next heading has the better title.
    Sentence,
    /// Is a part of the report, or opens a new one if none is open.
    Continues,
    /// Is a part of the report if that is more severe, and otherwise like `Report`.
    Minor,
    /// The machine stops because of the report. If no report is open, the report was lost.
    Consequence,
    /// Is a whole report in one line. The open report stays open.
    Line,
    /// Like `Line`, but only if the log marks its line as the kernel's: the words are too general to count in a log in
    /// which any line may be the kernel's.
    MarkedLine,
}

/// A line that a report needs, after the lines that it needed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// With this text.
    Text(&'static str),
    /// With the access: `Read of size 8 at addr`.
    Access,
    /// With a place in a source file: `fs/a.c:12`.
    Source,
    /// With the place where a lock was taken. It is to blame if there are no [`steps`](Signature::steps).
    LockSite,
    /// With an address and its function, which is to blame in the same way.
    Address,
    /// With this text, and the name of a function after it, which is to blame in the same way.
    Name(&'static str),
    /// The heading, with a function.
    Function,
    /// Directly after the heading.
    Message,
}

/// A step from a report's heading to the frame to blame. Each step continues where the step before has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The heading, and the function that it names.
    Heading,
    /// The line with the program counter, and its function.
    Counter,
    /// The line with the program counter, or with PowerPC's interrupt.
    Trap,
    /// The line before a stack.
    Stack,
    /// A line with one of these texts.
    Line(&'static [&'static str]),
    /// A line with the place where a lock was taken, and its function.
    LockSite,
    /// A line with an address, and its function.
    Address,
    /// Frames up to the next stack.
    Frames,
}

/// Which of the frames is blamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The innermost frame.
    First,
    /// The operation in which a CPU is. A CPU in an endless loop is interrupted anywhere in that loop, so the innermost
    /// frames differ each time.
    Operation,
    /// The function that made the task wait.
    Waiter,
}

/// Whether a report of this kind has a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stack {
    /// It does, so a report without a stack is cut.
    Always,
    Sometimes,
}

/// The program counter, then the stack.
pub(crate) const COUNTER: &[Step] = &[Step::Counter, Step::Stack, Step::Frames];
/// The program counter only: the stack is that of the handler.
pub(crate) const ONLY_COUNTER: &[Step] = &[Step::Counter];
/// The stack.
pub(crate) const STACK: &[Step] = &[Step::Stack, Step::Frames];
/// The heading's function, then the stack.
pub(crate) const HEADING_STACK: &[Step] = &[Step::Heading, Step::Stack, Step::Frames];
/// The heading's function, then frames that come without a title of their own.
pub(crate) const HEADING_FRAMES: &[Step] = &[Step::Heading, Step::Frames];
/// WARN() traps, so the stack begins at the program counter. Old kernels print the stack only.
pub(crate) const TRAP: &[Step] = &[Step::Trap, Step::Frames];

impl Signature {
    pub(crate) const fn new(severity: Severity, kind: Kind, heading: &'static str, title: &'static str) -> Self {
        Self {
            heading,
            title,
            kind,
            severity,
            role: Role::Report,
            needs: &[],
            cut_title: "",
            steps: &[],
            other_steps: &[],
            skip: &[],
            choice: Choice::First,
            alike: "",
            stack: Stack::Always,
            is_remainder: false,
        }
    }

    pub(crate) const fn role(mut self, role: Role) -> Self {
        self.role = role;
        if matches!(role, Role::Line | Role::MarkedLine) {
            self.stack = Stack::Sometimes;
        }
        self
    }

    pub(crate) const fn needs(mut self, needs: &'static [Need]) -> Self {
        self.needs = needs;
        self
    }

    pub(crate) const fn cut_title(mut self, title: &'static str) -> Self {
        self.cut_title = title;
        self
    }

    pub(crate) const fn steps(mut self, steps: &'static [Step]) -> Self {
        self.steps = steps;
        self
    }

    pub(crate) const fn or_steps(mut self, steps: &'static [&'static [Step]]) -> Self {
        self.other_steps = steps;
        self
    }

    pub(crate) const fn skip(mut self, skip: &'static [&'static str]) -> Self {
        self.skip = skip;
        self
    }

    pub(crate) const fn choice(mut self, choice: Choice) -> Self {
        self.choice = choice;
        self
    }

    pub(crate) const fn alike(mut self, title: &'static str) -> Self {
        self.alike = title;
        self
    }

    pub(crate) const fn without_stack(mut self) -> Self {
        self.stack = Stack::Sometimes;
        self
    }

    pub(crate) const fn remainder(mut self) -> Self {
        self.is_remainder = true;
        self
    }
}

/// The first line of a boot.
pub(crate) const BANNER: &str = "^Linux version ";

/// Whether a line announces a restart that was requested.
pub(crate) fn is_orderly(text: &Text<'_>) -> bool {
    static TABLE: LazyLock<Table> = LazyLock::new(|| Table::new(ORDERLY.iter().copied()));
    text.first_of(&TABLE).is_some()
}

/// Lines before a restart that was requested.
pub(crate) const ORDERLY: &[&str] =
    &["^reboot: ", "^sysrq: Resetting", "^Restarting system", "^kexec_core: Starting new kernel"];

/// Whether a line of a report ends it or says something about it.
pub(crate) fn marks_a_report(text: &str) -> bool {
    static MARKS: LazyLock<Words> = LazyLock::new(|| {
        let ends = ENDS.iter().map(|end| end.trim_start_matches('^'));
        Words::new(ends.chain([ALL_CPUS, DROPPED]))
    });
    MARKS.are_in(text)
}

/// Last lines of reports.
pub(crate) const ENDS: &[&str] =
    &["---[ end ", "^Rebooting in ", "^Out of memory: Killed process", "^Memory cgroup out of memory: Killed process"];

/// The start of another CPU's stack.
pub(crate) const OTHER_CPU: &str = "NMI backtrace for cpu ";

/// All CPUs will print their stacks, whatever they do.
pub(crate) const ALL_CPUS: &str = "Sending NMI from CPU";

/// The kernel prints this if its log overflowed. Lines of the open report may be missing.
pub(crate) const DROPPED: &str = "printk messages dropped";

/// Ordinary lines of a kernel. They identify a kernel log that has no stamps, tags or reports.
#[rustfmt::skip]
const ORDINARY: &[&str] = &[
    BANNER, "^Command line: ", "^Kernel command line: ", "^BIOS-e820: ", "^BIOS-provided physical RAM map", "^ACPI: ",
    "^DMI: ", "^Memory: {}K/{}K available", "^PCI: ", "^NET: Registered", "^TCP: ", "^IPv6: ADDRCONF", "^Freeing {}memory: ",
    "^Run /{} as init process", "^EXT4-fs (", "^EXT4-fs: ", "^XFS (", "^BTRFS ", "^SCSI subsystem initialized", "^random: crng",
    "^clocksource: ", "^audit: type=", "^rcu: ", "^smpboot: ", "^tsc: ", "^sched_clock: ", "^devtmpfs: ", "^workingset: ",
    "^input: {} as /devices/", "^usbcore: ", "^Spectre V", "^Speculative ", "^CPU: {} PID: ", "^CPU: {} UID: ", "^Call Trace:",
    "^Modules linked in:", "^RIP: ", "^RSP: ", "^RAX: ", "^Hardware name: ", "^------------[ cut here ]", "^---[ end ",
    "^Kernel Offset: ", "^device-mapper: ", "^virtio_{}: ", "^systemd[1]: ", "^[UFW ", "^traps: ", "^kauditd_printk_skb: ",
    "^x86/fpu: ", "^NMI watchdog: ", "^INFO: NMI handler ", "^microcode: ", "^PM: suspend ", "^e1000e: ", "^nvme nvme",
    "^loop: module loaded", "^loop{}: detected capacity", "{} entered promiscuous mode", "{}: link becomes ready",
    "{} module verification failed: ", "{} loading out-of-tree module", "{}: segfault at {} ip {} sp ", "^process '{}' started with",
];

/// Whether a line without a mark is certainly a kernel's: one of [`ORDINARY`], a message of a device on a bus
/// (`pci 0000:00:1f.2: [8086:2922]`), or a stack frame.
pub(crate) fn is_ordinary(text: &str) -> bool {
    static TABLE: LazyLock<Table> = LazyLock::new(|| Table::new(ORDINARY.iter().copied()));
    Text::new(text).first_of(&TABLE).is_some() || names_a_device(text) || crate::frames::frame(text).is_some()
}

/// `driver device: text`, with an address on a bus as the device.
fn names_a_device(text: &str) -> bool {
    let Some((driver, rest)) = text.trim_start().split_once(' ') else { return false };
    let Some((device, _)) = rest.split_once(": ") else { return false };
    let is_driver =
        driver.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte));
    let is_address = device.bytes().all(|byte| byte.is_ascii_hexdigit() || b":.-".contains(&byte));
    let colons = device.bytes().filter(|byte| *byte == b':').count();
    // Two numbers are a version, three with colons are a time of day.
    let is_on_a_bus = driver == "usb" || colons >= 3 || (colons >= 1 && device.contains('.'));
    !driver.is_empty() && is_driver && is_address && is_on_a_bus
}

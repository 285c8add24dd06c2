//! The scanner's results: one finding for each report of the kernel.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::crash_type::CrashType;

/// Lines kept of a report. The cause and its stack come first; register dumps of other CPUs come last.
pub const EXTRACT_LINES_MAX: usize = 200;

/// One error in the guest's kernel, regardless of the number of lines that the kernel printed about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// One line that is the same on every boot and for every compiler: no addresses, offsets, process ids or CPU
    /// numbers. Equal titles mean the same defect, as far as a log shows it.
    pub title: String,
    /// Other titles of the same defect: with other names of the function, or as another check would have found it. Two
    /// findings that share a title have the same cause.
    #[serde(default)]
    pub alternatives: Vec<String>,
    /// The class.
    pub kind: Kind,
    /// What the defect allows, or does to the machine.
    #[serde(default, rename = "type")]
    pub crash_type: CrashType,
    /// What it means for the machine.
    pub severity: Severity,
    /// The function to blame: the first on the stack that is not part of the code that noticed or reported the error.
    pub function: Option<String>,
    /// The report is cut, has lost lines, or lacks the stack that reports of its kind have. Title and function may be
    /// wrong.
    pub corrupted: bool,
    /// The report's own lines without prefixes, at most [`EXTRACT_LINES_MAX`].
    pub extract: Vec<String>,
    /// The row of the console or log in which it begins, counted from 1; 0 if it doesn't come from a row. Findings are
    /// returned when they are complete, so their order is not that of their rows.
    #[serde(default)]
    pub row: u64,
    /// When its first line arrived, as time since the machine was started.
    pub at: Duration,
}

impl Finding {
    /// A finding that its title describes whole: no function, no alternatives, no row.
    #[must_use]
    pub fn new(title: String, kind: Kind, severity: Severity, extract: Vec<String>, at: Duration) -> Self {
        let crash_type = match kind {
            Kind::Halted | Kind::Silent => CrashType::Hang,
            _ => CrashType::of_title(&title),
        };
        let (alternatives, function, corrupted, row) = (Vec::new(), None, false, 0);
        Self { title, alternatives, kind, crash_type, severity, function, corrupted, extract, row, at }
    }
}

/// What a finding means for the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The kernel noticed an error and continues: `WARNING`, an out-of-memory kill, a suspected deadlock.
    Warning,
    /// A part of the machine has stopped or misbehaved: lockups, stalls, hung tasks.
    Error,
    /// The machine is gone, or its results can't be trusted any more: panic, oops, `BUG`, memory corruption.
    Fatal,
}

/// The class of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `Kernel panic - not syncing`, with no report before it that is the cause.
    Panic,
    /// A fault in the kernel that has no class of its own here.
    Oops,
    /// Access to an address that is not mapped.
    PageFault,
    /// Access through a null pointer.
    NullDereference,
    /// `general protection fault`: in most cases an invalid pointer.
    GeneralProtection,
    /// `divide error`.
    DivideError,
    /// `invalid opcode`.
    InvalidOpcode,
    /// `double fault`.
    DoubleFault,
    /// A kernel stack overflowed, or its end was overwritten.
    StackOverflow,
    /// `BUG()` or a check that is as severe.
    Bug,
    /// `WARN()` and its like.
    Warning,
    /// Address sanitizer.
    Kasan,
    /// Sampling guard pages.
    Kfence,
    /// Uninitialised memory.
    Kmsan,
    /// Data races.
    Kcsan,
    /// Undefined behaviour.
    Ubsan,
    /// A reference count overflowed or underflowed.
    Refcount,
    /// Memory, lists or page tables hold invalid values.
    MemoryCorruption,
    /// Debug objects: a timer, work or callback is used before its initialisation or after its end.
    DebugObjects,
    /// Locks are taken, held or freed against the rules.
    Lockdep,
    /// Code that must not be preempted sleeps, or preemptible code uses per-CPU data.
    AtomicSleep,
    /// RCU waits for a CPU or task that makes no progress.
    RcuStall,
    /// A CPU runs kernel code forever with interrupts enabled.
    SoftLockup,
    /// A CPU runs forever with interrupts disabled.
    HardLockup,
    /// A task waits forever.
    HungTask,
    /// A work queue makes no progress.
    WorkqueueStall,
    /// Allocated memory that nothing points to.
    MemoryLeak,
    /// Processes were killed because memory ran out.
    OutOfMemory,
    /// A fuzzer in the guest failed.
    FuzzerFailure,
    /// The kernel booted again and no restart was requested.
    Reboot,
    /// All CPUs are halted with interrupts disabled. This is not in a log: the engine finds it by the state of the
    /// CPUs.
    Halted,
    /// The agent doesn't reply any more, and no log shows why. The engine finds it by its requests.
    Silent,
}

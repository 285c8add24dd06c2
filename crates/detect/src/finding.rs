//! What the scanner gives: one finding for each report of the kernel.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Lines kept of a report. The first ones say what happened and where; register dumps of other CPUs come last.
pub const EXTRACT_LINES_MAX: usize = 200;

/// Something that went wrong in the guest's kernel, said once however many lines the kernel took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// One line that is the same on every boot and for every compiler: no addresses, offsets, process ids or CPU
    /// numbers. Equal titles mean the same defect, as far as a log can tell.
    pub title: String,
    /// The class.
    pub kind: Kind,
    /// What it means for the machine.
    pub severity: Severity,
    /// The guilty function: the first of the stack that is not the machinery which noticed.
    pub function: Option<String>,
    /// The report is cut, interleaved with another, or lacks the stack it should have. Title and function may be wrong.
    pub corrupted: bool,
    /// The report's own lines without prefixes, at most [`EXTRACT_LINES_MAX`].
    pub extract: Vec<String>,
    /// When its first line came.
    pub at: Duration,
}

/// What a finding means for the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The kernel noticed something and carries on: `WARNING`, an out-of-memory kill, a suspected deadlock.
    Warning,
    /// Part of the machine has stopped or misbehaved: lockups, stalls, hung tasks.
    Error,
    /// The machine is gone, or nothing it says can be trusted any more: panic, oops, `BUG`, memory corruption.
    Fatal,
}

/// The class of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `Kernel panic - not syncing`, with no report before it that says why.
    Panic,
    /// A fault in the kernel that has no class of its own.
    Oops,
    /// Access to an address that is not mapped.
    PageFault,
    /// Access through a null pointer.
    NullDereference,
    /// `general protection fault`: mostly a wild pointer.
    GeneralProtection,
    /// `divide error`.
    DivideError,
    /// `invalid opcode`.
    InvalidOpcode,
    /// `double fault`.
    DoubleFault,
    /// A kernel stack ran over, or its end was overwritten.
    StackOverflow,
    /// `BUG()` or a check as deadly.
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
    /// A reference count ran over or under.
    Refcount,
    /// Memory, lists or page tables hold what they cannot.
    MemoryCorruption,
    /// Debug objects: a timer, work or callback used against its life.
    DebugObjects,
    /// Locks taken, held or freed against the rules.
    Lockdep,
    /// Sleep or per-CPU data where it is not allowed.
    AtomicSleep,
    /// RCU waits for a CPU or task that does not move.
    RcuStall,
    /// A CPU runs kernel code without end, interrupts on.
    SoftLockup,
    /// A CPU runs with interrupts off without end.
    HardLockup,
    /// A task waits without end.
    HungTask,
    /// A work queue does not move.
    WorkqueueStall,
    /// Memory that nothing points to.
    MemoryLeak,
    /// Processes were killed for lack of memory.
    OutOfMemory,
    /// The kernel booted again though nobody asked it to.
    Reboot,
    /// All CPUs stand still for good, with interrupts off. No log says so: whoever runs the machine sees it.
    Halted,
    /// The machine answers nothing any more, and no log says why. Whoever asks it sees that.
    Silent,
}

//! The table of headings: how each kind of report begins, and the title and class of its finding.
//!
//! Order matters: the first row that matches a line is used, so special headings come before general ones. Patterns are
//! those of [`pattern`](crate::pattern). In titles, `{0}`, `{1}` … are the heading's holes without numbers and
//! addresses, `{fn}` is the function to blame, `{access}` is `Read` or `Write`.

use std::sync::LazyLock;

use crate::finding::{Kind, Severity};
use crate::frames::Blame;
use crate::pattern::{Holes, Table, Text};

/// One way in which a report begins.
#[derive(Debug)]
pub(crate) struct Signature {
    pub(crate) heading: &'static str,
    pub(crate) title: &'static str,
    pub(crate) kind: Kind,
    pub(crate) severity: Severity,
    pub(crate) role: Role,
    pub(crate) blame: Blame,
}

/// What a heading means for the report that the same caller has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Closes the report and opens a new one.
    Report,
    /// Closes the report and opens a new one, which the next heading continues: a sentence before a `BUG()` or
    /// `WARN()`.
    Preamble,
    /// Is a part of the report, or opens a new one if none is open.
    Continues,
    /// The machine stops because of the report. If no report is open, the report was lost.
    Consequence,
    /// Is a whole report in one line. The open report stays open.
    Line,
}

impl Signature {
    const fn new(severity: Severity, kind: Kind, heading: &'static str, title: &'static str) -> Self {
        Self { heading, title, kind, severity, role: Role::Report, blame: Blame::Trace }
    }

    const fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    const fn blame(mut self, blame: Blame) -> Self {
        self.blame = blame;
        self
    }
}

const fn fatal(kind: Kind, heading: &'static str, title: &'static str) -> Signature {
    Signature::new(Severity::Fatal, kind, heading, title)
}

const fn error(kind: Kind, heading: &'static str, title: &'static str) -> Signature {
    Signature::new(Severity::Error, kind, heading, title)
}

const fn warning(kind: Kind, heading: &'static str, title: &'static str) -> Signature {
    Signature::new(Severity::Warning, kind, heading, title)
}

/// The signature whose heading matches a line, and the text in the heading's holes.
pub(crate) fn heading<'a>(text: &Text<'a>) -> Option<(&'static Signature, Holes<'a>)> {
    static TABLE: LazyLock<Table> = LazyLock::new(|| Table::new(SIGNATURES.iter().map(|signature| signature.heading)));
    text.first_of(&TABLE).map(|(index, holes)| (&SIGNATURES[index], holes))
}

/// The first line of a boot.
pub(crate) const BANNER: &str = "^Linux version ";

/// Whether a line announces a restart that was requested.
pub(crate) fn is_orderly(text: &Text<'_>) -> bool {
    static TABLE: LazyLock<Table> = LazyLock::new(|| Table::new(ORDERLY.iter().copied()));
    text.first_of(&TABLE).is_some()
}

/// Lines before a restart that was requested.
const ORDERLY: &[&str] = &["^reboot: ", "^sysrq: Resetting", "^Restarting system", "^kexec_core: Starting new kernel"];

/// Last lines of reports.
pub(crate) const ENDS: &[&str] =
    &["---[ end ", "^Rebooting in ", "^Out of memory: Killed process", "^Memory cgroup out of memory: Killed process"];

/// Lines after which the frames are those of another task: one that allocated the memory, or that holds locks.
pub(crate) const FRAMES_END: &[&str] = &[
    "^Allocated by task",
    "^Allocated:",
    "^Freed by task",
    "^Freed:",
    "^Last potentially related work",
    "^Uninit was ",
    "^Showing all locks held",
    "allocated by task",
    "^Disabling lock debugging",
    "^Local variable ",
];

/// The start of another CPU's stack.
pub(crate) const OTHER_CPU: &str = "NMI backtrace for cpu ";

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

use Blame::{Allocation, Entry, LockSite, Waiter};
use Kind::*;
use Role::{Consequence, Continues, Line, Preamble};

/// All known headings.
#[rustfmt::skip]
pub(crate) const SIGNATURES: &[Signature] = &[
    // Panics that follow from a report.
    fatal(Panic, "Kernel panic - not syncing: {}panic_on_warn set", "kernel panic: panic_on_warn set").role(Consequence),
    fatal(Panic, "Kernel panic - not syncing: {}panic_on_kmsan set", "kernel panic: panic_on_kmsan set").role(Consequence),
    fatal(Panic, "Kernel panic - not syncing: {}Fatal exception in interrupt", "kernel panic: Fatal exception in interrupt").role(Consequence),
    fatal(Panic, "Kernel panic - not syncing: {}Fatal exception", "kernel panic: Fatal exception").role(Consequence),
    fatal(Panic, "Kernel panic - not syncing: hung_task: ", "kernel panic: hung_task: blocked tasks").role(Consequence),
    fatal(Panic, "Kernel panic - not syncing: softlockup: ", "kernel panic: softlockup: hung tasks").role(Consequence),
    fatal(Panic, "Kernel panic - not syncing: Hard LOCKUP", "kernel panic: Hard LOCKUP").role(Consequence),
    fatal(Panic, "Kernel panic - not syncing: RCU Stall", "kernel panic: RCU Stall").role(Consequence),
    fatal(Panic, "Kernel panic - not syncing: scheduling while atomic", "kernel panic: scheduling while atomic").role(Consequence),
    fatal(Panic, "Kernel panic - not syncing: Machine halted", "kernel panic: Machine halted").role(Consequence),
    fatal(Panic, "Kernel panic - not syncing: Aiee, killing interrupt handler", "kernel panic: Aiee, killing interrupt handler!").role(Consequence),
    fatal(Panic, "Kernel panic - not syncing: Attempted to kill the idle task", "kernel panic: Attempted to kill the idle task!").role(Consequence),
    // Panics without a report before them.
    fatal(StackOverflow, "Kernel panic - not syncing: stack-protector: Kernel stack is corrupted in: {fn}", "kernel panic: stack is corrupted in {fn}"),
    fatal(StackOverflow, "Kernel panic - not syncing: corrupted stack end detected", "kernel panic: corrupted stack end in {fn}").blame(Entry),
    fatal(OutOfMemory, "Kernel panic - not syncing: Out of memory", "kernel panic: Out of memory"),
    fatal(OutOfMemory, "Kernel panic - not syncing: System is deadlocked on memory", "kernel panic: System is deadlocked on memory"),
    fatal(Panic, "Kernel panic - not syncing: Attempted to kill init!", "kernel panic: Attempted to kill init!"),
    fatal(Panic, "Kernel panic - not syncing: Couldn't open N_TTY ldisc", "kernel panic: Couldn't open N_TTY ldisc"),
    fatal(Panic, "Kernel panic - not syncing: {}", "kernel panic: {0}"),
    fatal(Panic, "^rust_kernel: panicked at {}:", "Rust panic in {fn}").role(Preamble),

    // Sanitizers.
    fatal(Kasan, "^BUG: KASAN: double-free or invalid-free in {fn}", "KASAN: invalid-free in {fn}"),
    fatal(Kasan, "^BUG: KASAN: double-free in {fn}", "KASAN: invalid-free in {fn}"),
    fatal(Kasan, "^BUG: KASAN: invalid-free in {fn}", "KASAN: invalid-free in {fn}"),
    fatal(Kasan, "^BUG: KASAN: {} on address ", "KASAN: {0} {access} in {fn}"),
    fatal(Kasan, "^BUG: KASAN: {} in {fn}", "KASAN: {0} {access} in {fn}"),
    fatal(Kasan, "^KASAN: {} in range", "KASAN: {0} in {fn}").role(Continues),
    fatal(Kfence, "^BUG: KFENCE: {} in {fn}", "KFENCE: {0} in {fn}"),
    fatal(Kmsan, "^BUG: KMSAN: {} in {fn}", "KMSAN: {0} in {fn}"),
    error(Kcsan, "^BUG: KCSAN: assert: race in {fn}", "KCSAN: assert: race in {fn}"),
    error(Kcsan, "^BUG: KCSAN: {} in {fn}", "KCSAN: {0} in {fn}"),
    error(Ubsan, "^UBSAN: Undefined behaviour in ", "UBSAN: undefined-behaviour in {fn}"),
    error(Ubsan, "^UBSAN: {} in ", "UBSAN: {0} in {fn}"),

    // Faults.
    fatal(DoubleFault, "^PANIC: double fault", "PANIC: double fault in {fn}"),
    fatal(StackOverflow, "^BUG: stack guard page was hit", "BUG: stack guard page was hit in {fn}").blame(Entry),
    fatal(StackOverflow, "^BUG: {} stack guard page was hit", "BUG: stack guard page was hit in {fn}").blame(Entry),
    fatal(StackOverflow, "^Insufficient stack space to handle exception", "kernel stack overflow in {fn}").blame(Entry),
    fatal(NullDereference, "^BUG: unable to handle kernel NULL pointer dereference", "BUG: unable to handle kernel NULL pointer dereference in {fn}"),
    fatal(NullDereference, "^BUG: kernel NULL pointer dereference, address", "BUG: unable to handle kernel NULL pointer dereference in {fn}"),
    fatal(PageFault, "^BUG: unable to handle kernel paging request", "BUG: unable to handle kernel paging request in {fn}"),
    fatal(PageFault, "^BUG: unable to handle page fault for address", "BUG: unable to handle kernel paging request in {fn}"),
    fatal(PageFault, "^BUG: unable to handle kernel ", "BUG: unable to handle kernel access in {fn}"),
    fatal(NullDereference, "^Unable to handle kernel NULL pointer dereference", "BUG: unable to handle kernel NULL pointer dereference in {fn}"),
    fatal(PageFault, "^Unable to handle kernel {} at virtual address", "BUG: unable to handle kernel {0} in {fn}"),
    fatal(PageFault, "^BUG: Unable to handle kernel {} at ", "BUG: unable to handle kernel data access in {fn}"),
    fatal(PageFault, "^Kernel attempted to ", "BUG: unable to handle kernel data access in {fn}").role(Preamble),
    fatal(GeneralProtection, "general protection fault{}[#", "general protection fault in {fn}"),
    fatal(Oops, "^Alignment trap: ", "Alignment trap in {fn}").role(Preamble),
    fatal(Oops, "^Unhandled fault: ", "Unhandled fault in {fn}").role(Continues),
    fatal(Oops, "^Internal error: ", "Internal error in {fn}").role(Continues),
    fatal(DivideError, "^divide error: {}[#", "divide error in {fn}"),
    fatal(DivideError, "^divide_error: {}[#", "divide error in {fn}"),
    fatal(InvalidOpcode, "^invalid opcode: {}[#", "invalid opcode in {fn}").role(Continues),
    fatal(Oops, "^stack segment: {}[#", "stack segment fault in {fn}"),
    fatal(Oops, "^int3: {}[#", "int3 in {fn}"),
    fatal(Oops, "^Oops{}[#", "Oops in {fn}").role(Continues),
    fatal(Oops, "^Kernel bug detected[#", "kernel BUG in {fn}"),

    // BUG() and checks that are as severe. The file name shows which check it was.
    fatal(Bug, "kernel BUG at lib/list_debug.c:", "BUG: corrupted list in {fn}"),
    fatal(MemoryCorruption, "kernel BUG at mm/usercopy.c:", "BUG: bad usercopy in {fn}"),
    fatal(Bug, "kernel BUG at ", "kernel BUG in {fn}"),
    fatal(MemoryCorruption, "^BUG: Bad page state", "BUG: Bad page state in {fn}"),
    fatal(MemoryCorruption, "^BUG: Bad page cache", "BUG: Bad page cache in {fn}"),
    fatal(MemoryCorruption, "^BUG: Bad page map", "BUG: Bad page map in {fn}"),
    fatal(MemoryCorruption, "^BUG: Bad rss-counter state", "BUG: Bad rss-counter state").role(Line),
    fatal(MemoryCorruption, "^BUG: non-zero pgtables_bytes", "BUG: non-zero pgtables_bytes on freeing mm").role(Line),
    fatal(MemoryCorruption, "^BUG {}): Object already free", "BUG: Object already free"),
    fatal(MemoryCorruption, "^BUG {}): Poison overwritten", "BUG: Poison overwritten in {fn}"),
    fatal(MemoryCorruption, "^BUG {}): {} overwritten", "BUG: Redzone overwritten in {fn}"),
    fatal(MemoryCorruption, "^BUG {}): Objects remaining", "BUG: Objects remaining on slab shutdown").role(Preamble),
    fatal(MemoryCorruption, "^BUG {}): Invalid object pointer", "BUG: invalid object pointer in {fn}"),
    fatal(MemoryCorruption, "^INFO: {} in {fn} age=", "INFO: {0} in {fn} age=NUM cpu=NUM pid=NUM").role(Continues),
    fatal(MemoryCorruption, "^BUG: Dentry {} still in use", "BUG: Dentry still in use in {fn}").role(Preamble),
    fatal(MemoryCorruption, "^VFS: Busy inodes after unmount", "VFS: Busy inodes after unmount (use-after-free)").role(Line),

    // Locks.
    warning(Lockdep, "^WARNING: possible circular locking dependency", "possible deadlock in {fn}").blame(LockSite),
    warning(Lockdep, "^WARNING: possible recursive locking", "possible deadlock in {fn}").blame(LockSite),
    warning(Lockdep, "^WARNING: possible irq lock inversion", "possible deadlock in {fn}").blame(LockSite),
    warning(Lockdep, "-safe -> {}-unsafe lock order detected", "possible deadlock in {fn}").blame(LockSite),
    warning(Lockdep, "^INFO: possible circular locking dependency", "possible deadlock in {fn}").blame(LockSite),
    warning(Lockdep, "^INFO: possible recursive locking", "possible deadlock in {fn}").blame(LockSite),
    warning(Lockdep, "^INFO: possible irq lock inversion", "possible deadlock in {fn}").blame(LockSite),
    warning(Lockdep, "^INFO: inconsistent lock state", "inconsistent lock state in {fn}").blame(LockSite),
    warning(Lockdep, "^WARNING: inconsistent lock state", "inconsistent lock state in {fn}").blame(LockSite),
    warning(Lockdep, "^WARNING: suspicious RCU usage", "WARNING: suspicious RCU usage in {fn}"),
    warning(Lockdep, "^INFO: suspicious RCU usage", "INFO: suspicious RCU usage in {fn}"),
    warning(Lockdep, "^INFO: suspicious rcu_dereference", "INFO: suspicious RCU usage in {fn}"),
    warning(Lockdep, "^INFO: trying to register non-static key", "INFO: trying to register non-static key in {fn}"),
    warning(Lockdep, "^WARNING: bad unlock balance", "WARNING: bad unlock balance in {fn}").blame(LockSite),
    warning(Lockdep, "^BUG: bad unlock balance", "BUG: bad unlock balance in {fn}").blame(LockSite),
    warning(Lockdep, "^WARNING: bad contention", "WARNING: bad contention in {fn}"),
    warning(Lockdep, "^BUG: bad contention", "BUG: bad contention in {fn}"),
    warning(Lockdep, "^WARNING: held lock freed", "WARNING: held lock freed in {fn}").blame(LockSite),
    warning(Lockdep, "^BUG: held lock freed", "BUG: held lock freed in {fn}").blame(LockSite),
    warning(Lockdep, "^WARNING: lock held when returning to user", "WARNING: lock held when returning to user space in {fn}").blame(LockSite),
    warning(Lockdep, "^BUG: lock held when returning to user", "BUG: lock held when returning to user space in {fn}").blame(LockSite),
    warning(Lockdep, "^WARNING: {} still has locks held", "WARNING: still has locks held in {fn}"),
    warning(Lockdep, "^BUG: {} still has locks held", "BUG: still has locks held in {fn}"),
    warning(Lockdep, "^WARNING: Nested lock was not taken", "WARNING: nested lock was not taken in {fn}"),
    warning(Lockdep, "^WARNING: Invalid wait context", "WARNING: invalid wait context in {fn}"),
    warning(Lockdep, "^BUG: Invalid wait context", "BUG: invalid wait context in {fn}"),
    warning(Lockdep, "^BUG: MAX_{} too low!", "BUG: MAX_{0} too low!").role(Line),
    warning(Lockdep, "^BUG: workqueue leaked lock or atomic", "BUG: workqueue leaked lock or atomic in {fn}").blame(LockSite),
    warning(AtomicSleep, "^BUG: sleeping function called from invalid context", "BUG: sleeping function called from invalid context in {fn}").blame(Waiter),
    warning(AtomicSleep, "^BUG: scheduling while atomic", "BUG: scheduling while atomic in {fn}").blame(Waiter),
    warning(AtomicSleep, "^BUG: using {} in preemptible", "BUG: using {0} in preemptible code in {fn}"),
    fatal(Lockdep, "^BUG: {}lock {} on CPU#", "BUG: {0}lock {1} in {fn}"),

    // Hangs.
    error(SoftLockup, "BUG: soft lockup - CPU#", "BUG: soft lockup in {fn}").blame(Entry),
    error(HardLockup, "^Watchdog detected hard LOCKUP on cpu", "hard lockup in {fn}").blame(Entry),
    error(HardLockup, "^NMI watchdog: Watchdog detected hard LOCKUP", "hard lockup in {fn}").blame(Entry),
    error(RcuStall, "^INFO: rcu_{} self-detected stall", "INFO: rcu detected stall in {fn}").blame(Entry),
    error(RcuStall, "^INFO: rcu_{} detected stalls", "INFO: rcu detected stall in {fn}").blame(Entry),
    error(RcuStall, "^INFO: rcu_{} detected expedited stalls", "INFO: rcu detected stall in {fn}").blame(Entry),
    error(HungTask, "^INFO: task {} blocked for more than", "INFO: task hung in {fn}").blame(Waiter),
    error(HungTask, "^INFO: task {} blocked in I/O wait for more than", "INFO: task hung in {fn}").blame(Waiter),
    error(HungTask, "^INFO: task {} can't die for more than", "INFO: task can't die in {fn}").blame(Waiter),
    error(WorkqueueStall, "^BUG: workqueue lockup", "BUG: workqueue lockup").role(Line),
    error(HungTask, "^unregister_netdevice: waiting for {} to become free", "unregister_netdevice: waiting for device to become free").role(Line),
    error(HungTask, "^NETDEV WATCHDOG: ", "NETDEV WATCHDOG: transmit queue timed out").role(Preamble),

    // WARN(). The file name shows which check it was; kernels from 6.18 on print it first.
    warning(DebugObjects, "^WARNING: {}lib/debugobjects.c:{} {fn}", "WARNING: ODEBUG bug in {fn}"),
    warning(Refcount, "^WARNING: {}lib/refcount.c:{} {fn}", "WARNING: refcount bug in {fn}"),
    warning(Warning, "^WARNING: {}lib/kobject.c:{} {fn}", "WARNING: kobject bug in {fn}"),
    warning(Warning, "^WARNING: {}mm/slab_common.c:{} kmalloc_slab", "WARNING: kmalloc bug in {fn}"),
    warning(Warning, "^WARNING: {}mm/vmalloc.c:{} __vmalloc_node_range", "WARNING: zero-size vmalloc in {fn}"),
    warning(Lockdep, "^WARNING: {}kernel/locking/lockdep.c:{} {fn}", "WARNING: locking bug in {fn}"),
    warning(Warning, "^WARNING: CPU: {} at {}:{} {fn}", "WARNING in {fn}"),
    warning(Warning, "^WARNING: at {}:{} {fn}", "WARNING in {fn}"),
    warning(Warning, "^WARNING: {}.{}:{} at {fn}, CPU#", "WARNING in {fn}"),
    warning(Warning, "^WARNING: kernel stack regs at {} has bad 'bp' value", "WARNING: kernel stack regs has bad 'bp' value").role(Line),
    warning(Warning, "^WARNING: kernel stack regs at {} has bad value", "WARNING: kernel stack regs has bad value").role(Line),
    warning(Warning, "^WARNING: kernel stack frame pointer at {} has bad value", "WARNING: kernel stack frame pointer has bad value").role(Line),

    // Memory.
    error(MemoryLeak, "BUG: memory leak", "memory leak in {fn}").blame(Allocation),
    warning(MemoryLeak, "^kmemleak: {} new suspected memory leak", "kmemleak: new suspected memory leaks").role(Line),
    warning(OutOfMemory, "^{} invoked oom-killer: ", "out of memory"),
    warning(OutOfMemory, "^Memory cgroup out of memory: Killed process", "out of memory: memory cgroup").role(Continues),
    warning(OutOfMemory, "^Out of memory: Killed process", "out of memory").role(Continues),
    warning(OutOfMemory, "^Out of memory: Kill process", "out of memory").role(Continues),
];

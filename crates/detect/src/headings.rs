//! The table of headings: how each kind of report begins.
//!
//! Order matters: the first row that matches a line is used, so special headings come before general ones. Patterns are
//! those of [`pattern`](crate::pattern).

use std::sync::LazyLock;

use crate::finding::Kind::{self, *};
use crate::finding::Severity;
use crate::pattern::{Holes, Table, Text};
use crate::signatures::Choice::{Operation, Waiter};
use crate::signatures::Role::{Consequence, Continues, Line, MarkedLine, Minor, Preamble, Sentence};
use crate::signatures::{COUNTER, HEADING_FRAMES, HEADING_STACK, Need, ONLY_COUNTER, STACK, Signature, Step, TRAP};
use crate::words::Words;

/// Whether a heading that consists of general words counts, in a line of a log that marks its lines.
///
/// A line in capitals was changed by a program, so its words are not those of the kernel.
pub(crate) fn is_trusted(signature: &Signature, text: &str, is_marked: bool) -> bool {
    signature.role != MarkedLine || (is_marked && text.bytes().any(|byte| byte.is_ascii_lowercase()))
}

/// The signature whose heading matches a line, and the text in the heading's holes.
pub(crate) fn heading<'a>(text: &Text<'a>) -> Option<(&'static Signature, Holes<'a>)> {
    static TABLE: LazyLock<Table> = LazyLock::new(|| Table::new(SIGNATURES.iter().map(|signature| signature.heading)));
    let (index, holes) = text.first_of(&TABLE)?;
    (!text.is_any(CHATTER)).then_some((&SIGNATURES[index], holes))
}

/// Whether a line can be a heading, the first of a boot, or the announcement of a restart. Most lines can't, and nothing
/// else has to be looked for in them.
pub(crate) fn may_matter(line: &str) -> bool {
    static WORDS: LazyLock<Words> = LazyLock::new(|| Words::new(FRONT.iter().copied()));
    #[cfg(test)]
    if crate::reference::is_enabled() {
        return true;
    }
    WORDS.are_in(line)
}

/// Each heading has one of these words. They are few, so the search skips most bytes of a line.
#[rustfmt::skip]
const FRONT: &[&str] = &[
    "BUG", "WARNING:", "INFO: ", "Kernel panic", "KASAN: ", "UBSAN: ", "PANIC: ", "rust_kernel: ", "trusty: panic",
    "nable to handle kernel", "Kernel attempted to", "general protection fault", "Alignment trap", "Unhandled fault",
    "Internal error", "divide error", "divide_error", "invalid opcode", "stack segment", "int3: ", "Oops", "Kernel bug detected",
    "Insufficient stack space", "VFS: Busy", "VFS: Close", "hard LOCKUP", "unregister_netdevice: ", "NETDEV WATCHDOG",
    "kmemleak: ", "invoked oom-killer", "ut of memory: Kill", "SYZFAIL: ", "SYZFATAL: ",
    // Boots and restarts.
    "Linux version ", "reboot: ", "sysrq: Resetting", "Restarting system", "Starting new kernel",
];

/// Lines that look like headings and are not.
#[rustfmt::skip]
const CHATTER: &[&str] = &[
    "^INFO: lockdep is turned off", "^INFO: Stall ended before state dump start", "INFO: NMI handler", "took too long", "uses wireless extensions", "uses deprecated v2 capabilities",
    "INFO: recovery required on readonly filesystem", "WARNING: /etc/ssh/moduli does not exist",
    "WARNING: workqueue cpumask: online intersect", "WARNING: the mand mount option", "WARNING: The mand mount option",
    "WARNING: Unprivileged eBPF is enabled", "WARNING: fbcon: Driver '", "for mitigation options", "WARNING: kernel not compiled with",
    "general protection fault{} error:{} in ",
];

const fn fatal(kind: Kind, heading: &'static str, title: &'static str) -> Signature {
    Signature::new(Severity::Fatal, kind, heading, title)
}

const fn error(kind: Kind, heading: &'static str, title: &'static str) -> Signature {
    Signature::new(Severity::Error, kind, heading, title)
}

const fn warning(kind: Kind, heading: &'static str, title: &'static str) -> Signature {
    Signature::new(Severity::Warning, kind, heading, title)
}

/// A consequence of a report.
const fn consequence(heading: &'static str, title: &'static str) -> Signature {
    fatal(Panic, heading, title).role(Consequence).remainder()
}

/// A fault: its function is at the program counter.
const fn fault(kind: Kind, heading: &'static str, title: &'static str) -> Signature {
    fatal(kind, heading, title).steps(COUNTER).alike(BAD_ACCESS)
}

/// A cycle of locks.
const fn deadlock(heading: &'static str) -> Signature {
    warning(Lockdep, heading, "possible deadlock in {fn}")
}

/// A `WARN()`.
const fn warn(kind: Kind, heading: &'static str, title: &'static str) -> Signature {
    warning(kind, heading, title).steps(TRAP).or_steps(&[STACK])
}

/// An unknown report with one of the usual first words. A line of such words is all that is certain.
const fn unknown(kind: Kind, heading: &'static str, title: &'static str) -> Signature {
    warning(kind, heading, title).role(MarkedLine)
}

const BAD_ACCESS: &str = "bad-access in {fn}";
const INVALID_FREE: &str = "invalid-free in {fn}";
const STACK_OVERFLOW: &str = "stack-overflow in {fn}";
const STALL: &str = "stall in {fn}";
const HANG: &str = "hang in {fn}";

const KASAN: &[Step] = HEADING_STACK;
/// Frames of memory tags come before the access.
const KASAN_SKIP: &[&str] = &["*kernel_fault*", "*tag_check*", "*mem_abort*", "el1_*", "el1h_*"];
const KMSAN: &[Step] = &[Step::Frames, Step::Line(&["Uninit was created at:", " created at:"]), Step::Frames];
/// Code that hands memory of its caller on: encryption, and messages to user space.
const KMSAN_SKIP: &[&str] =
    &["*alloc_skb*", "*netlink_ack*", "*netlink_rcv_skb*", "*_encrypt", "crypto_*", "cipher_*", "drbg_*", "rng_*"];
const USB_SKIP: &[&str] = &[
    "*alloc_skb*",
    "*usb_submit_urb*",
    "*usb_start_wait_urb*",
    "*usb_bulk_msg*",
    "*usb_interrupt_msg*",
    "*usb_control_msg*",
];
/// The interrupt that noticed the stall, then the code that it interrupted.
const STALLED: &[Step] = &[Step::Line(&["apic_timer_interrupt"]), Step::Counter, Step::Frames];
const STALLED_FRAMES: &[Step] =
    &[Step::Line(&["apic_timer_interrupt", "Exception stack", "el1h_64_irq"]), Step::Frames];
/// Both locks of the cycle.
const BOTH_LOCKS: &[Step] = &[Step::LockSite, Step::LockSite, Step::Frames];
const UNLOCKED: &[Step] = &[Step::Address, Step::Stack, Step::Frames];
const UBSAN_SKIP: &[&str] = &["*ubsan*", "*overflow*"];
const RCU_SKIP: &[&str] = &["*rcu*", "*kmem*", "*slab*"];
const ODEBUG_SKIP: &[&str] = &[
    "*debug_*",
    "*rcu*",
    "*hrtimer_*",
    "*timer_*",
    "*work_*",
    "*percpu_*",
    "*vunmap*",
    "*vfree*",
    "*__free_*",
    "*kobject_*",
];
const KMALLOC_SKIP: &[&str] = &["*kmalloc*", "*krealloc*", "*slab*", "*kmem*"];
const SLEEP_SKIP: &[&str] = &["msleep*", "usleep*", "ssleep"];
const PREEMPT_SKIP: &[&str] = &["*dump_stack*", "*preempt*", "*debug_*", "*processor_id*", "*this_cpu*"];
const SOCK_SKIP: &[&str] = &["*lock_sock*", "*release_sock*"];
const LEAK_SKIP: &[&str] = &[
    "*kmemleak*",
    "*mmap*",
    "*kmem*",
    "*slab*",
    "*alloc*",
    "*create_object*",
    "*idr_get*",
    "*list_lru_init*",
    "*kasprintf*",
    "*kvasprintf*",
    "*pcpu_create*",
    "*strdup*",
    "*strndup*",
    "*memdup*",
];
const PAGE_SKIP: &[&str] = &[
    "*free_page*",
    "*put_page*",
    "*get_page*",
    "*update_page*",
    "*release_page*",
    "*free_unref*",
    "folio*",
    "_folio*",
    "__folio*",
    "*truncate_inode_pages*",
    "*page_frag_free*",
    "*alloc*",
    "*vmap*",
    "*page_owner*",
];

/// All known headings.
#[rustfmt::skip]
pub(crate) const SIGNATURES: &[Signature] = &[
    // Panics that follow from a report.
    consequence("Kernel panic - not syncing: {}panic_on_warn set", "kernel panic: panic_on_warn set"),
    consequence("Kernel panic - not syncing: {}panic_on_kmsan set", "kernel panic: panic_on_kmsan set"),
    consequence("Kernel panic - not syncing: {}Fatal exception", "kernel panic: Fatal exception"),
    consequence("Kernel panic - not syncing: hung_task: ", "kernel panic: hung_task: blocked tasks"),
    consequence("Kernel panic - not syncing: softlockup: ", "kernel panic: softlockup: hung tasks"),
    consequence("Kernel panic - not syncing: Hard LOCKUP", "kernel panic: Hard LOCKUP"),
    consequence("Kernel panic - not syncing: RCU Stall", "kernel panic: RCU Stall"),
    consequence("Kernel panic - not syncing: scheduling while atomic", "kernel panic: scheduling while atomic"),
    consequence("Kernel panic - not syncing: Machine halted", "kernel panic: Machine halted"),
    consequence("Kernel panic - not syncing: Aiee, killing interrupt handler", "kernel panic: Aiee, killing interrupt handler!"),
    consequence("Kernel panic - not syncing: Attempted to kill the idle task", "kernel panic: Attempted to kill the idle task!"),
    // Panics without a report before them.
    fatal(StackOverflow, "Kernel panic - not syncing: stack-protector: Kernel stack is corrupted in: {fn}+0x", "kernel panic: stack is corrupted in {fn}").without_stack(),
    fatal(StackOverflow, "Kernel panic - not syncing: stack-protector: Kernel stack is corrupted in: ", "kernel panic: stack is corrupted in {fn}").steps(STACK).skip(&["*stack_chk*"]),
    fatal(StackOverflow, "Kernel panic - not syncing: stack-protector:", "kernel panic: stack is corrupted in {fn}").steps(STACK).skip(&["*stack_chk*"]),
    fatal(StackOverflow, "Kernel panic - not syncing: corrupted stack end detected", "kernel panic: corrupted stack end in {fn}").steps(STACK).skip(&["*schedule*", "*retint_kernel*"]).choice(Operation).alike(STACK_OVERFLOW),
    fatal(StackOverflow, "Kernel panic - not syncing: kernel stack overflow", "kernel stack overflow in {fn}").steps(STACK).skip(&["*bad_stack*"]).choice(Operation).alike(STACK_OVERFLOW),
    fatal(OutOfMemory, "Kernel panic - not syncing: Out of memory", "kernel panic: Out of memory"),
    fatal(OutOfMemory, "Kernel panic - not syncing: System is deadlocked on memory", "kernel panic: System is deadlocked on memory"),
    fatal(Panic, "Kernel panic - not syncing: Attempted to kill init!", "kernel panic: Attempted to kill init!"),
    fatal(Panic, "Kernel panic - not syncing: Couldn't open N_TTY ldisc", "kernel panic: Couldn't open N_TTY ldisc"),
    fatal(Panic, "Kernel panic - not syncing: {}", "kernel panic: {0}"),
    fatal(Panic, "^Kernel panic{}", "Kernel panic{0}"),
    fatal(Panic, "^rust_kernel: panicked at {}:", "{message} in {fn}").role(Preamble).needs(&[Need::Message]).steps(STACK),
    fatal(Panic, "^trusty: panic {}ASSERT FAILED at ({}): {}", "trusty: ASSERT FAILED: {2}").role(Preamble).without_stack(),
    fatal(Panic, "^trusty: panic {}ASSERT FAILED", "trusty: ASSERT FAILED:").role(Preamble).without_stack().remainder(),
    fatal(Panic, "^trusty: panic ({}): {}", "trusty: panic: {1}").role(Preamble).without_stack(),
    fatal(Panic, "^trusty: panic", "trusty: panic").role(Preamble).without_stack().remainder(),

    // Sanitizers.
    fatal(Kasan, "^BUG: KASAN: double-free or invalid-free in {fn}", "KASAN: invalid-free in {fn}").steps(KASAN).skip(&["*slab_*", "*kfree*", "*vunmap*", "*vfree*"]).alike(INVALID_FREE),
    fatal(Kasan, "^BUG: KASAN: double-free in {fn}", "KASAN: invalid-free in {fn}").steps(KASAN).skip(&["*slab_*", "*kfree*", "*vunmap*", "*vfree*"]).alike(INVALID_FREE),
    fatal(Kasan, "^BUG: KASAN: invalid-free in {fn}", "KASAN: invalid-free in {fn}").steps(KASAN).skip(&["*slab_*", "*kfree*", "*vunmap*", "*vfree*"]).alike(INVALID_FREE),
    fatal(Kasan, "^BUG: KASAN: {} on address ", "KASAN: {0} {access}").needs(&[Need::Access]).cut_title("KASAN: {line}"),
    fatal(Kasan, "^BUG: KASAN: {} in {fn}", "KASAN: {0} {access} in {fn}").needs(&[Need::Function, Need::Access]).cut_title("KASAN: {line}").steps(KASAN).skip(KASAN_SKIP).alike(BAD_ACCESS),
    fatal(Kasan, "^BUG: KASAN: {}", "KASAN: {0}").remainder(),
    fatal(Kasan, "^KASAN: {} in range", "KASAN: {0} in {fn}").role(Continues).steps(COUNTER),
    fatal(Kfence, "^BUG: KFENCE: invalid free in {fn}", "KFENCE: invalid free in {fn}").steps(HEADING_FRAMES).alike(INVALID_FREE).without_stack(),
    fatal(Kfence, "^BUG: KFENCE: memory corruption in {fn}", "KFENCE: memory corruption in {fn}").steps(HEADING_FRAMES).without_stack(),
    fatal(Kfence, "^BUG: KFENCE: {} in {fn}", "KFENCE: {0} in {fn}").steps(HEADING_FRAMES).alike(BAD_ACCESS).without_stack(),
    fatal(Kmsan, "^BUG: KMSAN: kernel-usb-infoleak in {fn}", "KMSAN: kernel-usb-infoleak in {fn}").steps(KMSAN).skip(USB_SKIP).alike("KMSAN origin in {origin}").without_stack(),
    fatal(Kmsan, "^BUG: KMSAN: {} in {fn}", "KMSAN: {0} in {fn}").steps(KMSAN).skip(KMSAN_SKIP).alike(BAD_ACCESS).without_stack(),
    error(Kcsan, "^BUG: KCSAN: {}", "KCSAN: {0}").without_stack(),
    error(Ubsan, "^UBSAN: Undefined behaviour in ", "UBSAN: undefined-behaviour in {fn}").steps(STACK).skip(UBSAN_SKIP),
    error(Ubsan, "^UBSAN: array-index-out-of-bounds in ", "UBSAN: array-index-out-of-bounds in {fn}").steps(STACK).skip(UBSAN_SKIP).alike(BAD_ACCESS),
    error(Ubsan, "^UBSAN: {} in ", "UBSAN: {0} in {fn}").steps(STACK).skip(UBSAN_SKIP),

    // Faults.
    fatal(DoubleFault, "^PANIC: double fault", "PANIC: double fault in {fn}").role(Continues).steps(ONLY_COUNTER),
    fatal(StackOverflow, "^BUG: stack guard page was hit at", "BUG: stack guard page was hit in {fn}").steps(COUNTER).choice(Operation).alike(STACK_OVERFLOW),
    fatal(StackOverflow, "^BUG: {} stack guard page was hit at", "BUG: stack guard page was hit in {fn}").steps(COUNTER).choice(Operation).alike(STACK_OVERFLOW),
    fatal(StackOverflow, "^Insufficient stack space to handle exception", "kernel stack overflow in {fn}").steps(STACK).skip(&["*bad_stack*"]).choice(Operation).alike(STACK_OVERFLOW),
    fault(NullDereference, "^BUG: unable to handle kernel NULL pointer dereference", "BUG: unable to handle kernel NULL pointer dereference in {fn}"),
    fault(NullDereference, "^BUG: kernel NULL pointer dereference, address", "BUG: unable to handle kernel NULL pointer dereference in {fn}"),
    fault(NullDereference, "^BUG: Kernel NULL pointer dereference", "BUG: unable to handle kernel NULL pointer dereference in {fn}"),
    fault(PageFault, "^BUG: unable to handle kernel paging request", "BUG: unable to handle kernel paging request in {fn}"),
    fault(PageFault, "^BUG: unable to handle page fault for address", "BUG: unable to handle kernel paging request in {fn}"),
    fault(PageFault, "^BUG: Unable to handle kernel data access", "BUG: unable to handle kernel paging request in {fn}"),
    fatal(PageFault, "^BUG: unable to handle kernel", "BUG: unable to handle kernel").remainder(),
    fatal(PageFault, "^BUG: Unable to handle kernel", "BUG: unable to handle kernel").remainder(),
    fault(NullDereference, "^Unable to handle kernel NULL pointer dereference", "BUG: unable to handle kernel NULL pointer dereference in {fn}"),
    fault(PageFault, "^Unable to handle kernel paging request", "BUG: unable to handle kernel paging request in {fn}"),
    fault(PageFault, "^Unable to handle kernel access to user memory", "BUG: unable to handle kernel access to user memory in {fn}"),
    fault(PageFault, "^Unable to handle kernel {} at virtual address", "BUG: unable to handle kernel {0} in {fn}"),
    fault(PageFault, "^Kernel attempted to ", "BUG: unable to handle kernel paging request in {fn}").role(Preamble),
    fault(GeneralProtection, "general protection fault{}[#", "general protection fault in {fn}"),
    fault(GeneralProtection, "^general protection fault: ", "general protection fault in {fn}"),
    fatal(Oops, "^Alignment trap: ", "Alignment trap in {fn}").role(Preamble).steps(COUNTER),
    fault(Oops, "^Unhandled fault: ", "Unhandled fault in {fn}").role(Continues),
    fault(Oops, "^Internal error: ", "Internal error in {fn}").role(Continues),
    fatal(DivideError, "^divide error: ", "divide error in {fn}").steps(ONLY_COUNTER),
    fatal(DivideError, "^divide_error: ", "divide error in {fn}").steps(ONLY_COUNTER),
    fatal(InvalidOpcode, "^invalid opcode: ", "invalid opcode in {fn}").role(Continues).steps(ONLY_COUNTER),
    fatal(Oops, "^stack segment: ", "stack segment fault in {fn}").steps(COUNTER),
    fatal(Oops, "^int3: {}[#", "int3 in {fn}").steps(COUNTER),
    fatal(DivideError, "^Oops: divide error: ", "divide error in {fn}").steps(ONLY_COUNTER),
    fatal(InvalidOpcode, "^Oops: invalid opcode: ", "invalid opcode in {fn}").role(Continues).steps(ONLY_COUNTER),
    fatal(Oops, "^Oops: stack segment: ", "stack segment fault in {fn}").steps(COUNTER),
    fatal(Oops, "^Oops: int3: ", "int3 in {fn}").steps(COUNTER),
    fatal(Oops, "^Oops{}[#", "Oops in {fn}").role(Continues).steps(COUNTER),
    fatal(Oops, "^Kernel bug detected[#", "kernel BUG in {fn}").steps(COUNTER),

    // BUG() and checks that are as severe. The file name shows which check it was.
    fatal(Bug, "kernel BUG at lib/list_debug.c", "BUG: corrupted list in {fn}").steps(STACK).alike(BAD_ACCESS),
    fatal(MemoryCorruption, "kernel BUG at mm/usercopy.c", "BUG: bad usercopy in {fn}").steps(STACK).skip(&["*usercopy*", "*__check*"]),
    fatal(Bug, "kernel BUG at ", "kernel BUG in {fn}").steps(COUNTER).skip(&["skb_*"]),
    fatal(Bug, "Kernel BUG {}", "kernel BUG {0}"),
    fatal(MemoryCorruption, "^BUG: Bad page state", "BUG: Bad page state in {fn}").steps(&[Step::Line(&["page last allocated"]), Step::Frames]).skip(PAGE_SKIP),
    fatal(MemoryCorruption, "^BUG: Bad page cache", "BUG: Bad page cache in {fn}").steps(&[Step::Line(&["page last allocated"]), Step::Frames]).skip(PAGE_SKIP),
    fatal(MemoryCorruption, "^BUG: Bad page map", "BUG: Bad page map"),
    fatal(MemoryCorruption, "^BUG: Bad rss-counter state", "BUG: Bad rss-counter state").role(Line),
    fatal(MemoryCorruption, "^BUG: non-zero {} on freeing mm", "BUG: non-zero {0} on freeing mm").role(Line),
    fatal(MemoryCorruption, "BUG kmalloc-{}: Object already free", "BUG: Object already free"),
    fatal(MemoryCorruption, "^BUG {}): Object already free", "BUG: Object already free"),
    fatal(MemoryCorruption, "^BUG {}): Poison overwritten", "BUG: Poison overwritten in {fn}").steps(STACK),
    fatal(MemoryCorruption, "^BUG {}): {} overwritten", "BUG: Redzone overwritten in {fn}").steps(STACK),
    fatal(MemoryCorruption, "^BUG {}): Objects remaining", "BUG: Objects remaining on slab shutdown").role(Preamble),
    fatal(MemoryCorruption, "^BUG {}): Invalid object pointer", "BUG: invalid object pointer in {fn}").steps(STACK),
    fatal(MemoryCorruption, "^INFO: Freed in {}", "INFO: Freed in {0}").role(Continues).remainder(),
    fatal(MemoryCorruption, "^INFO: Allocated in {}", "INFO: Allocated in {0}").role(Continues).remainder(),
    fatal(MemoryCorruption, "^BUG: Dentry {} still in use ({}) [{} of {}]", "BUG: Dentry still in use in {2}").alike("BUG: Dentry still in use [{2} of {3}]").role(Preamble),
    fatal(MemoryCorruption, "^VFS: Busy inodes after unmount", "VFS: Busy inodes after unmount (use-after-free)").role(Line),
    fatal(MemoryCorruption, "^VFS: Close: file count is 0", "VFS: Close: file count is zero (use-after-free)").role(Line),

    // Locks.
    deadlock("^WARNING: possible circular locking dependency detected").needs(&[Need::Text("is trying to acquire lock")]).steps(BOTH_LOCKS).skip(&["*process_one_work*", "*flush_workqueue*", "*drain_workqueue*", "*destroy_workqueue*"]),
    deadlock("^WARNING: possible irq lock inversion dependency detected").needs(&[Need::Text("just changed the state of lock"), Need::LockSite]),
    deadlock("^WARNING: {}-safe -> {}-unsafe lock order detected").steps(&[Step::Line(&["which became "]), Step::Frames]),
    deadlock("^WARNING: possible recursive locking detected").needs(&[Need::Text("is trying to acquire lock"), Need::LockSite]),
    deadlock("^INFO: possible circular locking dependency detected").needs(&[Need::Text("is trying to acquire lock"), Need::LockSite]),
    deadlock("^INFO: possible irq lock inversion dependency detected").needs(&[Need::Text("just changed the state of lock"), Need::LockSite]),
    deadlock("^INFO: {}-safe -> {}-unsafe lock order detected").needs(&[Need::Text("is trying to acquire"), Need::LockSite]),
    deadlock("^INFO: possible recursive locking detected").needs(&[Need::Text("is trying to acquire lock"), Need::LockSite]),
    warning(Lockdep, "^WARNING: inconsistent lock state", "inconsistent lock state in {fn}").needs(&[Need::Text("takes"), Need::LockSite]).steps(STACK),
    warning(Lockdep, "^INFO: inconsistent lock state", "inconsistent lock state in {fn}").needs(&[Need::Text("takes"), Need::LockSite]),
    warning(Lockdep, "^WARNING: suspicious RCU usage", "WARNING: suspicious RCU usage in {fn}").needs(&[Need::Source]).steps(STACK).skip(RCU_SKIP),
    warning(Lockdep, "^INFO: suspicious RCU usage", "INFO: suspicious RCU usage in {fn}").needs(&[Need::Source]).steps(STACK).skip(RCU_SKIP),
    warning(Lockdep, "^INFO: suspicious rcu_dereference", "INFO: suspicious RCU usage in {fn}").steps(STACK).skip(RCU_SKIP),
    warning(Lockdep, "^INFO: trying to register non-static key", "INFO: trying to register non-static key in {fn}").steps(STACK).skip(&["*stack*", "*lock*", "*IRQ*"]),
    warning(Lockdep, "^WARNING: bad unlock balance detected", "WARNING: bad unlock balance in {fn}").steps(UNLOCKED),
    warning(Lockdep, "^BUG: bad unlock balance detected", "BUG: bad unlock balance in {fn}").steps(UNLOCKED),
    warning(Lockdep, "^WARNING: bad contention", "WARNING: bad contention in {fn}").steps(STACK),
    warning(Lockdep, "^BUG: bad contention", "BUG: bad contention in {fn}").steps(STACK),
    warning(Lockdep, "^WARNING: held lock freed", "WARNING: held lock freed in {fn}").needs(&[Need::LockSite]),
    warning(Lockdep, "^BUG: held lock freed", "BUG: held lock freed in {fn}").needs(&[Need::Address]),
    warning(Lockdep, "^WARNING: lock held when returning to user space", "WARNING: lock held when returning to user space in {fn}").needs(&[Need::Text("leaving the kernel with locks still held"), Need::LockSite]).without_stack(),
    warning(Lockdep, "^BUG: lock held when returning to user space", "BUG: lock held when returning to user space in {fn}").needs(&[Need::Text("leaving the kernel with locks still held"), Need::LockSite]).without_stack(),
    warning(Lockdep, "^WARNING: {} still has locks held", "WARNING: still has locks held in {fn}").needs(&[Need::LockSite]),
    warning(Lockdep, "^BUG: {} still has locks held", "BUG: still has locks held in {fn}").needs(&[Need::Address]),
    warning(Lockdep, "^WARNING: Nested lock was not taken", "WARNING: nested lock was not taken in {fn}").steps(TRAP).or_steps(&[STACK]),
    warning(Lockdep, "^WARNING: Invalid wait context", "WARNING: locking bug in {fn}").steps(STACK).skip(SOCK_SKIP),
    warning(Lockdep, "^BUG: Invalid wait context", "WARNING: locking bug in {fn}").steps(STACK).skip(SOCK_SKIP),
    warning(Lockdep, "^BUG: MAX_{} too low!", "BUG: MAX_{0} too low!").role(Line),
    warning(Lockdep, "^BUG: workqueue leaked lock or atomic", "BUG: workqueue leaked lock or atomic in {fn}").needs(&[Need::Name("last function: ")]).without_stack(),
    warning(AtomicSleep, "^BUG: sleeping function called from invalid context at ", "BUG: sleeping function called from invalid context in {fn}").steps(STACK).skip(SLEEP_SKIP),
    warning(AtomicSleep, "^BUG: scheduling while atomic", "BUG: scheduling while atomic in {fn}").steps(STACK).skip(&["*schedule*", "msleep*", "usleep*", "ssleep"]),
    warning(AtomicSleep, "^BUG: using {} in preemptible", "BUG: using {0} in preemptible code in {fn}").steps(STACK).skip(PREEMPT_SKIP),
    fatal(Lockdep, "^BUG: {}lock {} on CPU#", "BUG: {0}lock {1} in {fn}").steps(STACK).skip(&["*spin_*", "*_lock*", "*_unlock*"]),

    // Hangs.
    error(SoftLockup, "BUG: soft lockup", "BUG: soft lockup in {fn}").steps(COUNTER).choice(Operation).alike(STALL),
    error(HardLockup, "^Watchdog detected hard LOCKUP on cpu", "hard lockup in {fn}").steps(COUNTER).choice(Operation).alike(STALL),
    error(HardLockup, "^NMI watchdog: Watchdog detected hard LOCKUP", "hard lockup in {fn}").steps(COUNTER).choice(Operation).alike(STALL),
    error(RcuStall, "^INFO: rcu_{} self-detected stall", "INFO: rcu detected stall in {fn}").steps(STALLED).or_steps(&[STALLED_FRAMES, COUNTER]).skip(&["*apic_timer_interrupt*", "*rcu*"]).choice(Operation).alike(STALL),
    error(RcuStall, "^INFO: rcu_{} detected stall", "INFO: rcu detected stall in {fn}").steps(STALLED).or_steps(&[STALLED_FRAMES]).skip(&["*apic_timer_interrupt*", "*rcu*"]).choice(Operation).alike(STALL),
    error(RcuStall, "^INFO: rcu_{} detected expedited stall", "INFO: rcu detected stall in {fn}").steps(STALLED).or_steps(&[STALLED_FRAMES]).skip(&["*apic_timer_interrupt*", "*rcu*"]).choice(Operation).alike(STALL),
    error(HungTask, "^INFO: task {} blocked for more than ", "INFO: task hung in {fn}").steps(STACK).choice(Waiter).alike(HANG),
    error(HungTask, "^INFO: task {} blocked in I/O wait for more than ", "INFO: task hung in {fn}").steps(STACK).choice(Waiter).alike(HANG),
    error(HungTask, "^INFO: task {} can't die for more than ", "INFO: task can't die in {fn}").steps(STACK).skip(&["*schedule*"]).alike(HANG),
    error(WorkqueueStall, "^BUG: workqueue lockup", "BUG: workqueue lockup").role(Line),
    error(HungTask, "^unregister_netdevice: waiting for {} to become free", "unregister_netdevice: waiting for DEV to become free").role(Line),
    error(HungTask, "^NETDEV WATCHDOG: ", "NETDEV WATCHDOG: transmit queue timed out").role(Sentence),

    // WARN(). The file name shows which check it was; kernels from 6.18 on print it first.
    warn(DebugObjects, "^WARNING: {}lib/debugobjects.c", "WARNING: ODEBUG bug in {fn}").skip(ODEBUG_SKIP),
    warn(MemoryCorruption, "^WARNING: {}mm/usercopy.c", "WARNING: bad usercopy in {fn}").skip(&["*usercopy*", "*__check*"]),
    warn(Warning, "^WARNING: {}lib/kobject.c", "WARNING: kobject bug in {fn}"),
    warn(Warning, "^WARNING: {}fs/proc/generic.c", "WARNING: proc registration bug in {fn}").skip(&["*proc_*"]),
    warn(Refcount, "^WARNING: {}lib/refcount.c", "WARNING: refcount bug in {fn}").skip(&["refcount*", "__refcount*"]),
    warn(Lockdep, "^WARNING: {}kernel/locking/lockdep.c{}lock_", "WARNING: locking bug in {fn}").skip(SOCK_SKIP),
    warn(Warning, "^WARNING: {}mm/{}.c{} kmalloc", "WARNING: kmalloc bug in {fn}").skip(KMALLOC_SKIP),
    warn(Warning, "^WARNING: {}mm/{}.c{} kvmalloc", "WARNING: kmalloc bug in {fn}").skip(KMALLOC_SKIP),
    warn(Warning, "^WARNING: {}mm/{}.c{} vmalloc", "WARNING: kmalloc bug in {fn}").skip(KMALLOC_SKIP),
    warn(Warning, "^WARNING: {}mm/vmalloc.c{}__vmalloc_node", "WARNING: zero-size vmalloc in {fn}"),
    warn(Warning, "^WARNING: {} usb_submit_urb", "WARNING in {fn}/usb_submit_urb").skip(USB_SKIP),
    warn(Warning, "^WARNING: CPU: {} at {}:{} {fn}", "WARNING in {fn}"),
    warn(Warning, "^WARNING: {}.{}:{} at {fn}, CPU#", "WARNING in {fn}"),
    warn(Warning, "^WARNING: {}.{}:{} at {fn}+0x", "WARNING in {fn}"),
    warn(Warning, "^WARNING: at {}:{} {fn}", "WARNING in {fn}"),
    warning(Warning, "^WARNING: kernel stack regs at {} has bad 'bp' value", "WARNING: kernel stack regs has bad 'bp' value").role(Line),
    warning(Warning, "^WARNING: kernel stack regs at {} has bad value", "WARNING: kernel stack regs has bad value").role(Line),
    warning(Warning, "^WARNING: kernel stack frame pointer at {} has bad value", "WARNING: kernel stack frame pointer has bad value").role(Line),

    // Memory.
    error(MemoryLeak, "BUG: memory leak", "memory leak in {fn}").steps(&[Step::Line(&["backtrace:", "backtrace (crc "]), Step::Frames]).skip(LEAK_SKIP),
    warning(MemoryLeak, "^kmemleak: {} new suspected memory leak", "kmemleak: new suspected memory leaks").role(Line),
    warning(OutOfMemory, "^{} invoked oom-killer: ", "out of memory").role(Minor).without_stack(),
    warning(OutOfMemory, "^Memory cgroup out of memory: Killed process", "out of memory: memory cgroup").role(Continues).without_stack(),
    warning(OutOfMemory, "^Out of memory: Killed process", "out of memory").role(Continues).without_stack(),
    warning(OutOfMemory, "^Out of memory: Kill process", "out of memory").role(Continues).without_stack(),

    // A fuzzer that failed. Its own messages are not the kernel's, so they count only in logs without stamps.
    error(FuzzerFailure, "SYZFAIL: {}", "SYZFAIL: {0}").role(Line),
    error(FuzzerFailure, "SYZFATAL: {}", "SYZFATAL: {0}").alike("SYZFATAL").role(Line),

    // Anything else with these words.
    unknown(Bug, "^BUG: {}", "BUG: {0}").role(Line),
    unknown(Warning, "^WARNING: {}", "WARNING: {0}"),
    unknown(Warning, "^INFO: {}", "INFO: {0}"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signatures;

    #[test]
    fn each_line_that_matters_has_a_word_of_the_front() {
        let boots = signatures::ORDERLY.iter().chain([&signatures::BANNER]).copied();
        for pattern in SIGNATURES.iter().map(|signature| signature.heading).chain(boots) {
            let mut literals =
                pattern.trim_start_matches('^').split('{').map(|part| part.split_once('}').map_or(part, |it| it.1));
            assert!(literals.any(|literal| FRONT.iter().any(|word| literal.contains(word))), "{pattern}");
        }
    }
}

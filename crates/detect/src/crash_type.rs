//! The type of a crash, with the names that fuzzers and dashboards of kernel crashes use.
//!
//! [`Kind`](crate::Kind) says which code of the kernel made the report. The type says what the defect allows: a read or
//! a write, of freed memory or out of bounds, a hang, a leak. It follows from the title, because the title has all of it.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! crash_types {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What a defect allows, or does to the machine.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum CrashType {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl CrashType {
            /// The name, as in `KASAN-USE-AFTER-FREE-READ`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

crash_types! {
    /// None of the others.
    #[default]
    Unknown = "UNKNOWN",
    /// Code that must not sleep sleeps.
    AtomicSleep = "ATOMIC_SLEEP",
    /// `BUG()`.
    Bug = "BUG",
    /// The machine stops: an oops, a panic, a trap.
    DenialOfService = "DoS",
    /// A task or CPU makes no progress.
    Hang = "HANG",
    /// Memory is freed twice, or was never allocated.
    KasanInvalidFree = "KASAN-INVALID-FREE",
    /// A read through a null pointer.
    KasanNullRead = "KASAN-NULL-POINTER-DEREFERENCE-READ",
    /// A write through a null pointer.
    KasanNullWrite = "KASAN-NULL-POINTER-DEREFERENCE-WRITE",
    /// A read outside of an object.
    KasanRead = "KASAN-READ",
    /// A report of KASAN whose access is not known.
    KasanUnknown = "KASAN-UNKNOWN",
    /// A read of freed memory.
    KasanUseAfterFreeRead = "KASAN-USE-AFTER-FREE-READ",
    /// A write to freed memory.
    KasanUseAfterFreeWrite = "KASAN-USE-AFTER-FREE-WRITE",
    /// A write outside of an object.
    KasanWrite = "KASAN-WRITE",
    /// An assertion of KCSAN.
    KcsanAssert = "KCSAN-ASSERT",
    /// Two tasks access the same data, and one of them writes.
    KcsanDataRace = "KCSAN-DATARACE",
    /// Another report of KCSAN.
    KcsanUnknown = "KCSAN-UNKNOWN",
    /// KFENCE: memory is freed twice, or was never allocated.
    KfenceInvalidFree = "KFENCE-INVALID-FREE",
    /// KFENCE: the bytes around an object have changed.
    KfenceMemoryCorruption = "KFENCE-MEMORY-CORRUPTION",
    /// KFENCE: a read outside of an object.
    KfenceRead = "KFENCE-READ",
    /// Another report of KFENCE.
    KfenceUnknown = "KFENCE-UNKNOWN",
    /// KFENCE: a read of freed memory.
    KfenceUseAfterFreeRead = "KFENCE-USE-AFTER-FREE-READ",
    /// KFENCE: a write to freed memory.
    KfenceUseAfterFreeWrite = "KFENCE-USE-AFTER-FREE-WRITE",
    /// KFENCE: a write outside of an object.
    KfenceWrite = "KFENCE-WRITE",
    /// Uninitialised memory of the kernel reaches user space.
    KmsanInfoLeak = "KMSAN-INFO-LEAK",
    /// A decision depends on uninitialised memory.
    KmsanUninitValue = "KMSAN-UNINIT-VALUE",
    /// Another report of KMSAN.
    KmsanUnknown = "KMSAN-UNKNOWN",
    /// KMSAN: a read of freed memory.
    KmsanUseAfterFreeRead = "KMSAN-USE-AFTER-FREE-READ",
    /// Memory that nothing points to.
    Leak = "LEAK",
    /// Locks are taken, held or freed against the rules.
    Lockdep = "LOCKDEP",
    /// Memory is invalid, found without a sanitizer.
    MemorySafetyBug = "MEMORY_SAFETY_BUG",
    /// UBSAN: an index outside of its array.
    MemorySafetyUbsan = "MEMORY_SAFETY_UBSAN",
    /// Access through a null pointer.
    NullPointerDereference = "NULL-POINTER-DEREFERENCE",
    /// A reference count overflowed or underflowed.
    RefcountWarning = "REFCOUNT_WARNING",
    /// The kernel booted again and no restart was requested.
    Reboot = "REBOOT",
    /// The fuzzer in the guest failed, not the kernel.
    FuzzerFailure = "SYZ_FAILURE",
    /// Undefined behaviour.
    Ubsan = "UBSAN",
    /// `WARN()`.
    Warning = "WARNING",
}

impl fmt::Display for CrashType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl CrashType {
    /// The type of a finding with this title.
    pub(crate) fn of_title(title: &str) -> Self {
        if let Some(report) = title.strip_prefix("KASAN: ") {
            return kasan(report);
        }
        if let Some(report) = title.strip_prefix("KFENCE: ") {
            return kfence(report);
        }
        BY_START.iter().find(|(start, _)| title.starts_with(start)).map_or(Self::Unknown, |(_, crash_type)| *crash_type)
    }
}

/// `slab-use-after-free Read in f`: the error, then the access if it is known.
fn kasan(report: &str) -> CrashType {
    let mut words = report.split(' ');
    let error = words.next().unwrap_or("");
    let access = words.next().filter(|word| ["Read", "Write"].contains(word));
    match (error, access) {
        ("invalid-free" | "double-free", None) => CrashType::KasanInvalidFree,
        ("null-ptr-deref", Some("Read")) => CrashType::KasanNullRead,
        ("null-ptr-deref", Some(_)) => CrashType::KasanNullWrite,
        // An access that is not known is at least a read.
        ("use-after-free", None) | ("use-after-free" | "slab-use-after-free", Some("Read")) => {
            CrashType::KasanUseAfterFreeRead
        }
        ("use-after-free" | "slab-use-after-free", Some(_)) => CrashType::KasanUseAfterFreeWrite,
        ("slab-out-of-bounds" | "stack-out-of-bounds" | "wild-memory-access", None) => CrashType::KasanRead,
        ("invalid-access" | "unknown-crash", Some("Write")) => CrashType::KasanUnknown,
        (_, Some("Read")) => CrashType::KasanRead,
        (_, Some(_)) => CrashType::KasanWrite,
        _ => CrashType::KasanUnknown,
    }
}

fn kfence(report: &str) -> CrashType {
    let is = |start: &str| report.starts_with(start);
    match () {
        () if is("use-after-free write") => CrashType::KfenceUseAfterFreeWrite,
        () if is("use-after-free") => CrashType::KfenceUseAfterFreeRead,
        () if is("invalid write") || is("out-of-bounds write") => CrashType::KfenceWrite,
        () if is("invalid read") || is("out-of-bounds") => CrashType::KfenceRead,
        () if is("memory corruption") => CrashType::KfenceMemoryCorruption,
        () if is("invalid free") => CrashType::KfenceInvalidFree,
        () => CrashType::KfenceUnknown,
    }
}

/// The types of other titles, by how the title starts. The first that fits counts.
#[rustfmt::skip]
const BY_START: &[(&str, CrashType)] = &[
    ("KMSAN: uninit-value", CrashType::KmsanUninitValue),
    ("KMSAN: kernel-infoleak-after-free", CrashType::KmsanUseAfterFreeRead),
    ("KMSAN: kernel-usb-infoleak-after-free", CrashType::KmsanUseAfterFreeRead),
    ("KMSAN: use-after-free", CrashType::KmsanUseAfterFreeRead),
    ("KMSAN: kernel-infoleak", CrashType::KmsanInfoLeak),
    ("KMSAN: kernel-usb-infoleak", CrashType::KmsanInfoLeak),
    ("KMSAN: ", CrashType::KmsanUnknown),
    ("KCSAN: data-race", CrashType::KcsanDataRace),
    ("KCSAN: assert: race in", CrashType::KcsanAssert),
    ("KCSAN: ", CrashType::KcsanUnknown),
    ("UBSAN: array-index-out-of-bounds", CrashType::MemorySafetyUbsan),
    ("UBSAN: ", CrashType::Ubsan),

    ("BUG: unable to handle kernel NULL pointer dereference in", CrashType::NullPointerDereference),
    ("BUG: unable to handle kernel paging request", CrashType::MemorySafetyBug),
    ("BUG: corrupted list", CrashType::MemorySafetyBug),
    ("BUG: bad unlock balance in", CrashType::Lockdep),
    ("BUG: held lock freed in", CrashType::Lockdep),
    ("BUG: rwlock", CrashType::Lockdep),
    ("BUG: spinlock", CrashType::Lockdep),
    ("BUG: still has locks held in", CrashType::Lockdep),
    ("BUG: using", CrashType::Lockdep),
    ("BUG: scheduling while atomic in", CrashType::AtomicSleep),
    ("BUG: sleeping function called from invalid context in", CrashType::AtomicSleep),
    ("BUG: bad usercopy in", CrashType::Bug),
    ("BUG: soft lockup in", CrashType::Hang),
    ("BUG: Object already free", CrashType::DenialOfService),
    ("kernel BUG", CrashType::Bug),

    ("WARNING in", CrashType::Warning),
    ("WARNING: refcount bug", CrashType::RefcountWarning),
    ("WARNING: bad unlock balance in", CrashType::Lockdep),
    ("WARNING: held lock freed in", CrashType::Lockdep),
    ("WARNING: lock held", CrashType::Lockdep),
    ("WARNING: locking bug in", CrashType::Lockdep),
    ("WARNING: nested lock was not taken in", CrashType::Lockdep),
    ("WARNING: still has locks held in", CrashType::Lockdep),
    ("WARNING: suspicious RCU usage in", CrashType::Lockdep),
    // These are messages, and not made by WARN().
    ("WARNING: corrupted", CrashType::Unknown),
    ("WARNING: kernel stack frame pointer has bad value", CrashType::Unknown),
    ("WARNING: kernel stack regs has bad", CrashType::Unknown),
    ("WARNING:", CrashType::Warning),

    ("possible deadlock in", CrashType::Lockdep),
    ("inconsistent lock state in", CrashType::Lockdep),
    ("INFO: rcu detected stall in", CrashType::Hang),
    ("INFO: task hung in", CrashType::Hang),
    ("INFO: task can't die in", CrashType::Hang),
    ("hard lockup in", CrashType::Hang),
    ("memory leak in", CrashType::Leak),
    ("kmemleak: ", CrashType::Leak),

    ("general protection fault in", CrashType::DenialOfService),
    ("kernel panic:", CrashType::DenialOfService),
    ("kernel stack overflow", CrashType::DenialOfService),
    ("panic:", CrashType::DenialOfService),
    ("PANIC: double fault", CrashType::DenialOfService),
    ("divide error in", CrashType::DenialOfService),
    ("invalid opcode in", CrashType::DenialOfService),
    ("int3 in", CrashType::DenialOfService),
    ("stack segment fault in", CrashType::DenialOfService),
    ("Alignment trap in", CrashType::DenialOfService),
    ("Internal error in", CrashType::DenialOfService),
    ("Unhandled fault in", CrashType::DenialOfService),
    ("Oops in", CrashType::DenialOfService),
    ("VFS: Busy inodes after unmount", CrashType::DenialOfService),
    ("VFS: Close: file count is zero", CrashType::DenialOfService),
    ("unregister_netdevice: waiting for DEV to become free", CrashType::DenialOfService),
    ("trusty: ", CrashType::DenialOfService),
    ("out of memory", CrashType::DenialOfService),
    ("unexpected reboot", CrashType::Reboot),
    ("SYZFAIL", CrashType::FuzzerFailure),
    ("SYZFATAL:", CrashType::FuzzerFailure),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_follows_from_the_title() {
        for (title, name) in [
            ("KASAN: slab-use-after-free Read in f", "KASAN-USE-AFTER-FREE-READ"),
            ("KASAN: use-after-free in f", "KASAN-USE-AFTER-FREE-READ"),
            ("KASAN: slab-out-of-bounds in f at addr ADDR", "KASAN-READ"),
            ("KASAN: vmalloc-out-of-bounds Write in f", "KASAN-WRITE"),
            ("KASAN: null-ptr-deref Write in f", "KASAN-NULL-POINTER-DEREFERENCE-WRITE"),
            ("KASAN: invalid-free in f", "KASAN-INVALID-FREE"),
            ("KFENCE: out-of-bounds write in f", "KFENCE-WRITE"),
            ("KMSAN: kernel-infoleak-after-free in f", "KMSAN-USE-AFTER-FREE-READ"),
            ("UBSAN: shift-out-of-bounds in f", "UBSAN"),
            ("WARNING: foo", "WARNING"),
            ("WARNING: suspicious RCU usage", "WARNING"),
            ("WARNING: suspicious RCU usage in f", "LOCKDEP"),
            ("INFO: trying to register non-static key in f", "UNKNOWN"),
        ] {
            assert_eq!(CrashType::of_title(title).to_string(), name, "{title}");
        }
    }
}

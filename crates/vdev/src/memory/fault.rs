//! Files that become shorter while they are mapped.
//!
//! Memory that a peer shares is a file, and the peer may truncate it at any time. An access beyond the new end raises `SIGBUS`,
//! which kills a process. No check before an access can prevent that: the peer may truncate the file after the check. So the
//! access is made, and the signal is handled. While a mapping has a [`Guard`], a fault in it maps zeros there, from that page
//! to the mapping's end, and sets a flag. The access is then repeated and reads zeros. Code that uses the memory looks at the
//! flag after its reads, and stops trusting the memory. A fault at any other address kills the process, as without a handler.
//!
//! The zeros reach to the end of the mapping, because all behind a cut is gone too. So a guarded mapping is at most two of
//! the kernel's: the part before the lowest fault, and the zeros. Zeros for single pages would let a peer use up the number of
//! mappings that the kernel allows a process.
//!
//! # Why the handler may do this
//! It runs in the middle of any code of this process, so it may take no lock and allocate nothing: the interrupted thread
//! may hold that lock. It reads a static array of atomics and calls `mmap`, which on Linux is a plain system call.
//!
//! Slots change while handlers read them. The sequence of a slot is odd during a change and different after it, so a handler
//! never combines the start of one mapping with the end of another; it takes such a slot as not matching. That is right: a slot
//! that is being changed belongs to a mapping that no thread may touch yet, or any more. The slot of a mapping that
//! faulted cannot change, because the faulting thread holds a reference to the mapping, whose guard lives as long as it does.
//! For the same reason `MAP_FIXED` replaces only our own mapping: it is not unmapped while the thread waits in its access.
//!
//! Two threads may fault in the same mapping at once. Both map zeros, the second time over the first. A write of the first
//! thread to those zeros may be lost. That is harmless, since the flag is set, and no data of such a memory is used.
#![expect(unsafe_code, reason = "a signal handler, and the one system call it makes")]

use std::mem::MaybeUninit;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

/// Mappings that can be guarded at once; more are mapped without a guard.
const GUARDS_MAX: usize = 4096;

/// What is known of one mapping. Its sequence is odd while the rest is being changed.
struct Slot {
    is_taken: AtomicBool,
    sequence: AtomicUsize,
    /// 0: none.
    start: AtomicUsize,
    end: AtomicUsize,
    page_bytes: AtomicUsize,
    is_cut: AtomicBool,
}

static SLOTS: [Slot; GUARDS_MAX] = [const {
    Slot {
        is_taken: AtomicBool::new(false),
        sequence: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        page_bytes: AtomicUsize::new(0),
        is_cut: AtomicBool::new(false),
    }
}; GUARDS_MAX];

/// While it lives, a fault in its mapping does not kill the process. It must be dropped before the mapping is unmapped.
#[derive(Debug)]
pub(super) struct Guard(Option<usize>);

impl Guard {
    /// Guards the mapping of so many bytes at this address, in pages of this size.
    pub(super) fn new(start: usize, bytes: usize, page_bytes: usize) -> Self {
        install();
        let free = |slot: &Slot| !slot.is_taken.swap(true, Ordering::Acquire);
        let Some(index) = SLOTS.iter().position(free) else { return Self(None) };
        let slot = &SLOTS[index];
        slot.is_cut.store(false, Ordering::Relaxed);
        slot.set(start, start + bytes.next_multiple_of(page_bytes), page_bytes);
        Self(Some(index))
    }

    /// Whether there was a fault.
    #[inline]
    pub(super) fn is_cut(&self) -> bool {
        self.0.is_some_and(|index| SLOTS[index].is_cut.load(Ordering::Acquire))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(index) = self.0 {
            SLOTS[index].set(0, 0, 0);
            SLOTS[index].is_taken.store(false, Ordering::Release);
        }
    }
}

impl Slot {
    /// Changes the slot. Only its owner may call this, see `is_taken`.
    ///
    /// The sequence is a lock that readers never wait for, which a handler could not do: the writer may be the very
    /// thread that it interrupted. The Release fence keeps the odd sequence before the fields, and the Release store
    /// at the end keeps the even one after them. In [`find`](Self::find) the Acquire load keeps the fields after the
    /// first look at the sequence, and the Acquire fence keeps them before the second one. So a reader that has loaded
    /// one new field finds, at its second look, at least the odd sequence, and rejects the slot. A handler that
    /// interrupts the writer itself sees the stores in program order, which is the same case.
    fn set(&self, start: usize, end: usize, page_bytes: usize) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.page_bytes.store(page_bytes, Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// The page of this address and the end of the mapping, if the address is in the slot's mapping. A slot that is being
    /// changed does not match: a thread that touches a mapping keeps it, and its guard, alive.
    fn find(&self, address: usize) -> Option<(usize, usize, usize)> {
        let sequence = self.sequence.load(Ordering::Acquire);
        let [start, end, page_bytes] =
            [&self.start, &self.end, &self.page_bytes].map(|number| number.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let is_whole = sequence.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == sequence;
        let is_here = is_whole && start != 0 && address >= start && address < end;
        is_here.then(|| (address & !(page_bytes - 1), end, page_bytes))
    }
}

/// Installs the handler, once for the process. It is never removed: mappings come and go, and to remove it would race
/// with a fault in another one.
///
/// It runs on the alternate stack if the thread has one (`SA_ONSTACK`). The standard library gives one to each of its
/// threads, since its own handler reports overflows of the stack. That handler was installed for `SIGBUS` too, and is
/// replaced here. Nothing is lost: Linux reports an access to a guard page of the stack as `SIGSEGV`, and any other
/// `SIGBUS` ends the process with either handler.
fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all zeros is a valid `sigaction`; every field that matters is set before it is used. The handler
        // calls only what a signal handler may: atomics, `mmap`, `signal`.
        unsafe {
            let action = action.assume_init_mut();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, action, std::ptr::null_mut());
        }
    });
}

extern "C" fn on_fault(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with `SA_SIGINFO` the kernel passes a valid `siginfo_t`, which has an address for this signal.
    let address = unsafe { (*info).si_addr() } as usize;
    let found = SLOTS.iter().find_map(|slot| slot.find(address).map(|place| (slot, place)));
    if let Some((slot, (page, end, page_bytes))) = found {
        // Before the zeros are there: a thread that reads them finds the flag set when it looks after its read.
        slot.is_cut.store(true, Ordering::Release);
        // If the process has no room for a new mapping of all of it, a page is enough to go on.
        if put_zeros(page, end - page) || put_zeros(page, page_bytes) {
            return;
        }
    }
    // Not ours, or no memory: the access is made again and ends the process, as it does without a handler.
    // SAFETY: resets a signal to its default.
    unsafe {
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
    }
}

fn put_zeros(page: usize, bytes: usize) -> bool {
    // SAFETY: the bytes lie in a mapping of ours that is guarded, so it is alive; they are replaced by zeros, which any
    // access may read and write as before.
    let mapped = unsafe {
        libc::mmap(
            page as *mut libc::c_void,
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}

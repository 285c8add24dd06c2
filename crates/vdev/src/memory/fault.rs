//! Files that become shorter while they are mapped.
//!
//! Memory that a peer shares is a file, and the peer may cut it short at any time; touching what was cut is `SIGBUS`, which
//! ends a process. Here it ends nobody: while a mapping has a [`Guard`], a fault in it puts zeros there, from that page to the
//! mapping's end, and is remembered, so that whoever works on that memory finds out and stops believing it. A fault anywhere
//! else does what it always did.
//!
//! All to the end, because what lies behind a cut is gone too: however a peer cuts, and wherever it makes us look, there are
//! never more mappings than a few, of which a process may have only so many.
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

/// While it lives, a fault in its mapping ends nobody. It must end before the mapping does.
#[derive(Debug)]
pub struct Guard(Option<usize>);

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
    pub fn is_cut(&self) -> bool {
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
    /// Only whoever has taken the slot does this.
    fn set(&self, start: usize, end: usize, page_bytes: usize) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.page_bytes.store(page_bytes, Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// The page of this address and the end of the mapping, where it lies in the slot's. One that is being changed is not
    /// it: whoever touches a mapping keeps it, and its guard, alive.
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

/// Installs the handler, once for the process.
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
        slot.is_cut.store(true, Ordering::Release);
        // Where the system has no room for all of it, a page will do.
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

//! Files that become shorter while they are mapped.
//!
//! Memory that a peer shares is a file, and the peer may cut it short at any time; touching what was cut is `SIGBUS`, which
//! ends a process. Here it ends nobody: while a mapping has a [`Guard`], a fault in it puts a page of zeros there and is
//! remembered, so that whoever works on that memory finds out and stops believing it. A fault anywhere else does what it
//! always did.
#![expect(unsafe_code, reason = "a signal handler, and the one system call it makes")]

use std::mem::MaybeUninit;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Mappings that can be guarded at once; more are mapped without a guard.
const GUARDS_MAX: usize = 4096;
const PAGE_BYTES: usize = 4096;

struct Slot {
    /// 0: free; 1: taken, its bounds are not there yet.
    start: AtomicUsize,
    end: AtomicUsize,
    is_cut: AtomicBool,
}

static SLOTS: [Slot; GUARDS_MAX] =
    [const { Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0), is_cut: AtomicBool::new(false) } };
        GUARDS_MAX];

/// While it lives, a fault in its mapping ends nobody.
#[derive(Debug)]
pub struct Guard(Option<usize>);

impl Guard {
    /// Guards the mapping of so many bytes at this address.
    pub(super) fn new(start: usize, bytes: usize) -> Self {
        install();
        let free = |slot: &Slot| slot.start.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let Some(index) = SLOTS.iter().position(free) else { return Self(None) };
        let slot = &SLOTS[index];
        slot.is_cut.store(false, Ordering::Relaxed);
        slot.end.store(start + bytes, Ordering::Relaxed);
        slot.start.store(start, Ordering::Release);
        Self(Some(index))
    }

    /// Whether there was a fault.
    pub fn is_cut(&self) -> bool {
        self.0.is_some_and(|index| SLOTS[index].is_cut.load(Ordering::Acquire))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(index) = self.0 {
            SLOTS[index].start.store(0, Ordering::Release);
        }
    }
}

/// Installs the handler, once for the process.
fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all zeros is a valid `sigaction`; every field that matters is set before it is used. The handler
        // calls only what a signal handler may: atomics, `mmap`, `sigaction`.
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
    let here = |slot: &&Slot| {
        let start = slot.start.load(Ordering::Acquire);
        start > 1 && address >= start && address < slot.end.load(Ordering::Relaxed)
    };
    if let Some(slot) = SLOTS.iter().find(here) {
        slot.is_cut.store(true, Ordering::Release);
        let page = address & !(PAGE_BYTES - 1);
        // SAFETY: the page lies in a mapping of ours that is guarded, so it is alive; it is replaced by one of zeros,
        // which any access may read and write as before.
        let mapped = unsafe {
            libc::mmap(
                page as *mut libc::c_void,
                PAGE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if mapped != libc::MAP_FAILED {
            return;
        }
    }
    // Not ours, or no memory: the access is made again and ends the process, as it does without a handler.
    // SAFETY: resets a signal to its default.
    unsafe {
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
    }
}

//! Gets a thread out of a system call that a peer has it wait in.
//!
//! A peer that shares an eventfd or a pipe with a worker takes `O_NONBLOCK` off it at any time, and there is no way to write
//! to an eventfd that never waits. The thread that waits for the worker interrupts it: the call returns `EINTR`, and the
//! worker sees its commands.
#![expect(unsafe_code, reason = "a signal handler that does nothing, and sending its signal to one thread")]

use std::mem::MaybeUninit;
use std::os::unix::thread::JoinHandleExt as _;
use std::sync::Once;
use std::thread::JoinHandle;

/// What a thread is interrupted with. It is ignored by default, so one that comes from elsewhere never did anything.
const SIGNAL: libc::c_int = libc::SIGURG;

/// Interrupts a thread, if it waits for the system.
pub(super) fn interrupt<T>(thread: &JoinHandle<T>) {
    install();
    // SAFETY: the thread was not joined, as its handle is here, so its id is its own.
    unsafe {
        // One that has ended needs not be interrupted.
        libc::pthread_kill(thread.as_pthread_t(), SIGNAL);
    }
}

/// Installs the handler, once for the process: a signal without one interrupts nothing.
fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all zeros is a valid `sigaction`, and one without `SA_RESTART`; the handler does nothing at all.
        unsafe {
            let action = action.assume_init_mut();
            action.sa_sigaction = on_signal as *const () as usize;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(SIGNAL, action, std::ptr::null_mut());
        }
    });
}

extern "C" fn on_signal(_signal: libc::c_int) {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::Event;
    use std::time::{Duration, Instant};

    #[test]
    fn a_thread_that_a_peer_has_wait_comes_back() {
        let event = Event::new().expect("an event");
        rustix::fs::fcntl_setfl(&event, rustix::fs::OFlags::RDWR).expect("is set");
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).expect("fits");
        let thread = std::thread::spawn(move || event.signal_watched());
        let deadline = Instant::now() + Duration::from_secs(10);
        // It may not wait yet when it is interrupted first.
        while !thread.is_finished() && Instant::now() < deadline {
            interrupt(&thread);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(thread.is_finished());
        thread.join().expect("no panic").expect("was told already");
    }
}

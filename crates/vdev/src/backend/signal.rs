//! SIGTERM and SIGINT as something that can be waited for ("Backend program conventions": SIGTERM ends a backend).
#![expect(unsafe_code, reason = "two system calls that have no safe wrapper here")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd as _, OwnedFd};

use crate::socket::Event;

/// An event that is signalled when the process gets a signal to end. From then on these signals do nothing else, in
/// threads that are started later; so this comes first in `main`.
///
/// # Errors
/// If the process has no descriptors left.
pub fn stop_on_signals() -> io::Result<Event> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by `sigemptyset` before it is used; the descriptor that `signalfd` returns is new
    // and of no other thread.
    let fd = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
        let error = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    Event::from_peer(fd)
}

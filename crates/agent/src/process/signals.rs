//! The agent's signals. They are read from a descriptor and no handler is installed, so commands inherit only a mask,
//! which the child clears.
#![expect(unsafe_code, reason = "signal masks and signalfd are only reachable through libc")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd as _, OwnedFd};

use rustix::io::Errno;

use crate::watched::{Watched, watch_reading};

/// One more than the last classic signal.
const SIGNALS: i32 = 32;

/// The meaning of a signal for the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A child has exited.
    Child,
    /// The machine or the service must stop.
    Stop,
}

/// Signals as a stream.
#[derive(Debug)]
pub struct Signals {
    descriptor: Watched,
}

/// Blocks the signals that [`Signals`] reads, and SIGPIPE. Call it before there is a second thread.
pub fn block() {
    let set = handled();
    // SAFETY: `set` is an initialised signal set, and the old one is not requested.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    // Ignored signals stay ignored after execve. A parent may have ignored some, and the standard library ignores
    // SIGPIPE.
    for signal in 1..SIGNALS {
        // SAFETY: reads the disposition of one signal; the struct is plain data that the call fills.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &raw mut action);
            if action.sa_sigaction == libc::SIG_IGN {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

fn handled() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, and the signals are valid numbers.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        let mut set = set.assume_init();
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGPWR, libc::SIGPIPE] {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}

impl Signals {
    /// Opens the descriptor. [`block`] must have been called.
    ///
    /// # Errors
    /// If no descriptor is available.
    pub fn new() -> io::Result<Self> {
        let mut set = handled();
        // SAFETY: `set` is an initialised signal set.
        unsafe { libc::sigdelset(&raw mut set, libc::SIGPIPE) };
        // SAFETY: with -1 the call returns a new descriptor, which nothing else owns.
        let descriptor = unsafe {
            let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self { descriptor: watch_reading(descriptor)? })
    }

    /// Waits for the next signal.
    ///
    /// # Errors
    /// If reading the descriptor fails.
    pub async fn next(&self) -> io::Result<Notice> {
        const NUMBER_BYTES: usize = 4;
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        loop {
            match rustix::io::read(&self.descriptor, &mut info[..]) {
                Ok(_) => {
                    let mut number = [0; NUMBER_BYTES];
                    number.copy_from_slice(&info[..NUMBER_BYTES]);
                    let child = i32::from_ne_bytes(number) == libc::SIGCHLD;
                    return Ok(if child { Notice::Child } else { Notice::Stop });
                }
                Err(Errno::AGAIN) => self.descriptor.readable().await?.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

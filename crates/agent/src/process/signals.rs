//! The agent takes its signals from a descriptor and installs no handler, so commands inherit nothing but a mask, which
//! the child clears.
#![expect(unsafe_code, reason = "signal masks and signalfd are only reachable through libc")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd as _, OwnedFd};

use rustix::io::Errno;

use crate::watched::{Watched, watch_reading};

/// One more than the last classic signal.
const SIGNALS: i32 = 32;

/// What the agent is told by signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A child ended.
    Child,
    /// The machine or the service is to stop.
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
    // SAFETY: `set` is a whole signal set, and no old one is asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    // A signal that a parent left ignored, and SIGPIPE that the standard library ignores, would stay so in every command.
    for signal in 1..SIGNALS {
        // SAFETY: asks for the disposition of one signal; both structs are plain data that the call fills or reads.
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
    // SAFETY: sigemptyset makes the set whole, and the signals are valid numbers.
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
    /// Opens the descriptor; [`block`] was called before.
    ///
    /// # Errors
    /// The kernel has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let mut set = handled();
        // SAFETY: `set` is a whole signal set.
        unsafe { libc::sigdelset(&raw mut set, libc::SIGPIPE) };
        // SAFETY: -1 asks for a new descriptor, which nothing else owns.
        let descriptor = unsafe {
            let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self { descriptor: watch_reading(descriptor)? })
    }

    /// The next notice.
    ///
    /// # Errors
    /// The descriptor broke.
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

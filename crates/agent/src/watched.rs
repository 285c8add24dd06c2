//! Descriptors that the runtime watches.
#![expect(unsafe_code, reason = "the runtime requires a promise about descriptors, given here once")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor that is owned and watched.
pub type Watched = AsyncFd<OwnedFd>;

/// Watches a descriptor for reading and writing.
///
/// # Errors
/// If it can't be watched. Plain files can't.
pub fn watch(descriptor: OwnedFd) -> io::Result<Watched> {
    register(descriptor, Interest::READABLE | Interest::WRITABLE)
}

/// Watches a descriptor for reading only.
///
/// # Errors
/// If it can't be watched. Plain files can't.
pub fn watch_reading(descriptor: OwnedFd) -> io::Result<Watched> {
    register(descriptor, Interest::READABLE)
}

/// Watches a descriptor for writing only.
///
/// # Errors
/// If it can't be watched. Plain files can't.
pub fn watch_writing(descriptor: OwnedFd) -> io::Result<Watched> {
    register(descriptor, Interest::WRITABLE)
}

fn register(descriptor: OwnedFd, interest: Interest) -> io::Result<Watched> {
    // SAFETY: an `OwnedFd` returns the same open descriptor as long as it lives, and `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}

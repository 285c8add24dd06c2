//! The loopback interface: a fresh kernel has it down.
#![expect(unsafe_code, reason = "interface flags are only reachable by ioctl")]

use std::io;
use std::os::fd::AsRawFd as _;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::log::note;

/// Brings `lo` up.
pub(super) fn loopback_up() {
    if let Err(error) = up() {
        note(format!("the loopback interface stays down: {error}"));
    }
}

fn up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all-zero bytes are a value of this plain struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *target = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is the struct that this ioctl reads, with a name that ends with zero.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

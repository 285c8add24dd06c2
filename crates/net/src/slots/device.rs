//! The TAP device of a slot: made in the namespace, without an owner, for the engine to open.
#![expect(unsafe_code, reason = "two ioctls of TAP devices have no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

const TUN: &str = "/dev/net/tun";
/// Ethernet frames with virtio's header, which carries the offloads. The engine opens it with the same flags.
const FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Makes a persistent TAP device in the namespace of this thread. It is down, and it fails if the name exists.
pub(super) fn create_tap(name: &str) -> io::Result<()> {
    let tun = attach(name)?;
    // SAFETY: the descriptor is open, and the call takes a number.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether a VMM has the device of this thread's namespace open. A device can be open once, so a second open fails.
pub(super) fn tap_is_open(name: &str) -> io::Result<bool> {
    match attach(name) {
        Ok(_) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(true),
        Err(error) => Err(error),
    }
}

fn attach(name: &str) -> io::Result<File> {
    // SAFETY: all-zero bytes are a value of this plain struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    assert!(name.len() < request.ifr_name.len(), "names of devices are our own");
    for (target, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *target = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = FLAGS.try_into().expect("all of them are small");
    let tun = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN)?;
    // SAFETY: the descriptor is open, and the request is a whole `ifreq` whose name ends with zero.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tun)
}

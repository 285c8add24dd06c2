//! Opening TAP devices for VMMs, which sit in an empty network namespace and could not.
//!
//! ```text
//!   a thread of its own: setns ─▶ is the device there? ─▶ open /dev/net/tun, TUNSETIFF ─▶ descriptor ─▶ the VMM
//! ```
//! A descriptor stays with its device whatever namespace the process that holds it is in. A thread enters the namespace, and
//! ends with it: a thread of the pool that could not leave again would start the next VM in the wrong network.
#![expect(unsafe_code, reason = "two ioctls of TAP devices have no safe wrapper")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::blocking::assert_may_block;
use crate::error::ErrorKind;
use crate::spec::Tap;

/// The kernel's own device for TAP devices.
const TUN: &str = "/dev/net/tun";
/// It takes a moment, but waits for the one lock that each change of any network of the host holds.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// One frame after the other, without a header of the TAP device's own; with virtio's, which carries offloads.
const FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Why a TAP device can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Its network namespace is not there, or this user may not enter it.
    #[error("failed to enter the network namespace `{path}`")]
    Namespace {
        /// Its file.
        path: Utf8PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no device of that name in its namespace.
    #[error("there is no such device")]
    NoDevice,
    /// It is another kind of device, or a TAP device with several queues.
    #[error("it is not a TAP device with one queue")]
    NotTap,
    /// A card of another VM, or another program, has it.
    #[error("something else has it open")]
    Busy,
    /// The kernel lacks the driver.
    #[error("failed to open `{TUN}`")]
    NoTun(#[source] io::Error),
    /// The kernel did not answer.
    #[error("it did not open within {0:?}")]
    Late(Duration),
    /// This user may not have it, or it failed in another way.
    #[error("failed to open it")]
    Io(#[source] io::Error),
}

impl TapError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Namespace { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::NotFound,
            Self::NoDevice => ErrorKind::NotFound,
            Self::NotTap => ErrorKind::Invalid,
            Self::Busy => ErrorKind::Busy,
            Self::NoTun(source) if source.kind() != io::ErrorKind::PermissionDenied => ErrorKind::HostLacks,
            Self::Namespace { source, .. } | Self::NoTun(source) | Self::Io(source) => ErrorKind::of_io(source),
            Self::Late(_) => ErrorKind::Io,
        }
    }
}

/// Opens a TAP device that is there. Never makes one.
pub(crate) fn open(tap: &Tap) -> Result<OwnedFd, TapError> {
    assert_may_block();
    let (sender, receiver) = sync_channel(1);
    let wanted = tap.clone();
    let thread = thread::Builder::new().name("tap".into());
    // It is not joined: one that the kernel holds up ends when that does, and its descriptor with it.
    let started = thread.spawn(move || {
        let opened = wanted.namespace.as_deref().map_or(Ok(()), enter).and_then(|()| open_here(&wanted.device));
        drop(sender.send(opened));
    });
    started.map_err(TapError::Io)?;
    match receiver.recv_timeout(OPEN_DEADLINE) {
        Ok(opened) => opened,
        Err(RecvTimeoutError::Timeout) => Err(TapError::Late(OPEN_DEADLINE)),
        Err(RecvTimeoutError::Disconnected) => Err(TapError::Io(io::Error::other("its thread ended"))),
    }
}

/// Moves this thread to a network namespace, for good.
fn enter(path: &Utf8Path) -> Result<(), TapError> {
    let enter = || -> io::Result<()> {
        // Else opening a pipe would wait for its writer.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
    };
    enter().map_err(|source| TapError::Namespace { path: path.into(), source })
}

/// Opens a TAP device of this thread's network namespace.
fn open_here(device: &str) -> Result<OwnedFd, TapError> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(|error| TapError::Io(error.into()))?;
    match netdevice::name_to_index(&socket, device) {
        Ok(_) => {}
        Err(rustix::io::Errno::NODEV) => return Err(TapError::NoDevice),
        Err(error) => return Err(TapError::Io(error.into())),
    }
    // QEMU polls, so no read of it may wait.
    let tun = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN);
    let tun = tun.map_err(TapError::NoTun)?;
    let mut request = request(device)?;
    request.ifr_ifru.ifru_flags = FLAGS.try_into().expect("all of them are small");
    // SAFETY: the descriptor is open, and the request is a whole `ifreq` whose name ends with zero.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::EINVAL) => TapError::NotTap,
            Some(libc::EBUSY) => TapError::Busy,
            _ => TapError::Io(error),
        });
    }
    // One that was removed since it was looked for has just been made again, and leads nowhere. It goes with the descriptor,
    // as every device does that was not made persistent.
    // SAFETY: as above; the kernel fills name and flags.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETIFF, &raw mut request) } < 0 {
        return Err(TapError::Io(io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just filled the flags.
    let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
    if flags & libc::IFF_PERSIST == 0 { Err(TapError::NoDevice) } else { Ok(tun.into()) }
}

fn request(device: &str) -> Result<libc::ifreq, TapError> {
    // SAFETY: all-zero bytes are a value of this plain struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: it ends the name.
    if device.len() >= request.ifr_name.len() {
        return Err(TapError::NoDevice);
    }
    for (target, byte) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *target = byte.cast_signed();
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(device: &str, namespace: Option<&str>) -> Tap {
        Tap { device: device.into(), namespace: namespace.map(Into::into) }
    }

    #[test]
    fn a_device_that_is_not_there_is_named_and_none_is_made() {
        let error = open(&tap("kiln-none", None)).expect_err("is not there");
        assert!(matches!(error, TapError::NoDevice), "{error:?}");
        assert!(!Utf8Path::new("/sys/class/net/kiln-none").exists());
    }

    #[test]
    fn what_is_no_network_namespace_is_named_without_waiting() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
        std::fs::write(path("file"), "").expect("written");
        let fifo = path("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
        for wrong in [path("none"), path("file"), fifo, path(""), "/proc/self/ns/uts".into()] {
            let error = open(&tap("tap0", Some(&wrong))).expect_err("is no network namespace");
            assert!(matches!(&error, TapError::Namespace { path, .. } if *path == wrong), "{error:?}");
        }
    }
}

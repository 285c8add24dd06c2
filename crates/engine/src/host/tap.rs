//! Opens TAP devices for VMMs. A VMM is in an empty network namespace, so it can't open them.
//!
//! ```text
//!   a new thread: setns ─▶ does the device exist? ─▶ open /dev/net/tun, TUNSETIFF ─▶ descriptor ─▶ the VMM
//!   a new thread: unshare ─────────────────────────▶ the same, which creates it ───┘   (idle: it leads nowhere)
//! ```
//! An open descriptor stays attached to its device in whatever namespace its process is. So Kiln enters the namespace
//! only to open the device. `setns` moves one thread, not the process, so a new thread does it and ends afterwards. A
//! thread of the runtime's pool would have to move back, which can fail: then the next VM that this thread starts would
//! get a device of the wrong network. Processes are forked by a thread of their own (see `process.rs`), so no VMM
//! inherits the namespace either.
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
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::blocking::assert_may_block;
use crate::error::ErrorKind;
use crate::spec::Tap;

/// The device with which TAP devices are opened.
const TUN: &str = "/dev/net/tun";
/// The device of a VM that is connected to nothing.
const IDLE: &str = "tap0";
/// An open is quick, but it takes the kernel's `rtnl` lock. Every change of a network on the host holds that lock.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// Ethernet frames, without the header of the TUN driver, with virtio's header, which carries the offloads.
const FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Why a TAP device can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Its network namespace does not exist, or this user may not enter it.
    #[error("failed to enter the network namespace `{path}`")]
    Namespace {
        /// The namespace's file.
        path: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No device has that name in that namespace.
    #[error("there is no such device")]
    NoDevice,
    /// It is another kind of device, or a TAP device with several queues.
    #[error("it is not a TAP device with one queue")]
    NotTap,
    /// Another VM or program has it open.
    #[error("another VM or program has the device open")]
    Busy,
    /// The kernel lacks the driver, or this user may not use it.
    #[error("failed to open `{TUN}`")]
    NoTun(#[source] io::Error),
    /// The kernel did not open it in time.
    #[error("the device did not open within {0:?}")]
    Late(Duration),
    /// This user may not open it, or it failed in another way.
    #[error("failed to open the device")]
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

/// Opens an existing TAP device. Never creates one.
pub(crate) fn open(tap: &Tap) -> Result<OwnedFd, TapError> {
    let wanted = tap.clone();
    on_a_thread(move || {
        wanted.namespace.as_deref().map_or(Ok(()), enter)?;
        open_here(&wanted.device)
    })
}

/// Creates a TAP device in a new network namespace. Both end with the descriptor: the device is not persistent, and the
/// device is what keeps the namespace.
pub(crate) fn idle() -> Result<OwnedFd, TapError> {
    on_a_thread(|| {
        #[expect(unsafe_code, reason = "rustix marks every unshare as unsafe, because some share memory no more")]
        // SAFETY: only the network namespace of this thread changes. It shares all memory and descriptors still.
        let left = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
        left.map_err(|error| TapError::Io(error.into()))?;
        attach(IDLE).map(|(tun, _)| tun)
    })
}

/// The name of an idle device, for errors.
pub(crate) fn idle_name() -> Tap {
    Tap { device: IDLE.into(), namespace: None }
}

fn on_a_thread(work: impl FnOnce() -> Result<OwnedFd, TapError> + Send + 'static) -> Result<OwnedFd, TapError> {
    assert_may_block();
    let (sender, receiver) = sync_channel(1);
    let thread = thread::Builder::new().name("tap".into());
    // It is not joined. If the kernel blocks it past the deadline, the thread ends when the kernel returns. Its `send`
    // fails then, because the receiver is gone, and that drops the descriptor.
    let started = thread.spawn(move || drop(sender.send(work())));
    started.map_err(TapError::Io)?;
    match receiver.recv_timeout(OPEN_DEADLINE) {
        Ok(opened) => opened,
        Err(RecvTimeoutError::Timeout) => Err(TapError::Late(OPEN_DEADLINE)),
        Err(RecvTimeoutError::Disconnected) => Err(TapError::Io(io::Error::other("the thread that opens it ended"))),
    }
}

/// Moves this thread to a network namespace. The thread stays there.
fn enter(path: &Utf8Path) -> Result<(), TapError> {
    let enter = || -> io::Result<()> {
        // Without `O_NONBLOCK`, the open of a FIFO would wait for a writer.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
    };
    enter().map_err(|source| TapError::Namespace { path: path.into(), source })
}

/// Opens a TAP device of this thread's network namespace.
///
/// `TUNSETIFF` creates a device if none has that name, so the name is looked up first. Between the two calls the device
/// can be removed. Then `TUNSETIFF` creates a new device, without address or routes, and the guest would have a card
/// that seems connected and is not. The flags show that: a device that its user made for Kiln is persistent
/// (`IFF_PERSIST`), a device that `TUNSETIFF` just created is not. It is refused, and the kernel removes it when the
/// descriptor closes.
fn open_here(device: &str) -> Result<OwnedFd, TapError> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(|error| TapError::Io(error.into()))?;
    match netdevice::name_to_index(&socket, device) {
        Ok(_) => {}
        Err(rustix::io::Errno::NODEV) => return Err(TapError::NoDevice),
        Err(error) => return Err(TapError::Io(error.into())),
    }
    let (tun, flags) = attach(device)?;
    if flags & libc::IFF_PERSIST == 0 { Err(TapError::NoDevice) } else { Ok(tun) }
}

/// Opens a TAP device of this thread's network namespace, or creates it. Returns its flags, too.
fn attach(device: &str) -> Result<(OwnedFd, i32), TapError> {
    // QEMU polls the descriptor, so its reads must not block.
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
    // SAFETY: the descriptor is open, and the kernel fills the name and the flags of a whole `ifreq`.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETIFF, &raw mut request) } < 0 {
        return Err(TapError::Io(io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just filled the flags.
    Ok((tun.into(), i32::from(unsafe { request.ifr_ifru.ifru_flags })))
}

fn request(device: &str) -> Result<libc::ifreq, TapError> {
    // SAFETY: all-zero bytes are a value of this plain struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero, because it ends the name.
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
    use crate::every_variant::{chains, every_variant};

    fn tap(device: &str, namespace: Option<&str>) -> Tap {
        Tap { device: device.into(), namespace: namespace.map(Into::into) }
    }

    #[test]
    fn a_missing_device_is_an_error_and_is_not_created() {
        let error = open(&tap("kiln-none", None)).expect_err("does not exist");
        assert!(matches!(error, TapError::NoDevice), "{error:?}");
        assert!(!Utf8Path::new("/sys/class/net/kiln-none").exists());
    }

    #[test]
    fn an_idle_device_is_not_on_the_host_and_needs_root() {
        match idle() {
            // Two at once: each is in a namespace of its own.
            Ok(_device) => drop(idle().expect("as the first")),
            Err(error) => assert!(!rustix::process::geteuid().is_root(), "{error:?}"),
        }
        assert!(!Utf8Path::new("/sys/class/net").join(IDLE).exists());
    }

    #[test]
    fn a_file_that_is_not_a_network_namespace_is_named_without_waiting() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
        std::fs::write(path("file"), "").expect("written");
        let fifo = path("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a FIFO");
        for wrong in [path("none"), path("file"), fifo, path(""), "/proc/self/ns/uts".into()] {
            let error = open(&tap("tap0", Some(&wrong))).expect_err("is not a network namespace");
            assert!(matches!(&error, TapError::Namespace { path, .. } if *path == wrong), "{error:?}");
        }
    }

    #[test]
    fn each_error_has_its_text() {
        let source = |kind: io::ErrorKind| io::Error::from(kind);
        let namespace = |kind| TapError::Namespace { path: "/run/netns/one".into(), source: source(kind) };
        let errors = every_variant!(TapError {
            Namespace: [namespace(io::ErrorKind::NotFound), namespace(io::ErrorKind::PermissionDenied)],
            NoDevice: [TapError::NoDevice],
            NotTap: [TapError::NotTap],
            Busy: [TapError::Busy],
            NoTun: [
                TapError::NoTun(source(io::ErrorKind::NotFound)),
                TapError::NoTun(source(io::ErrorKind::PermissionDenied)),
            ],
            Late: [TapError::Late(OPEN_DEADLINE)],
            Io: [TapError::Io(source(io::ErrorKind::PermissionDenied))],
        });
        insta::assert_snapshot!(chains(&errors, |error| vec![error.kind().to_string()]));
    }
}

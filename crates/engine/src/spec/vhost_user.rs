//! Devices of a VM that another process, the backend, serves with the vhost-user protocol.
//!
//! ```text
//!   VhostUser ──check──▶ probe: does it listen? ──┬──▶ blk, net: the VMM connects to the path, and reconnects
//!                                                 └──▶ vsock, fs: Kiln connects once, the VMM inherits the connection
//! ```
//! The probe must not connect: many backends serve one client and exit when it disconnects. So it uses a datagram
//! socket. The kernel looks up the address first and compares the types of the two sockets afterwards, so the error
//! shows whether a stream socket listens there, and the backend does not notice.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::{Deserialize, Serialize};

use super::bounds::QUEUES_MAX;
use super::error::SpecError;
use super::mac_address::MacAddress;

/// Longest tag of a share (virtio specification, 5.11.4).
const TAG_BYTES_MAX: usize = 36;
/// Longest path of a Unix socket: `sun_path` less its zero byte.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A device that another process serves with the vhost-user protocol.
///
/// ```
/// use kiln_engine::{VhostUser, VhostUserDevice, VmSpec};
///
/// let mut spec = VmSpec::new("/images/vmlinuz", "/images/initramfs");
/// spec.vhost_user.push(VhostUser::new(VhostUserDevice::Blk, "/run/backend.sock"));
/// assert_eq!(spec.vhost_user[0].to_string(), "the vhost-user-blk device `/run/backend.sock`");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhostUser {
    /// The kind of device.
    pub device: VhostUserDevice,
    /// The socket on which the backend listens.
    pub socket: Utf8PathBuf,
    /// The number of queues of a disk, of pairs of queues of a network card, or of request queues of a share. If the
    /// backend has fewer, the VM does not start.
    #[serde(default = "one")]
    pub queues: u16,
}

/// Kinds of vhost-user devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VhostUserDevice {
    /// A disk. In the guest it comes after the disks of [`VmSpec::disks`](super::VmSpec::disks).
    Blk,
    /// A network card.
    Net {
        /// Its address.
        mac: MacAddress,
    },
    /// Sockets between host and guest. The backend sends the guest its CID.
    Vsock,
    /// A shared directory.
    Fs {
        /// The name with which the guest mounts it.
        tag: String,
    },
}

const fn one() -> u16 {
    1
}

impl VhostUser {
    /// A device with one queue.
    pub fn new(device: VhostUserDevice, socket: impl Into<Utf8PathBuf>) -> Self {
        Self { device, socket: socket.into(), queues: 1 }
    }

    /// Whether the VMM reconnects when the backend exits. Only disks and network cards continue with a new backend.
    pub(crate) fn reconnects(&self) -> bool {
        matches!(self.device, VhostUserDevice::Blk | VhostUserDevice::Net { .. })
    }

    /// Refuses values that would change the arguments of a VMM, and numbers that no VMM accepts.
    pub(crate) fn check(&self) -> Result<(), SpecError> {
        let path = self.socket.as_str();
        if !self.socket.is_absolute() || path.len() > SOCKET_PATH_BYTES_MAX {
            return self.refuse(format!("needs an absolute socket path of at most {SOCKET_PATH_BYTES_MAX} bytes"));
        }
        if path.bytes().any(|byte| byte.is_ascii_control()) {
            return self.refuse("has a control character in its socket path");
        }
        if !(1..=QUEUES_MAX).contains(&self.queues) {
            return self.refuse(format!("must have 1 to {QUEUES_MAX} queues, not {}", self.queues));
        }
        match &self.device {
            VhostUserDevice::Vsock if self.queues > 1 => self.refuse("always has one set of queues"),
            VhostUserDevice::Fs { tag } if !is_tag(tag) => self.refuse(format!(
                "needs a tag of 1 to {TAG_BYTES_MAX} letters, digits, `.`, `_` and `-`, not `{}`",
                tag.escape_default()
            )),
            _ => Ok(()),
        }
    }

    /// Refuses a device without a listening backend. Does not connect to the backend.
    pub(crate) fn probe(&self) -> Result<(), SpecError> {
        match probe(&self.socket) {
            Ok(()) => Ok(()),
            Err(problem) => self.refuse(problem),
        }
    }

    /// The connection that a VMM inherits for a device that never [reconnects](Self::reconnects).
    pub(crate) fn connect(&self) -> io::Result<OwnedFd> {
        connect_at_once(&self.socket)
    }

    fn refuse<T>(&self, problem: impl Into<String>) -> Result<T, SpecError> {
        Err(SpecError::Backend { device: self.to_string(), problem: problem.into() })
    }
}

/// Connects to a Unix stream socket, or fails at once. A blocking connect would wait without a bound while the server's
/// queue of connections is full.
pub(crate) fn connect_at_once(socket: &Utf8Path) -> io::Result<OwnedFd> {
    let ours = socket_with(AddressFamily::UNIX, SocketType::STREAM, close_on_exec() | SocketFlags::NONBLOCK, None)?;
    connect(&ours, &SocketAddrUnix::new(socket.as_std_path())?)?;
    Ok(ours)
}

impl std::fmt::Display for VhostUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the {} device `{}`", self.device.name(), self.socket)
    }
}

impl VhostUserDevice {
    /// Its name, as QEMU and backends have it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Blk => "vhost-user-blk",
            Self::Net { .. } => "vhost-user-net",
            Self::Vsock => "vhost-user-vsock",
            Self::Fs { .. } => "vhost-user-fs",
        }
    }
}

/// Refuses two devices with the same socket, and two shares with the same tag.
pub(crate) fn check_distinct(devices: &[VhostUser]) -> Result<(), SpecError> {
    for (index, device) in devices.iter().enumerate() {
        let before = &devices[..index];
        if before.iter().any(|other| other.socket == device.socket) {
            return device.refuse("has the same socket as another device");
        }
        if let VhostUserDevice::Fs { tag } = &device.device
            && before.iter().any(|other| other.device == device.device)
        {
            return device.refuse(format!("has the same tag `{tag}` as another share"));
        }
    }
    Ok(())
}

fn is_tag(tag: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=TAG_BYTES_MAX).contains(&tag.len()) && tag.bytes().all(allowed)
}

fn close_on_exec() -> SocketFlags {
    SocketFlags::CLOEXEC
}

/// Checks that a stream socket listens at a path. Linux looks up the address before it compares the types of the
/// sockets (`unix_find_other` in net/unix/af_unix.c). So the connect of a datagram socket fails with `EPROTOTYPE` if a
/// stream socket is bound there, with `ECONNREFUSED` if only the file is left, and the listener gets no connection.
fn probe(path: &Utf8Path) -> Result<(), String> {
    let kind = std::fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "has no socket: the path does not exist".to_owned(),
        _ => format!("has a socket that can't be inspected: {error}"),
    })?;
    if !kind.file_type().is_socket() {
        return Err("is not a socket".into());
    }
    let asked = socket_with(AddressFamily::UNIX, SocketType::DGRAM, close_on_exec(), None)
        .and_then(|socket| connect(&socket, &SocketAddrUnix::new(Path::new(path))?));
    match asked {
        Err(Errno::PROTOTYPE) => Ok(()),
        Ok(()) => Err("has a datagram socket, but vhost-user needs a stream socket".into()),
        Err(Errno::CONNREFUSED) => Err("has a socket on which no backend listens".into()),
        Err(error) => Err(format!("refuses connections: {}", io::Error::from(error))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    const MAC: &str = "52:54:00:12:34:56";

    fn device(device: VhostUserDevice) -> VhostUser {
        VhostUser::new(device, "/run/x.sock")
    }

    fn fs(tag: &str) -> VhostUserDevice {
        VhostUserDevice::Fs { tag: tag.into() }
    }

    #[test]
    fn a_spec_of_an_older_version_is_read() {
        let stored: VhostUser = serde_json::from_str(r#"{"device":"blk","socket":"/run/x.sock"}"#).expect("is read");
        assert_eq!(stored, device(VhostUserDevice::Blk));
    }

    #[test]
    fn every_kind_is_read_as_it_was_written() {
        let net = VhostUserDevice::Net { mac: MAC.parse().expect("an address") };
        for kind in [VhostUserDevice::Blk, net, VhostUserDevice::Vsock, fs("share")] {
            let device = VhostUser { queues: 4, ..device(kind) };
            let text = serde_json::to_string(&device).expect("is written");
            assert_eq!(serde_json::from_str::<VhostUser>(&text).expect("is read"), device, "{text}");
        }
        let text = r#"{"device":{"net":{"mac":"52:54:00:00:00:00,script=/x"}},"socket":"/run/x.sock"}"#;
        serde_json::from_str::<VhostUser>(text).expect_err("is not an address");
    }

    #[test]
    fn bad_paths_tags_and_numbers_of_queues_are_refused_with_the_device() {
        let blk = |socket: &str| VhostUser::new(VhostUserDevice::Blk, socket);
        let long = format!("/{}", "x".repeat(SOCKET_PATH_BYTES_MAX));
        let queues = |queues| VhostUser { queues, ..device(VhostUserDevice::Blk) };
        let tags = ["", "a,b", "a b", "a\n", "ä", &"x".repeat(37)].map(|tag| device(fs(tag)));
        let bad = [blk(""), blk("x.sock"), blk(&long), blk("/run/a\nb"), queues(0), queues(65), queues(u16::MAX)];
        for device in bad.into_iter().chain(tags) {
            let error = device.check().expect_err("is refused");
            assert!(error.to_string().starts_with(&device.to_string()), "{error}");
        }
        VhostUser { queues: 2, ..device(VhostUserDevice::Vsock) }.check().expect_err("has no more");
        for good in [blk("/run/a,b=c"), blk(&long[..SOCKET_PATH_BYTES_MAX]), queues(64), device(fs(&"x".repeat(36)))] {
            good.check().unwrap_or_else(|error| panic!("{error}"));
        }
    }

    #[test]
    fn two_devices_share_neither_socket_nor_tag() {
        let at = |path: &str, kind| VhostUser::new(kind, path);
        let apart = [at("/a", fs("one")), at("/b", fs("two")), at("/c", VhostUserDevice::Blk)];
        check_distinct(&apart).expect("are distinct");
        check_distinct(&[at("/a", VhostUserDevice::Blk), at("/a", VhostUserDevice::Vsock)]).expect_err("one socket");
        check_distinct(&[at("/a", fs("one")), at("/b", fs("one"))]).expect_err("one tag");
    }

    #[test]
    fn a_probe_does_not_connect_to_the_backend() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = Utf8PathBuf::from_path_buf(folder.path().join("s")).expect("UTF-8");
        let probed = |path: &Utf8Path| VhostUser::new(VhostUserDevice::Vsock, path).probe().map_err(|e| e.to_string());
        let fails_with = |path: &Utf8Path, words: &str| {
            let error = probed(path).expect_err("is refused");
            assert!(error.contains(words) && error.contains(path.as_str()), "{error}");
        };
        fails_with(&path, "does not exist");
        fails_with("/etc/passwd".into(), "not a socket");

        let listener = UnixListener::bind(&path).expect("listens");
        listener.set_nonblocking(true).expect("is set");
        probed(&path).expect("the backend listens");
        assert_eq!(listener.accept().expect_err("no connection came").kind(), io::ErrorKind::WouldBlock);

        drop(listener);
        fails_with(&path, "no backend listens");
        std::fs::remove_file(&path).expect("is removed");
        let _datagrams = UnixDatagram::bind(&path).expect("is bound");
        fails_with(&path, "datagram");
    }

    #[test]
    fn a_connect_to_a_full_queue_fails_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = Utf8PathBuf::from_path_buf(folder.path().join("s")).expect("UTF-8");
        let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, close_on_exec(), None).expect("a socket");
        rustix::net::bind(&listener, &SocketAddrUnix::new(path.as_std_path()).expect("short")).expect("is bound");
        rustix::net::listen(&listener, 0).expect("listens");
        let device = VhostUser::new(VhostUserDevice::Vsock, path);
        let _first = device.connect().expect("is queued");
        let error = device.connect().expect_err("the queue is full");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}

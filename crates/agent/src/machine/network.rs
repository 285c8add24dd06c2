//! Network interfaces: after a boot `lo` is down, and after a fork the interfaces have the addresses of the VM it was
//! made from.
#![expect(unsafe_code, reason = "flags and addresses of interfaces are only reachable by ioctl")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::log::note;

/// The kernel's list of interfaces.
const INTERFACES: &str = "/sys/class/net";

/// Brings `lo` up.
pub fn loopback_up() {
    let up = || -> io::Result<()> {
        let mut request = request("lo")?;
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        ioctl(&socket()?, libc::SIOCSIFFLAGS, &mut request)
    };
    if let Err(error) = up() {
        note(format!("can't bring up the loopback interface: {error}"));
    }
}

/// Names of the Ethernet interfaces, in the kernel's order.
pub fn interfaces() -> Vec<String> {
    let number =
        |directory: &Path, file: &str| fs::read_to_string(directory.join(file)).ok()?.trim().parse::<u32>().ok();
    let interface = |entry: fs::DirEntry| {
        let is_ethernet = number(&entry.path(), "type")? == u32::from(libc::ARPHRD_ETHER);
        let index = number(&entry.path(), "ifindex")?;
        is_ethernet.then_some(())?;
        Some((index, entry.file_name().into_string().ok()?))
    };
    let mut found: Vec<_> = fs::read_dir(INTERFACES).into_iter().flatten().flatten().filter_map(interface).collect();
    found.sort_unstable();
    found.into_iter().map(|(_, name)| name).collect()
}

/// Sets the Ethernet address of an interface. If the driver can't do that while the interface is up, it is brought down
/// for a moment, and loses its routes.
///
/// # Errors
/// If the interface is gone, or the kernel refuses.
pub fn set_address(name: &str, mac: [u8; 6]) -> io::Result<()> {
    let socket = socket()?;
    let mut address = request(name)?;
    let mut data = [0; 14];
    for (target, byte) in data.iter_mut().zip(mac) {
        *target = byte.cast_signed();
    }
    address.ifr_ifru.ifru_hwaddr = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: data };
    let refused = match ioctl(&socket, libc::SIOCSIFHWADDR, &mut address) {
        Ok(()) => return Ok(()),
        Err(refused) => refused,
    };
    let mut flags = request(name)?;
    ioctl(&socket, libc::SIOCGIFFLAGS, &mut flags)?;
    // SAFETY: the kernel has just filled the flags.
    let before = unsafe { flags.ifr_ifru.ifru_flags };
    let up = libc::IFF_UP as libc::c_short;
    if before & up == 0 {
        return Err(refused);
    }
    flags.ifr_ifru.ifru_flags = before & !up;
    ioctl(&socket, libc::SIOCSIFFLAGS, &mut flags)?;
    let changed = ioctl(&socket, libc::SIOCSIFHWADDR, &mut address);
    flags.ifr_ifru.ifru_flags = before;
    changed.and(ioctl(&socket, libc::SIOCSIFFLAGS, &mut flags))
}

fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all-zero bytes are a value of this plain struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero, because it ends the name.
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::other(format!("`{name}` is not a name of an interface")));
    }
    for (target, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *target = byte.cast_signed();
    }
    Ok(request)
}

fn ioctl(socket: &OwnedFd, operation: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: each operation in this module reads or fills an ifreq, whose name ends with zero.
    if unsafe { libc::ioctl(socket.as_raw_fd(), operation, &raw mut *request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

//! Network interfaces: after a boot `lo` is down, and after a fork the interfaces have the addresses of the VM it was
//! made from.
#![expect(unsafe_code, reason = "flags and addresses of interfaces are only reachable by ioctl")]

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use kiln_wire::Interface;
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

/// Sets the Ethernet address of an interface. If it has that address, nothing changes. If the driver can't do that while the interface is up, it is brought down
/// for a moment, and loses its routes.
///
/// # Errors
/// If the interface is gone, or the kernel refuses.
pub fn set_address(name: &str, mac: [u8; 6]) -> io::Result<()> {
    let socket = socket()?;
    if hardware_address_of(&socket, name) == Some(mac) {
        return Ok(());
    }
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

/// Gives an interface its address and its route to all other networks, and brings it up. If it has them, nothing changes.
///
/// The calls have no effect on an interface that is already as requested, except for the address: to set it again
/// would remove all routes over it. So it is compared first.
///
/// # Errors
/// If the interface is gone, or the kernel refuses.
pub fn connect(name: &str, wanted: &Interface) -> io::Result<()> {
    let socket = socket()?;
    if let Some(mtu) = wanted.mtu
        && mtu_of(&socket, name) != Some(mtu.into())
    {
        let mut set = request(name)?;
        set.ifr_ifru.ifru_mtu = i32::from(mtu);
        ioctl(&socket, libc::SIOCSIFMTU, &mut set)?;
    }
    let mask = mask(wanted.prefix);
    let before = address_of(&socket, name, libc::SIOCGIFADDR);
    if before != Some(wanted.address) || address_of(&socket, name, libc::SIOCGIFNETMASK) != Some(mask) {
        if before.is_some() {
            // Routes over an interface end when it goes down. Those of another network would stay beside the new ones.
            let mut down = request(name)?;
            down.ifr_ifru.ifru_flags = 0;
            ioctl(&socket, libc::SIOCSIFFLAGS, &mut down)?;
        }
        for (operation, address) in [(libc::SIOCSIFADDR, wanted.address), (libc::SIOCSIFNETMASK, mask)] {
            let mut set = request(name)?;
            set.ifr_ifru.ifru_addr = socket_address(address);
            ioctl(&socket, operation, &mut set)?;
        }
    }
    let mut flags = request(name)?;
    ioctl(&socket, libc::SIOCGIFFLAGS, &mut flags)?;
    // SAFETY: the kernel has just filled the flags.
    let before = unsafe { flags.ifr_ifru.ifru_flags };
    let up = libc::IFF_UP as libc::c_short;
    if before & up == 0 {
        flags.ifr_ifru.ifru_flags = before | up;
        ioctl(&socket, libc::SIOCSIFFLAGS, &mut flags)?;
    }
    wanted.gateway.map_or(Ok(()), |gateway| add_default_route(&socket, gateway))
}

/// The mask whose first `prefix` bits are set.
fn mask(prefix: u8) -> Ipv4Addr {
    let host_bits = 32 - u32::from(prefix.min(32));
    Ipv4Addr::from(u32::MAX.checked_shl(host_bits).unwrap_or(0))
}

fn address_of(socket: &OwnedFd, name: &str, operation: libc::c_ulong) -> Option<Ipv4Addr> {
    let mut get = request(name).ok()?;
    ioctl(socket, operation, &mut get).ok()?;
    // SAFETY: the kernel has just filled the address.
    let [_, _, a, b, c, d, ..] = unsafe { get.ifr_ifru.ifru_addr }.sa_data.map(i8::cast_unsigned);
    Some(Ipv4Addr::new(a, b, c, d))
}

fn mtu_of(socket: &OwnedFd, name: &str) -> Option<i32> {
    let mut get = request(name).ok()?;
    ioctl(socket, libc::SIOCGIFMTU, &mut get).ok()?;
    // SAFETY: the kernel has just filled the number.
    Some(unsafe { get.ifr_ifru.ifru_mtu })
}

fn hardware_address_of(socket: &OwnedFd, name: &str) -> Option<[u8; 6]> {
    let mut get = request(name).ok()?;
    ioctl(socket, libc::SIOCGIFHWADDR, &mut get).ok()?;
    // SAFETY: the kernel has just filled the address.
    let [a, b, c, d, e, f, ..] = unsafe { get.ifr_ifru.ifru_hwaddr }.sa_data.map(i8::cast_unsigned);
    Some([a, b, c, d, e, f])
}

/// An IPv4 address without a port as the kernel has it: two bytes of a port, then the address.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (target, byte) in data[2..].iter_mut().zip(address.octets()) {
        *target = byte.cast_signed();
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

fn add_default_route(socket: &OwnedFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: all-zero bytes are a value of this plain struct.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: the operation reads an rtentry. Its only pointer, the name of a device, is null, which means none.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &raw mut route) } < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::EEXIST) { Ok(()) } else { Err(error) };
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_mask_of_as_many_bits() {
        let masks = [0, 1, 24, 30, 32, 255].map(|prefix| mask(prefix).to_string());
        assert_eq!(
            masks,
            ["0.0.0.0", "128.0.0.0", "255.255.255.0", "255.255.255.252", "255.255.255.255", "255.255.255.255"]
        );
    }

    #[test]
    fn the_loopback_interface_has_its_address() {
        let socket = socket().expect("a socket");
        let found = address_of(&socket, "lo", libc::SIOCGIFADDR);
        assert!(found.is_none_or(|address| address == Ipv4Addr::LOCALHOST), "{found:?}");
        assert_eq!(address_of(&socket, "surely-none", libc::SIOCGIFADDR), None);
        assert_eq!(hardware_address_of(&socket, "lo"), Some([0; 6]));
        assert!(mtu_of(&socket, "lo").is_some_and(|mtu| mtu > 0));
    }
}

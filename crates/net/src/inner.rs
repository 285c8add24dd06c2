//! The addresses inside a VM's network. They are the same for every VM, so a fork changes nothing in its guest.
//!
//! Each VM has a network of its own, with two members: the guest and its gateway. The gateway is also the resolver. The
//! addresses are link-local, so they collide with no network that a guest may want to reach.

use std::net::Ipv4Addr;

/// The guest's address.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);

/// The gateway's address. Names are resolved there, on port [`RESOLVER_PORT`], and it answers echo requests.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);

/// Length of the prefix that guest and gateway share: 169.254.0.20/30.
pub const PREFIX: u8 = 30;

/// The guest's MAC address. It is locally administered, like the gateway's.
pub const GUEST_MAC: [u8; 6] = [0x02, 0x6b, 0x69, 0x6c, 0x6e, 0x15];

/// The gateway's MAC address. It never changes, so a guest's neighbour table stays right after a restore.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x6b, 0x69, 0x6c, 0x6e, 0x16];

/// The largest IP packet on a TAP. Uplinks with a smaller one need the segments of TCP clamped to it.
pub const MTU: u16 = 1500;

/// The port of the resolver, over UDP and TCP.
pub const RESOLVER_PORT: u16 = 53;

/// The network of lab guests, who see each other. Each lab has a bridge of its own, so all labs have the same addresses.
pub const LAB_NETWORK: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 0);

/// Length of the prefix of [`LAB_NETWORK`].
pub const LAB_PREFIX: u8 = 24;

/// The gateway of a lab. Names are resolved there.
pub const LAB_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// The address and the MAC address of a lab guest, by its number from 2 to 254.
pub const fn lab_guest(number: u8) -> (Ipv4Addr, [u8; 6]) {
    (Ipv4Addr::new(10, 77, 0, number), [0x02, 0x6b, 0x69, 0x6c, 0x01, number])
}

//! A network without root: each flow of a guest is judged by its policy and then made by a socket of this process.
//!
//! ```text
//!   QEMU, in an empty network namespace                      this process
//!   ┌────────────────────┐  frames over a socket pair  ┌──────────────────────────────────────────┐
//!   │ virtio-net, stream │ ◀─────────────────────────▶ │ Link ─▶ Packet ─▶ Gate ─▶ flow ─▶ socket │──▶ host's network
//!   └────────────────────┘                             └──────────────────────────────────────────┘
//! ```
//!
//! - **TCP.** A connection is answered only after the host's socket is connected, so a guest sees a refusal as a
//!   refusal. Then bytes are copied between the two, through buffers of [`RECEIVE_BYTES`] and [`SEND_BYTES`]: a side that
//!   does not read stops the other. A connection that the policy denies gets RST at once.
//! - **UDP.** Each pair of ports and address has a socket that is connected to the address, so that no other sender
//!   reaches the guest. A datagram that the policy denies gets ICMP "administratively prohibited".
//! - **Echo.** The gateway answers. Other addresses are asked through the kernel's sockets for echo, if the host lets
//!   its users have them.
//! - **Names** go to the VM's [`crate::names::Resolver`].
//!
//! QEMU is a hostile peer, because its guest may have taken it over. Frames that are not understood are counted and
//! dropped, tables of flows are bounded, and nothing is kept for QEMU beyond [`OUT_BYTES_MAX`]. No frame makes a socket
//! without a decision of the gate.
//!
//! One thread has the whole network of a VM. It waits in one place, and each call that it makes returns at once.

mod datagrams;
mod device;
mod host;
mod link;
mod network;
mod packet;
mod slab;
mod stack;
mod tcp;
#[cfg(test)]
mod tests;

pub use datagrams::{DATAGRAM_FLOWS_MAX, ECHO_FLOWS_MAX};
pub use host::{Host, HostSockets};
pub use link::{FRAME_BYTES_MAX, OUT_BYTES_MAX};
pub use network::{Published, UserNetwork};
pub use stack::{Counts, Stack};
pub use tcp::{CONNECTIONS_MAX, RECEIVE_BYTES, SEND_BYTES};

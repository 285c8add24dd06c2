//! The agent's port: virtio-serial behind a Unix socket that QEMU serves.

use std::io;
use std::time::Duration;

use tokio::net::UnixStream;

use crate::link::LinkOptions;
use crate::vm::{AGENT_SOCKET, BoxFuture, Transport};
use crate::vm_dir::SocketDir;

/// Reaches the agent over virtio-serial. QEMU serves one connection at a time. A second one waits until the first has
/// closed.
#[derive(Debug)]
pub(super) struct VirtioSerial;

impl Transport for VirtioSerial {
    fn dial<'a>(&'a self, sockets: &'a SocketDir) -> BoxFuture<'a, io::Result<UnixStream>> {
        Box::pin(async { UnixStream::connect(sockets.address(AGENT_SOCKET)).await })
    }

    fn link_options(&self, deadline: Duration) -> LinkOptions {
        LinkOptions::virtio_serial(deadline)
    }
}

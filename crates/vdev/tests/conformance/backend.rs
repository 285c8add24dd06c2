//! A process that serves a device of ours, right or wrong: this test binary, started again as one test of it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_vdev::backend::{Device, Options, QueueHandler, Queues, Server, Work};
use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
use kiln_vdev::devices::net::{Behind, Net, NetOptions};
use kiln_vdev::devices::vsock::Vsock;
use kiln_vdev::queue::{Chain, QueueError};
use kiln_vdev::socket::{Event, Listener};
use kiln_vdev::virtio::{DeviceKind, feature};

use super::wrong;

const SOCKET: &str = "KILN_TEST_SERVE_SOCKET";
const DISK: &str = "KILN_TEST_SERVE_DISK";
const KIND: &str = "KILN_TEST_SERVE_KIND";
const WRONG: &str = "KILN_TEST_SERVE_WRONG";
const ARGUMENTS: [&str; 4] = ["backend::serves_a_device", "--exact", "--ignored", "--nocapture"];

/// The command that serves a disk, wrong in this way; right if it is empty.
pub fn command(wrong: &str, disk: &Path) -> String {
    serve(DeviceKind::Blk, wrong, &disk.display().to_string())
}

/// The command that serves a device of this kind. `beside` is the disk's file, or another device's socket.
pub fn serve(kind: DeviceKind, wrong: &str, beside: &str) -> String {
    let program = std::env::current_exe().expect("we run");
    format!(
        "env {SOCKET}={{socket}} {DISK}='{beside}' {KIND}={} {WRONG}={wrong} '{}' {}",
        kind.name(),
        program.display(),
        ARGUMENTS.join(" ")
    )
}

/// A backend that was started without the suite; ends with this.
pub struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        // It may have exited on its own.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts it without the suite.
pub fn start(socket: &Path, disk: &Path) -> Started {
    let child = Command::new(std::env::current_exe().expect("we run"))
        .args(ARGUMENTS)
        .env(SOCKET, socket)
        .env(DISK, disk)
        .env(KIND, DeviceKind::Blk.name())
        .env(WRONG, "")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let started = Started(child.expect("starts"));
    // The suite does not wait for a socket that is not there.
    let deadline = Instant::now() + Duration::from_secs(30);
    while !socket.exists() {
        assert!(Instant::now() < deadline, "it does not listen");
        std::thread::sleep(Duration::from_millis(2));
    }
    started
}

#[test]
#[ignore = "is the backend that other tests start"]
fn serves_a_device() {
    let variable = |name| std::env::var(name).expect("is started by another test");
    let beside = PathBuf::from(variable(DISK));
    let wrong = variable(WRONG);
    let device: Arc<dyn Device> = match variable(KIND).parse().expect("a kind") {
        DeviceKind::Net => {
            let behind = Behind::Host(Ipv4Addr::new(10, 0, 0, 1));
            Arc::new(Net::new(NetOptions { behind, ..NetOptions::default() }).expect("a card"))
        }
        DeviceKind::I2c => Arc::new(EmptyBus { ring_max: wrong::ring_max(&wrong) }),
        DeviceKind::Vsock => Arc::new(Vsock::new(7, &beside).expect("a vsock")),
        _ if wrong == "forgets-writes" => disk(Backing::Null { bytes: 16 << 20 }),
        _ => disk(Backing::File(beside)),
    };
    let options = Options { faults: wrong::faults(&wrong), ..Options::default() };
    let server = Server::new(device, options).expect("a server");
    let listener = Listener::bind(Path::new(&variable(SOCKET))).expect("listens");
    let never = Event::new().expect("an event");
    server.serve(&listener, &never).expect("serves until it is killed");
}

fn disk(backing: Backing) -> Arc<dyn Device> {
    Arc::new(Blk::open(&BlkOptions::new(backing)).expect("a disk"))
}

/// An I2C adapter without a device on its bus, which has rings of at most `ring_max` entries.
struct EmptyBus {
    ring_max: u16,
}

impl Device for EmptyBus {
    fn kind(&self) -> DeviceKind {
        DeviceKind::I2c
    }

    fn features(&self) -> u64 {
        feature::i2c::ZERO_LENGTH_REQUEST
    }

    fn queues(&self) -> u16 {
        1
    }

    fn queue_size_max(&self) -> u16 {
        self.ring_max
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn start(&self, _worker: u16, _features: u64) -> std::io::Result<Box<dyn QueueHandler>> {
        Ok(Box::new(NoAnswer(Chain::new())))
    }
}

/// Returns each request with `VIRTIO_I2C_MSG_ERR`.
struct NoAnswer(Chain);

impl QueueHandler for NoAnswer {
    fn process(&mut self, queues: &mut Queues, queue: u16) -> Result<Work, QueueError> {
        let Some(ring) = queues.get(queue) else { return Ok(Work::Left) };
        while ring.pop(&mut self.0)? {
            self.0.write_from(0, &[1]);
            ring.complete(&self.0, 1);
        }
        Ok(Work::Drained)
    }
}

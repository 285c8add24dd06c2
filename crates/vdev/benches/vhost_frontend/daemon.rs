//! The backends that all of them talk to, both on the same disk; they end with the bench.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_vdev::backend::{Options, Server};
use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
use kiln_vdev::random::Random;
use kiln_vdev::socket::{Event, Listener};
use tempfile::TempDir;

pub const DISK_MIB: usize = 256;

pub struct Daemon {
    /// The storage daemon's.
    pub socket: PathBuf,
    /// Our backend's.
    pub own_socket: PathBuf,
    pub version: String,
    children: [Child; 2],
    _dir: TempDir,
}

/// The argument by which this program becomes our backend, with a disk and a socket.
pub const SERVE: &str = "serve";

impl Daemon {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut random = Random::new(1);
        let disk: Vec<u8> = (0..DISK_MIB << 17).flat_map(|_| random.number().to_le_bytes()).collect();
        std::fs::write(dir.path().join("disk.img"), disk).expect("has room");
        let told = Command::new("qemu-storage-daemon").arg("--version").output().expect("is installed");
        let version = String::from_utf8_lossy(&told.stdout).split_whitespace().nth(2).unwrap_or("?").to_owned();
        let socket = dir.path().join("disk.sock");
        let child = Command::new("qemu-storage-daemon")
            .current_dir(dir.path())
            .args(["--blockdev", "driver=file,filename=disk.img,node-name=d0"])
            .args([
                "--export",
                "type=vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path=disk.sock,num-queues=1",
            ])
            .stdin(Stdio::null())
            .spawn()
            .expect("is installed");
        let own_socket = dir.path().join("own.sock");
        let own = Command::new(std::env::current_exe().expect("is a file"))
            .current_dir(dir.path())
            .args([SERVE, "disk.img", "own.sock"])
            .stdin(Stdio::null())
            .spawn()
            .expect("starts");
        let daemon = Self { socket, own_socket, version, children: [child, own], _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !(daemon.socket.exists() && daemon.own_socket.exists()) {
            assert!(Instant::now() < deadline, "a backend does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for child in &mut self.children {
            // An error means that the child has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Is our backend until it is killed.
pub fn serve(disk: &str, socket: &str) {
    let options = BlkOptions { read_only: true, queues: 1, ..BlkOptions::new(Backing::File(disk.into())) };
    let disk = Blk::open(&options).expect("opens");
    let server = Server::new(Arc::new(disk), Options::default()).expect("starts");
    let listener = Listener::bind(socket.as_ref()).expect("listens");
    server.serve(&listener, &Event::new().expect("an event")).expect("serves");
}

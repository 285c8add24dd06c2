//! The storage daemon that all of them talk to; it ends with the bench.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln_vdev::bench::Random;
use tempfile::TempDir;

pub const DISK_MIB: usize = 256;

pub struct Daemon {
    pub socket: PathBuf,
    pub version: String,
    child: Child,
    _dir: TempDir,
}

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
        let daemon = Self { socket, version, child, _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !daemon.socket.exists() {
            assert!(Instant::now() < deadline, "the storage daemon does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A child that has ended already is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

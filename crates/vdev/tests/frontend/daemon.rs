//! A storage daemon that serves a disk, and ends with the test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln_vdev::frontend::blk::{BlkDriver, BlkOptions};
use kiln_vdev::frontend::{Frontend, FrontendError, Options, Wish};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(10);

/// A storage daemon with a disk of its own. It is killed when this is dropped.
pub struct Daemon {
    dir: TempDir,
    child: Child,
    queues: u32,
}

impl Daemon {
    pub fn start(disk_bytes: u64, queues: u32) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = std::fs::File::create_new(dir.path().join("disk.img")).expect("a file");
        disk.set_len(disk_bytes).expect("grows");
        let child = spawn(dir.path(), queues);
        let daemon = Self { dir, child, queues };
        daemon.wait();
        daemon
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("disk.sock")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn disk(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("disk.img")).expect("is there")
    }

    /// Ends the daemon without a warning and starts it again on the same disk.
    pub fn kill_and_restart(&mut self) {
        self.end();
        self.child = spawn(self.dir.path(), self.queues);
    }

    pub fn driver(&self, options: &BlkOptions) -> Result<BlkDriver, FrontendError> {
        BlkDriver::connect(&self.socket(), &session(), options)
    }

    /// Until it takes a whole handshake.
    fn wait(&self) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let shaken = Frontend::connect(&self.socket(), &session())
                .and_then(|mut frontend| frontend.handshake(&Wish::default()));
            match shaken {
                Ok(_) => return,
                Err(error) => assert!(Instant::now() < deadline, "no storage daemon: {error:?}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(&mut self) {
        // A child that has ended already is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

pub fn session() -> Options {
    Options { timeout: TIMEOUT, reconnect_timeout: TIMEOUT, ..Options::default() }
}

fn spawn(dir: &Path, queues: u32) -> Child {
    let _ = std::fs::remove_file(dir.join("disk.sock"));
    Command::new("qemu-storage-daemon")
        .current_dir(dir)
        .args(["--blockdev", "driver=file,filename=disk.img,node-name=d0,discard=unmap"])
        .arg("--export")
        .arg(format!(
            "type=vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path=disk.sock,writable=on,num-queues={queues}"
        ))
        .stdin(Stdio::null())
        .spawn()
        .expect("qemu-storage-daemon is installed")
}

//! A process that serves a disk, and ends with the test: QEMU's storage daemon, or ours.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_vdev::backend;
use kiln_vdev::devices::blk;
use kiln_vdev::frontend::blk::{BlkDriver, BlkOptions};
use kiln_vdev::frontend::{Frontend, FrontendError, Options, Wish};
use kiln_vdev::socket::{Event, Listener};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Starts a backend in its directory, with so many queues.
type Spawn = fn(&Path, u32) -> Child;

/// A backend's process with a disk of its own. It is killed when this is dropped.
pub struct Daemon {
    dir: TempDir,
    child: Child,
    spawn: Spawn,
    queues: u32,
}

impl Daemon {
    /// QEMU's storage daemon.
    pub fn start(disk_bytes: u64, queues: u32) -> Self {
        Self::start_with(spawn_qemu, disk_bytes, queues)
    }

    /// Our own backend.
    pub fn start_own(disk_bytes: u64, queues: u32) -> Self {
        Self::start_with(spawn_own, disk_bytes, queues)
    }

    fn start_with(spawn: Spawn, disk_bytes: u64, queues: u32) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = std::fs::File::create_new(dir.path().join("disk.img")).expect("a file");
        disk.set_len(disk_bytes).expect("grows");
        let child = spawn(dir.path(), queues);
        let daemon = Self { dir, child, spawn, queues };
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
        self.child = (self.spawn)(self.dir.path(), self.queues);
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
                Err(error) => assert!(Instant::now() < deadline, "no backend: {error:?}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(&mut self) {
        // An error means that the child has ended already.
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

fn spawn_qemu(dir: &Path, queues: u32) -> Child {
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

/// Our backend has no program of its own here, so this one is started again, to run [`own_backend`] alone.
fn spawn_own(dir: &Path, queues: u32) -> Child {
    let _ = std::fs::remove_file(dir.join("disk.sock"));
    Command::new(std::env::current_exe().expect("is a file"))
        .current_dir(dir)
        .args(["--exact", "daemon::own_backend", "--ignored", "--quiet"])
        .env(QUEUES, queues.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts")
}

const QUEUES: &str = "OWN_BACKEND_QUEUES";

#[test]
#[ignore = "is the process of our backend that other tests start and kill, not a test"]
fn own_backend() {
    let queues = std::env::var(QUEUES).expect("is started by another test").parse().expect("is a number");
    let disk = blk::BlkOptions { queues, ..blk::BlkOptions::new(blk::Backing::File("disk.img".into())) };
    let disk = blk::Blk::open(&disk).expect("opens");
    let server = backend::Server::new(Arc::new(disk), backend::Options::default()).expect("starts");
    let listener = Listener::bind("disk.sock".as_ref()).expect("listens");
    server.serve(&listener, &Event::new().expect("an event")).expect("serves");
}

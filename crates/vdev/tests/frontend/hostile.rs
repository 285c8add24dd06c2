//! Disks that keep a driver busy and do nothing.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kiln_vdev::backend::{self, Device, QueueHandler, Queues, Server, Work};
use kiln_vdev::frontend::blk::{BlkDriver, BlkOptions};
use kiln_vdev::frontend::{FrontendError, Options};
use kiln_vdev::queue::QueueError;
use kiln_vdev::socket::{Event, Listener};
use kiln_vdev::virtio::DeviceKind;

/// How a disk keeps a driver busy.
#[derive(Clone, Copy)]
enum Trick {
    /// It calls, and has used nothing.
    Calls,
    /// It goes when it has something to do, and comes back.
    Goes,
}

struct Disk {
    trick: Trick,
    goes: Arc<Event>,
}

impl Device for Disk {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Blk
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        1
    }

    fn config(&self) -> Vec<u8> {
        vec![1; 60]
    }

    fn start(&self, _worker: u16, _features: u64) -> io::Result<Box<dyn QueueHandler>> {
        Ok(Box::new(Busy { trick: self.trick, goes: Arc::clone(&self.goes) }))
    }
}

struct Busy {
    trick: Trick,
    goes: Arc<Event>,
}

impl QueueHandler for Busy {
    fn process(&mut self, queues: &mut Queues, queue: u16) -> Result<Work, QueueError> {
        match self.trick {
            Trick::Calls => {
                if let Some(queue) = queues.get(queue) {
                    queue.notify();
                }
                Ok(Work::More)
            }
            Trick::Goes => {
                self.goes.signal().expect("is told");
                Ok(Work::Left)
            }
        }
    }
}

/// A disk that is served until this is dropped.
struct Served {
    directory: tempfile::TempDir,
    is_over: Arc<AtomicBool>,
    goes: Arc<Event>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn new(trick: Trick) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = Listener::bind(&directory.path().join("s")).expect("listens");
        let goes = Arc::new(Event::new().expect("an event"));
        let disk = Disk { trick, goes: Arc::clone(&goes) };
        let server = Server::new(Arc::new(disk), backend::Options::default()).expect("a server");
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, stop) = (Arc::clone(&is_over), Arc::clone(&goes));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Acquire) {
                server.serve(&listener, &stop).expect("serves");
                stop.take().expect("reads");
            }
        });
        Self { directory, is_over, goes, thread: Some(thread) }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        let _ = self.goes.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What comes of a read.
fn read(trick: Trick) -> FrontendError {
    let served = Served::new(trick);
    let timeout = Duration::from_millis(300);
    let session = Options { reconnect_timeout: timeout, ..Options::default() };
    let options = BlkOptions { request_bytes: 4096, timeout, ..BlkOptions::default() };
    let mut driver = BlkDriver::connect(&served.socket(), &session, &options).expect("is ready");
    let started = Instant::now();
    let error = driver.read(0, &mut [0; 512]).expect_err("nothing is done");
    assert!(started.elapsed() < Duration::from_secs(10));
    error
}

#[test]
fn a_disk_that_only_calls_is_given_up_in_time() {
    let error = read(Trick::Calls);
    assert!(matches!(error, FrontendError::RingTimeout { ring: 0, outstanding: 1, .. }), "{error}");
}

#[test]
fn a_disk_that_only_comes_back_is_given_up_in_time() {
    let error = read(Trick::Goes);
    assert!(
        error.is_closed() || matches!(error, FrontendError::RingLost { .. } | FrontendError::NotBack { .. }),
        "{error}"
    );
}

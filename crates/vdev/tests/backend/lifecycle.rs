//! Frontends that come and go: one after the other, ten at once, under load, and a backend that is stopped, started
//! again, or given its socket by its parent.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_vdev::backend::Server;
use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
use kiln_vdev::frontend::Options;
use kiln_vdev::frontend::blk::{BlkDriver, BlkOptions as DriverOptions, BlkRequest};
use kiln_vdev::protocol::Empty;
use kiln_vdev::protocol::frontend::GetFeatures;
use kiln_vdev::socket::{Channel, Event, Listener};

use super::frontend::{Frontend, Killed, Served, TIMEOUT, eventually, open_descriptors, wait_until_it_listens};

fn disk() -> Blk {
    Blk::open(&BlkOptions::new(Backing::Null { bytes: 1 << 20 })).expect("a disk")
}

fn read_once(frontend: &mut Frontend) {
    frontend.negotiate();
    frontend.share_memory();
    let mut ring = frontend.ring(0, 8);
    assert_eq!(ring.request(0, 0, 0, 512), (0, 513));
}

#[test]
fn frontends_are_served_in_turn_and_nothing_of_theirs_is_kept() {
    let served = Served::new(disk());
    read_once(&mut served.frontend());
    eventually("the first has gone", || served.is_idle());
    let before = open_descriptors();
    for _ in 0..20 {
        read_once(&mut served.frontend());
    }
    eventually("all of theirs is closed", || open_descriptors() <= before);
    assert_eq!(served.stop(), 21);
}

#[test]
fn ten_at_once_wait_for_their_turn() {
    let served = Arc::new(Served::new(disk()));
    let threads: Vec<_> = (0..10)
        .map(|_| {
            let served = Arc::clone(&served);
            std::thread::spawn(move || read_once(&mut served.frontend()))
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
}

#[test]
fn a_client_that_stops_in_a_message_does_not_block_others() {
    let served = Served::new(disk());
    let mut stuck = served.connect();
    stuck.send_bytes(&[5, 0, 0, 0, 1, 0, 0], &[]).expect("is sent");
    read_once(&mut served.frontend());
    assert!(stuck.receive().expect_err("it was ended").is_closed());
}

#[test]
fn a_silent_client_may_stay() {
    let served = Served::new(disk());
    let mut frontend = served.frontend();
    std::thread::sleep(Duration::from_millis(1000));
    assert_ne!(frontend.get(&GetFeatures(Empty)), 0, "longer than a message may take");
}

#[test]
fn a_server_ends_at_once_and_takes_its_socket_with_it() {
    let served = Served::new(disk());
    let mut frontend = served.frontend();
    read_once(&mut frontend);
    let socket = served.socket();
    let began = Instant::now();
    assert_eq!(served.stop_keeping_directory().1, 1);
    assert!(began.elapsed() < Duration::from_secs(2));
    assert!(!socket.exists());
    assert!(frontend.channel.receive().expect_err("it has ended").is_closed());
}

#[test]
fn an_inherited_socket_is_served_whether_it_listens_or_is_connected() {
    let stop = Event::new().expect("an event");
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let server = Server::new(Arc::new(disk()), kiln_vdev::backend::Options::default()).expect("a server");
    let stopped = stop.try_clone().expect("clones");
    let thread = std::thread::spawn(move || server.serve_fd(OwnedFd::from(theirs), &stopped).expect("serves"));
    read_once(&mut Frontend::new(Channel::new(ours, "ours", TIMEOUT)));
    assert_eq!(thread.join().expect("no panic"), 1);

    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).expect("listens");
    let server = Server::new(Arc::new(disk()), kiln_vdev::backend::Options::default()).expect("a server");
    let stopped = stop.try_clone().expect("clones");
    let thread = std::thread::spawn(move || server.serve_fd(OwnedFd::from(listener), &stopped).expect("serves"));
    for _ in 0..2 {
        read_once(&mut Frontend::new(Channel::connect(&path, TIMEOUT).expect("connects")));
    }
    stop.signal().expect("is told");
    assert_eq!(thread.join().expect("no panic"), 2);

    let (pipe, _other) = std::io::pipe().expect("a pipe");
    let server = Server::new(Arc::new(disk()), kiln_vdev::backend::Options::default()).expect("a server");
    assert!(server.serve_fd(OwnedFd::from(pipe), &stop).is_err());
    assert!(stop.as_fd().try_clone_to_owned().is_ok());
}

#[test]
fn requests_survive_backends_that_come_and_go() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(8 << 20).expect("grows");
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("s");
    let start = || {
        let disk = Blk::open(&BlkOptions::new(Backing::File(file.path().to_owned()))).expect("a disk");
        let stop = Event::new().expect("an event");
        let server = Server::new(Arc::new(disk), kiln_vdev::backend::Options::default()).expect("a server");
        let (listener, stopped) = (Listener::bind(&socket).expect("listens"), stop.try_clone().expect("clones"));
        let thread = std::thread::spawn(move || server.serve(&listener, &stopped).expect("serves"));
        (stop, thread)
    };
    let mut running = Some(start());
    let mut driver = BlkDriver::connect(&socket, &Options::default(), &DriverOptions::default()).expect("starts");
    for round in 0..200_u64 {
        if round % 50 == 49 {
            let (stop, thread) = running.take().expect("runs");
            stop.signal().expect("is told");
            thread.join().expect("no panic");
            running = Some(start());
        }
        let sector = round * 8;
        let data = vec![round as u8; 4096];
        write_until_done(&mut driver, sector, &data);
    }
    let bytes = std::fs::read(file.path()).expect("is read");
    for round in 0..200_usize {
        assert_eq!(bytes[round * 4096..(round + 1) * 4096], vec![round as u8; 4096], "{round}");
    }
    let (stop, thread) = running.take().expect("runs");
    drop(driver);
    stop.signal().expect("is told");
    thread.join().expect("no panic");
}

fn write_until_done(driver: &mut BlkDriver, sector: u64, data: &[u8]) {
    for _ in 0..3 {
        match driver.write(sector, data) {
            Ok(()) => return,
            Err(error) if error.is_closed() => driver.recover().expect("comes back"),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("sector {sector} was not written");
}

/// A disk in another process: this test again, in a process whose environment has the file and the socket.
const SERVED_FILE: &str = "KILN_TEST_SERVED_FILE";
const SERVED_SOCKET: &str = "KILN_TEST_SERVED_SOCKET";

/// Serves that file on that socket in a process of its own.
fn start(file: &Path, socket: &Path) -> Killed {
    let variables = [(SERVED_FILE, file), (SERVED_SOCKET, socket)];
    Killed::start("lifecycle::nothing_is_lost_or_torn_when_backends_are_killed_under_load", &variables)
}

#[test]
fn nothing_is_lost_or_torn_when_backends_are_killed_under_load() {
    if let (Some(file), Some(socket)) = (std::env::var_os(SERVED_FILE), std::env::var_os(SERVED_SOCKET)) {
        let disk = Blk::open(&BlkOptions::new(Backing::File(file.into()))).expect("a disk");
        let server = Server::new(Arc::new(disk), kiln_vdev::backend::Options::default()).expect("a server");
        let listener = Listener::bind(socket.as_ref()).expect("listens");
        server.serve(&listener, &Event::new().expect("an event")).expect("serves");
        return;
    }
    const BLOCKS: u64 = 512;
    for packed in [false, true] {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(BLOCKS * 4096).expect("grows");
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("s");
        let mut backend = start(file.path(), &socket);
        wait_until_it_listens(&socket);
        let options = DriverOptions { packed, depth: 32, request_bytes: 4096, ..DriverOptions::default() };
        let mut driver = BlkDriver::connect(&socket, &Options::default(), &options).expect("starts");
        let (mut submitted, mut done, mut kills) = (0, 0, 0);
        while done < 4 * BLOCKS {
            let queue = &mut driver.queues_mut()[0];
            while submitted < 4 * BLOCKS
                && let Some(slot) = queue.reserve()
            {
                // Each block is written four times, the last time with its own number.
                let block = submitted % BLOCKS;
                let round = (submitted / BLOCKS) as u8;
                queue.data(slot).copy_from(&[block as u8 ^ (3 - round); 4096]);
                queue.submit(slot, BlkRequest::Write { sector: block * 8, bytes: 4096 }).expect("has room");
                submitted += 1;
            }
            if kills < 3 && done >= (kills + 1) * BLOCKS {
                kills += 1;
                queue.publish().expect("kicks");
                drop(backend);
                backend = start(file.path(), &socket);
            }
            let queue = &mut driver.queues_mut()[0];
            let next = queue.publish().and_then(|()| queue.next_done());
            match next {
                Ok(next) => {
                    queue.release(next.slot);
                    done += 1;
                }
                Err(error) if error.is_closed() => driver.recover().expect("comes back"),
                Err(error) => panic!("{error}"),
            }
        }
        let bytes = std::fs::read(file.path()).expect("is read");
        for (block, bytes) in bytes.chunks(4096).enumerate() {
            assert!(bytes.iter().all(|byte| *byte == block as u8), "block {block}, packed: {packed}");
        }
    }
}

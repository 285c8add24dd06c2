//! Hostile frontends by the thousand against one server: afterwards the process holds what it held before, in descriptors,
//! threads and memory. In a binary of its own, because that is counted for the whole process.

use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_vdev::backend::{Options, Server};
use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
use kiln_vdev::memory::SharedFile;
use kiln_vdev::protocol::frontend::*;
use kiln_vdev::protocol::{
    DeviceStateTransfer, Empty, Flags, Inflight, Log, MemoryRegion, MemoryTable, Message, ProtocolFeatures,
    VringAddress, VringFile, VringState,
};
use kiln_vdev::random::Random;
use kiln_vdev::socket::{Channel, Event, Listener};
use kiln_vdev::virtio::feature;
use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, ftruncate, memfd_create};

/// Sessions before the first look at what is held: by then every kind of session ran at least once.
const SESSIONS_BEFORE: u64 = 200;
const GUEST: u64 = 0x1_0000;
const USER: u64 = 0x7f00_0000;
const MEMORY_BYTES: u64 = 0x10_0000;
/// What an allocator keeps of what it was given back, in pieces.
const SLACK_BYTES: usize = 6 << 20;
/// A server that serves no frontend any more.
const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn hostile_sessions_leave_nothing_behind() {
    campaign(600);
}

#[test]
fn soak_ten_thousand_hostile_sessions_leave_nothing_behind() {
    campaign(10_000);
}

fn campaign(sessions: u64) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("s");
    let listener = Listener::bind(&path).expect("listens");
    let disk = Blk::open(&BlkOptions::new(Backing::Null { bytes: 1 << 20 })).expect("a disk");
    let options = Options { message_timeout: Duration::from_millis(20), ..Options::default() };
    let server = Server::new(Arc::new(disk), options).expect("a server");
    let stop = Event::new().expect("an event");
    let stopped = stop.try_clone().expect("clones");
    let thread = std::thread::spawn(move || server.serve(&listener, &stopped).expect("serves"));
    let mut dice = Dice(Random::new(1));
    let mut held = None;
    for session in 0..sessions {
        if session == SESSIONS_BEFORE {
            held = Some(Held::now());
        }
        let channel = Channel::connect(&path, DEADLINE).expect("connects");
        Peer { channel, dice: &mut dice }.attack(session);
    }
    // The last frontend is served: all before have been closed.
    let mut last = Channel::connect(&path, DEADLINE).expect("connects");
    let (features, _) = last.call(&GetFeatures(Empty), &[]).expect("is served");
    assert_ne!(features & feature::VERSION_1, 0);
    drop(last);
    held.expect("was taken down").compare();
    stop.signal().expect("is told");
    assert_eq!(thread.join().expect("no panic"), sessions + 1);
}

/// What this process holds.
struct Held {
    descriptors: usize,
    threads: usize,
    resident: usize,
}

impl Held {
    fn now() -> Self {
        let count = |what: &str| std::fs::read_dir(what).expect("is there").count();
        let statm = std::fs::read_to_string("/proc/self/statm").expect("is there");
        let pages: usize = statm.split(' ').nth(1).expect("is there").parse().expect("a number");
        Self { descriptors: count("/proc/self/fd"), threads: count("/proc/self/task"), resident: pages * 4096 }
    }

    /// The last session may not have ended yet on either side.
    fn compare(&self) {
        const UNDER_WAY: usize = 12;
        let deadline = Instant::now() + DEADLINE;
        loop {
            let now = Self::now();
            let fits = now.descriptors <= self.descriptors + UNDER_WAY
                && now.threads <= self.threads + 1
                && now.resident <= self.resident + SLACK_BYTES;
            if fits {
                return;
            }
            let grown = now.resident.saturating_sub(self.resident);
            let (descriptors, threads) = (now.descriptors, now.threads);
            assert!(
                Instant::now() < deadline,
                "{descriptors} descriptors ({} before), {threads} threads ({} before), {grown} bytes more",
                self.descriptors,
                self.threads,
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The same in every run.
struct Dice(Random);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0.number()
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count.div_ceil(8)).flat_map(|_| self.next().to_ne_bytes()).take(count).collect()
    }
}

struct Peer<'a> {
    channel: Channel,
    dice: &'a mut Dice,
}

impl Peer<'_> {
    /// One of the ways to be hostile, in turn; then it hangs up in the middle of whatever is going on.
    fn attack(&mut self, session: u64) {
        match session % 9 {
            0 => {
                let bytes = self.dice.bytes(300);
                let _ = self.channel.send_bytes(&bytes, &[]);
            }
            1 => self.half_a_message(),
            2 => self.descriptors(),
            3 => self.running(|peer, file, ring| {
                let _ = ftruncate(file, peer.dice.next() % MEMORY_BYTES);
                let _ = ring.kick.signal();
            }),
            4 => self.running(|_, _, ring| {
                // Once in a while, as each costs the server a tenth of a second.
                if session % 90 == 4 {
                    let _ = rustix::io::write(&ring.call, &(u64::MAX - 1).to_ne_bytes());
                    let _ = fcntl_setfl(&ring.call, OFlags::RDWR);
                }
                let _ = ring.kick.signal();
            }),
            5 => self.running(|peer, file, ring| {
                for _ in 0..4 {
                    let bytes = peer.dice.bytes(2048);
                    let _ = rustix::io::pwrite(file, &bytes, 0);
                    let _ = ring.kick.signal();
                }
            }),
            6 => self.states(),
            7 => self.records(),
            _ => self.numbers(),
        }
    }

    /// Sends something, and does not wait for the result.
    fn say<M: Message>(&mut self, message: &M, fds: &[BorrowedFd<'_>]) {
        let _ = self.channel.send_with(message, Flags::request_with_reply(), fds);
    }

    fn half_a_message(&mut self) {
        let _ = self.channel.send_bytes(&[12, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1], &[]);
        if self.dice.next().is_multiple_of(4) {
            // Until the server has had enough.
            let _ = self.channel.receive();
        }
    }

    fn descriptors(&mut self) {
        let event = Event::new().expect("an event");
        let _ = self.channel.send_raw(13, Flags::request(), &[0; 8], &vec![event.as_fd(); 60]);
        let _ = self.channel.send_bytes(&[1], &[event.as_fd(); 20]);
    }

    fn negotiate(&mut self) {
        let features = feature::VERSION_1 | feature::PROTOCOL_FEATURES | feature::RING_INDIRECT_DESC;
        let without = ProtocolFeatures::INBAND_NOTIFICATIONS | ProtocolFeatures::GPA_ADDRESSES;
        let Ok((offered, _)) = self.channel.call(&GetProtocolFeatures(Empty), &[]) else { return };
        let wanted = ProtocolFeatures::from_bits(offered).difference(without);
        self.say(&SetProtocolFeatures(wanted.bits()), &[]);
        self.say(&SetFeatures(features), &[]);
    }

    /// A ring that runs, and what is done to it.
    fn running(&mut self, then: impl FnOnce(&mut Self, BorrowedFd<'_>, &Ring)) {
        self.negotiate();
        let file = memfd_create("memory", MemfdFlags::CLOEXEC).expect("a file");
        ftruncate(&file, MEMORY_BYTES).expect("grows");
        let region = MemoryRegion { guest_address: GUEST, size: MEMORY_BYTES, user_address: USER, mmap_offset: 0 };
        self.say(&SetMemTable(MemoryTable(vec![region])), &[file.as_fd()]);
        let ring = Ring { kick: Event::new().expect("an event"), call: Event::new().expect("an event") };
        // A chain of a header, data and a status, sixteen times available.
        let mut table = Vec::new();
        for (place, (bytes, flags)) in [(16_u32, 1_u16), (512, 3), (1, 2)].into_iter().enumerate() {
            table.extend_from_slice(&(GUEST + 0x4000 * (place as u64 + 1)).to_le_bytes());
            table.extend_from_slice(&bytes.to_le_bytes());
            table.extend_from_slice(&flags.to_le_bytes());
            table.extend_from_slice(&(place as u16 + 1).to_le_bytes());
        }
        let _ = rustix::io::pwrite(&file, &table, 0);
        let _ = rustix::io::pwrite(&file, &[0, 0, 1, 0], 0x400);
        let index = (self.dice.next() % 4) as u8;
        let state = |num| VringState { index: index.into(), num };
        let address = VringAddress {
            index: index.into(),
            flags: 0,
            descriptor: USER,
            available: USER + 0x400,
            used: USER + 0x800,
            log: 0,
        };
        self.say(&SetVringNum(state(16)), &[]);
        self.say(&SetVringAddr(address), &[]);
        self.say(&SetVringCall(VringFile::with_descriptor(index)), &[ring.call.as_fd()]);
        self.say(&SetVringKick(VringFile::with_descriptor(index)), &[ring.kick.as_fd()]);
        self.say(&SetVringEnable(state(1)), &[]);
        then(self, file.as_fd(), &ring);
        if self.dice.next().is_multiple_of(2) {
            self.say(&GetVringBase(state(0)), &[]);
        }
    }

    /// States that never come, or come without end.
    fn states(&mut self) {
        self.negotiate();
        let (read, mut write) = std::io::pipe().expect("a pipe");
        let transfer = DeviceStateTransfer { direction: 1, phase: 0 };
        self.say(&SetDeviceStateFd(transfer), &[read.as_fd()]);
        let _ = write.write(&self.dice.bytes(8000));
        self.say(&CheckDeviceState(Empty), &[]);
        let (one, _other) = UnixStream::pair().expect("sockets");
        self.say(&SetBackendReqFd(Empty), &[one.as_fd()]);
    }

    /// Records of requests, and logs, of wrong sizes.
    fn records(&mut self) {
        self.negotiate();
        let file = SharedFile::new(0x2000).expect("a file");
        let num_queues = (self.dice.next() % 6) as u16;
        let wanted = Inflight { mmap_size: self.dice.next() % 0x4000, mmap_offset: 0, num_queues, queue_size: 128 };
        self.say(&GetInflightFd(wanted), &[]);
        self.say(&SetInflightFd(wanted), &[file.as_fd()]);
        let log = Log { size: self.dice.next() % 0x4000, offset: self.dice.next() % 0x1000 };
        let _ = self.channel.send_raw(6, Flags::request(), &log_bytes(log), &[file.as_fd()]);
    }

    /// Every message with numbers of no meaning.
    fn numbers(&mut self) {
        self.negotiate();
        for _ in 0..20 {
            let (number, size) = ((self.dice.next() % 48) as u32, (self.dice.next() % 48) as usize);
            let payload = self.dice.bytes(size);
            if self.channel.send_raw(number, Flags::request_with_reply(), &payload, &[]).is_err() {
                return;
            }
        }
    }
}

struct Ring {
    kick: Event,
    call: Event,
}

fn log_bytes(log: Log) -> Vec<u8> {
    [log.size.to_ne_bytes(), log.offset.to_ne_bytes()].concat()
}

//! Guests that use vhost-user devices, of our own backends and of others.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use kiln_e2e::{Backend, Kiln, WAIT_DEADLINE, guest_tool};
use kiln_e2e_guest::disk::TOLD_IN_A_PASS;
use kiln_e2e_guest::pattern::{BLOCK_BYTES, check_block, stream_bytes};
use tempfile::TempDir;

const DISK_BYTES: u64 = 32 << 20;
/// An offset far from the start of the disk.
const GUEST_PART_BYTES: u64 = 8 << 20;
const BLOCKS: u64 = 1024;
const PASSES: u64 = 2;
const PORT: u32 = 5000;
const PACKETS: u64 = 20;

/// A folder of one test.
pub struct Place {
    folder: TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("backend.sock")
    }

    /// A disk of zeros.
    pub fn disk(&self) -> PathBuf {
        let disk = self.path("disk.raw");
        File::create_new(&disk).and_then(|file| file.set_len(DISK_BYTES)).expect("a sparse file");
        disk
    }
}

/// The argument of `--vhost-user`.
pub fn device(kind: &str, socket: &Path, options: &str) -> String {
    format!("{kind}:{}{options}", socket.display())
}

fn tool_in() -> String {
    format!("{}:/tool", guest_tool().display())
}

/// The guest reads the content of the file, and its writes are in the file.
pub fn disk_is_read_and_written(backend: &Backend, disk: &Path, options: &str) {
    let (host_side, guest_side) = (stream_bytes(1 << 20, 1), stream_bytes(4 << 20, 2));
    File::options().write(true).open(disk).and_then(|file| file.write_all_at(&host_side, 0)).expect("is written");
    let script = "dd if=/dev/vda bs=1M count=1 iflag=direct 2>/dev/null; \
                  dd of=/dev/vda bs=1M seek=8 conv=fsync 2>/dev/null";
    let flags = ["-i", "-c", "2", "--vhost-user", &device("blk", backend.socket(), options)];
    let outcome = Kiln::shell(&flags, script).run_with(&guest_side);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(outcome.stdout == host_side, "the guest read {} other bytes", outcome.stdout.len());
    let mut written = vec![0; guest_side.len()];
    File::open(disk).and_then(|file| file.read_exact_at(&mut written, GUEST_PART_BYTES)).expect("is read");
    assert!(written == guest_side, "the file has other bytes than the guest wrote");
}

/// Kills the backend with SIGKILL again and again while the guest writes and reads with `depth` requests in flight. No
/// request fails, and at the end each block has its last content.
pub fn disk_survives_kills_under_load(backend: &mut Backend, disk: &Path, depth: u64) {
    let script = format!("/tool disk /dev/vda {BLOCKS} {PASSES} {depth}");
    let flags = ["--in", &tool_in(), "--vhost-user", &device("blk", backend.socket(), "")];
    let mut running = Kiln::shell(&flags, &script).start();
    let output = BufReader::new(running.0.stdout.take().expect("stdout is piped"));
    let (mut kills, mut last) = (0, String::new());
    for line in output.lines() {
        last = line.expect("text");
        if last.starts_with("at ") {
            backend.kill_and_restart();
            kills += 1;
        }
    }
    let mut errors = String::new();
    running.0.stderr.take().expect("stderr is piped").read_to_string(&mut errors).expect("text");
    assert_eq!((running.wait(), kills), (0, PASSES * TOLD_IN_A_PASS), "{last} {errors}");
    assert!(last.starts_with(&format!("done {} writes ", BLOCKS * PASSES)), "{last}");

    let file = File::open(disk).expect("opens");
    let mut block = [0; BLOCK_BYTES];
    for number in 0..BLOCKS {
        file.read_exact_at(&mut block, number * BLOCK_BYTES as u64).expect("is read");
        check_block(&block, number, PASSES).expect("is what was written last");
    }
}

/// The guest connects to the host at `streams_PORT`, then the host connects to the guest at `streams`. Each sends data
/// and gets it back.
pub fn streams_go_both_ways(backend: &Backend, streams: &Path, packet_bytes: usize) {
    let host = UnixListener::bind(format!("{}_{PORT}", streams.display())).expect("listens");
    let host = std::thread::spawn(move || echo(&host.accept().expect("the guest calls").0));
    let flags = ["--in", &tool_in(), "--vhost-user", &device("vsock", backend.socket(), "")];
    let script = format!("/tool vsock-call {PORT} {packet_bytes} {PACKETS} && /tool vsock-serve {PORT} 1");
    let mut running = Kiln::shell(&flags, &script).start();
    let mut errors = running.0.stderr.take().expect("stderr is piped");
    let mut lines = BufReader::new(running.0.stdout.take().expect("stdout is piped")).lines();
    let mut expect = |words: &str| {
        let line = lines.next().map(|line| line.expect("text")).unwrap_or_default();
        if !line.starts_with(words) {
            let mut said = String::new();
            errors.read_to_string(&mut said).expect("text");
            panic!("not `{words}` but `{line}`: {said}");
        }
    };
    expect("all came back");
    host.join().expect("no panic");

    expect("listening");
    call(streams, packet_bytes);
    expect("echoed ");
    assert_eq!(running.wait(), 0);
}

/// Sends all data back, up to its end.
fn echo(mut stream: &UnixStream) {
    stream.set_read_timeout(Some(WAIT_DEADLINE)).expect("is set");
    let mut room = vec![0; 64 << 10];
    loop {
        match stream.read(&mut room).expect("the guest goes on") {
            0 => return,
            count => stream.write_all(&room[..count]).expect("the guest reads"),
        }
    }
}

/// Connects to the guest's port and compares the data that is sent back.
fn call(streams: &Path, packet_bytes: usize) {
    let mut stream = UnixStream::connect(streams).expect("the device listens");
    stream.set_read_timeout(Some(WAIT_DEADLINE)).expect("is set");
    // In one piece: vhost-device-vsock reads the line once and drops the connection if its end is missing.
    stream.write_all(format!("CONNECT {PORT}\n").as_bytes()).expect("is sent");
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the guest takes the call");
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"OK "), "{}", String::from_utf8_lossy(&answer));
    for round in 0..PACKETS {
        let sent = stream_bytes(packet_bytes, round);
        stream.write_all(&sent).expect("is sent");
        let mut back = vec![0; packet_bytes];
        stream.read_exact(&mut back).expect("comes back");
        assert!(back == sent, "packet {round} came back changed");
    }
}

/// The guest is 10.77.0.2, and every ping of it at 10.77.0.1 is answered.
pub fn every_ping_is_answered(backend: &Backend) {
    let script = "ip addr add 10.77.0.2/24 dev eth0 && ip link set eth0 up && ping -c 20 -i 0.2 10.77.0.1";
    let outcome = Kiln::shell(&["--vhost-user", &device("net", backend.socket(), "")], script).run();
    let words = "20 packets transmitted, 20 packets received, 0% packet loss";
    assert!(outcome.code == 0 && outcome.text().contains(words), "{}{}", outcome.text(), outcome.stderr);
}

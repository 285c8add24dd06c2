//! Guests on devices that other people's backends serve: their data arrives, also where the backend is killed under load.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use kiln_e2e::{Backend, Kiln, WAIT_DEADLINE, guest_tool};
use kiln_e2e_guest::disk::TOLD_IN_A_PASS;
use kiln_e2e_guest::pattern::{BLOCK_BYTES, check_block, stream_bytes};
use tempfile::TempDir;

const DISK_BYTES: u64 = 32 << 20;
const BLOCKS: u64 = 4096;
const PASSES: u64 = 2;
const CID: u32 = 1234;
const PORT: u32 = 5000;
/// Guests from Linux 6.12 on send what is over 32 KiB in three parts and more, and vhost-device-vsock takes two.
const PACKET_BYTES: usize = 16 << 10;
const PACKETS: u64 = 20;

/// A folder with a disk of zeros in it.
fn place() -> (TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("disk.raw");
    File::create_new(&disk).and_then(|file| file.set_len(DISK_BYTES)).expect("a sparse file");
    let socket = folder.path().join("backend.sock");
    (folder, disk, socket)
}

fn word(kind: &str, socket: &Path, options: &str) -> String {
    format!("{kind}:{}{options}", socket.display())
}

fn tool_in() -> String {
    format!("{}:/tool", guest_tool().display())
}

#[test]
fn a_guest_reads_what_the_file_has_and_the_file_has_what_it_writes() {
    let (_folder, disk, socket) = place();
    let host_side = stream_bytes(1 << 20, 1);
    File::options().write(true).open(&disk).and_then(|file| file.write_all_at(&host_side, 0)).expect("is written");
    let _backend = Backend::storage_daemon(&disk, &socket);
    let script = "dd if=/dev/vda bs=1M count=1 iflag=direct 2>/dev/null; \
                  dd of=/dev/vda bs=1M seek=8 conv=fsync 2>/dev/null";
    let guest_side = stream_bytes(4 << 20, 2);
    let outcome = Kiln::shell(&["-i", "--vhost-user", &word("blk", &socket, "")], script).run_with(&guest_side);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(outcome.stdout == host_side, "the guest read {} other bytes", outcome.stdout.len());
    let mut written = vec![0; guest_side.len()];
    File::open(&disk).and_then(|file| file.read_exact_at(&mut written, 8 << 20)).expect("is read");
    assert!(written == guest_side, "the file has other bytes than the guest wrote");
}

#[test]
fn a_backend_killed_under_load_loses_and_tears_nothing() {
    let (_folder, disk, socket) = place();
    let mut backend = Backend::storage_daemon(&disk, &socket);
    let script = format!("/tool disk /dev/vda {BLOCKS} {PASSES}");
    let flags = ["--in", &tool_in(), "--vhost-user", &word("blk", &socket, "")];
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
    let code = running.wait();
    let mut errors = String::new();
    running.0.stderr.take().expect("stderr is piped").read_to_string(&mut errors).expect("text");
    assert_eq!((code, kills), (0, PASSES * TOLD_IN_A_PASS), "{last} {errors}");
    assert!(last.starts_with(&format!("done {} writes ", BLOCKS * PASSES)), "{last}");

    let file = File::open(&disk).expect("opens");
    let mut block = [0; BLOCK_BYTES];
    for number in 0..BLOCKS {
        file.read_exact_at(&mut block, number * BLOCK_BYTES as u64).expect("is read");
        check_block(&block, number, PASSES).expect("is what was written last");
    }
}

#[test]
fn a_share_is_mounted_by_its_tag() {
    let folder = tempfile::tempdir().expect("a folder");
    let (shared, socket) = (folder.path().join("shared"), folder.path().join("backend.sock"));
    fs::create_dir(&shared).expect("is made");
    fs::write(shared.join("host"), "from the host").expect("is written");
    let _backend = Backend::virtiofsd(&shared, &socket);
    let flags = ["--vhost-user", &word("fs", &socket, ",tag=a-share.1")];
    let script = "mount -t virtiofs a-share.1 /mnt && cat /mnt/host && echo from the guest > /mnt/guest && umount /mnt";
    let outcome = Kiln::shell(&flags, script).run();
    assert_eq!((outcome.code, outcome.text().as_str()), (0, "from the host"), "{}", outcome.stderr);
    assert_eq!(fs::read_to_string(shared.join("guest")).expect("is there"), "from the guest\n");
}

#[test]
fn streams_go_both_ways_over_a_vsock_device() {
    let folder = tempfile::tempdir().expect("a folder");
    let (streams, socket) = (folder.path().join("streams"), folder.path().join("backend.sock"));
    let _backend = Backend::vsock_device(CID, &streams, &socket);
    let host = UnixListener::bind(folder.path().join(format!("streams_{PORT}"))).expect("listens");
    let host = std::thread::spawn(move || echo(&host.accept().expect("the guest calls").0));
    let flags = ["--in", &tool_in(), "--vhost-user", &word("vsock", &socket, "")];
    let script = format!("/tool vsock-call {PORT} {PACKET_BYTES} {PACKETS} && /tool vsock-serve {PORT} 1");
    let mut running = Kiln::shell(&flags, &script).start();
    let mut lines = BufReader::new(running.0.stdout.take().expect("stdout is piped")).lines();
    let mut next = || lines.next().map(|line| line.expect("text")).unwrap_or_default();
    assert_eq!(next(), "all came back");
    host.join().expect("no panic");

    assert_eq!(next(), "listening");
    call(&streams);
    assert!(next().starts_with("echoed "));
    assert_eq!(running.wait(), 0);
}

/// Sends back what comes, to its end.
fn echo(mut stream: &UnixStream) {
    stream.set_read_timeout(Some(WAIT_DEADLINE)).expect("is set");
    let mut room = vec![0; PACKET_BYTES];
    loop {
        match stream.read(&mut room).expect("the guest goes on") {
            0 => return,
            count => stream.write_all(&room[..count]).expect("the guest reads"),
        }
    }
}

/// Calls the guest's port and compares what comes back.
fn call(streams: &Path) {
    let mut stream = UnixStream::connect(streams).expect("the device listens");
    stream.set_read_timeout(Some(WAIT_DEADLINE)).expect("is set");
    writeln!(stream, "CONNECT {PORT}").expect("is sent");
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the guest takes the call");
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"OK "), "{}", String::from_utf8_lossy(&answer));
    for round in 0..PACKETS {
        let sent = stream_bytes(PACKET_BYTES, round);
        stream.write_all(&sent).expect("is sent");
        let mut back = vec![0; PACKET_BYTES];
        stream.read_exact(&mut back).expect("comes back");
        assert!(back == sent, "packet {round} came back changed");
    }
}

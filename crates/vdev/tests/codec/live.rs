//! A live session: QEMU on a storage daemon, with us between them.

use std::io::Write as _;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln_vdev::protocol::{FrontendRequest, Payload, ProtocolFeatures};
use kiln_vdev::socket::{Channel, Listener, RawMessage, wait_readable};

use super::transcript::{Line, Side};

/// The disk of the session.
pub const DISK_BYTES: u64 = 64 << 20;
/// The longest that anything here is waited for.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often it is looked whether the firmware has come further.
const LOOK: Duration = Duration::from_millis(20);
/// What the firmware prints when it has read the disk, which is empty.
const DISK_WAS_READ: &str = "not a bootable disk";

/// The daemon's protocol features that QEMU gets.
#[derive(Debug, Clone, Copy)]
pub struct Steering {
    /// These it has, and QEMU does not learn of it.
    pub withheld: ProtocolFeatures,
    /// These it does not offer, and QEMU may use them.
    pub granted: ProtocolFeatures,
}

/// Runs QEMU on a storage daemon with us between them: its firmware reads the disk, is reset, reads it again, and QEMU
/// ends.
pub fn record(directory: &Path, steering: Steering) -> Vec<Line> {
    let [disk, front, back, firmware] = ["disk", "front", "back", "firmware"].map(|name| directory.join(name));
    std::fs::File::create(&disk).and_then(|file| file.set_len(DISK_BYTES)).expect("a disk");
    let export =
        format!("type=vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path={},writable=on", back.display());
    let _daemon = Process::start(
        Command::new("qemu-storage-daemon")
            .args(["--blockdev", &format!("driver=file,filename={},node-name=d0", disk.display())])
            .args(["--export", &export]),
    );
    let listener = Listener::bind(&front).expect("listens");
    let qemu = Process::start(
        Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-M", "q35,memory-backend=m0", "-display", "none", "-nodefaults", "-m", "128M"])
            .args(["-object", "memory-backend-memfd,id=m0,size=128M,share=on", "-qmp", "stdio"])
            .args(["-chardev", &format!("socket,id=c,path={}", front.display())])
            .args(["-device", "vhost-user-blk-pci,chardev=c,bootindex=0"])
            .args(["-chardev", &format!("file,id=f,path={}", firmware.display())])
            .args(["-device", "isa-debugcon,iobase=0x402,chardev=f"]),
    );
    let frontend = listener.accept(Some(DEADLINE), DEADLINE).expect("the socket works").expect("QEMU connects");
    let backend = connect(&back);
    Middle { frontend, backend, steering, lines: Vec::new() }.run(qemu, &firmware)
}

/// Connects as soon as the peer listens.
fn connect(path: &Path) -> Channel {
    let started = Instant::now();
    loop {
        match Channel::connect(path, DEADLINE) {
            Ok(channel) => return channel,
            Err(error) => assert!(started.elapsed() < DEADLINE, "{error}"),
        }
        std::thread::sleep(LOOK);
    }
}

/// Passes on the messages of both sides, and keeps them.
struct Middle {
    frontend: Channel,
    backend: Channel,
    steering: Steering,
    lines: Vec<Line>,
}

impl Middle {
    fn run(mut self, mut qemu: Process, firmware: &Path) -> Vec<Line> {
        qemu.command("qmp_capabilities");
        let mut steps = [(1, "system_reset"), (2, "quit")].into_iter().peekable();
        let deadline = Instant::now() + DEADLINE;
        while self.pass_one() {
            let reads = std::fs::read_to_string(firmware).map_or(0, |log| log.matches(DISK_WAS_READ).count());
            if let Some((_, name)) = steps.next_if(|(wanted, _)| reads >= *wanted) {
                qemu.command(name);
            }
            assert!(Instant::now() < deadline, "QEMU did not end in time; it said last: {:?}", self.lines.last());
        }
        self.lines
    }

    /// Waits a little for a message and passes it on. Returns whether QEMU is still there.
    fn pass_one(&mut self) -> bool {
        match wait_readable([self.frontend.as_fd(), self.backend.as_fd()], Some(LOOK)).expect("polls") {
            [true, _] => match self.frontend.receive_unchecked() {
                Ok(message) => self.pass(Side::Frontend, message),
                Err(error) => {
                    assert!(error.is_closed(), "QEMU: {error}");
                    return false;
                }
            },
            [_, true] => {
                let message = self.backend.receive_unchecked().expect("the daemon is there");
                self.pass(Side::Backend, message);
            }
            _ => {}
        }
        true
    }

    fn pass(&mut self, side: Side, message: RawMessage) {
        let RawMessage { header, mut payload, fds } = message;
        if side == Side::Backend && header.request == FrontendRequest::GetProtocolFeatures.number() {
            payload = self.steered(&payload);
        }
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let to = if side == Side::Frontend { &mut self.backend } else { &mut self.frontend };
        // The end of a peer that has disconnected by now is noticed when it is read.
        let _ = to.send_raw(header.request, header.flags, &payload, &borrowed);
        self.lines.push(Line { side, header, payload, fds: fds.len() });
    }

    fn steered(&self, payload: &[u8]) -> Vec<u8> {
        let offered = ProtocolFeatures::from_bits(u64::decode(payload).expect("protocol features"));
        let told = offered.difference(self.steering.withheld).union(self.steering.granted);
        told.bits().to_ne_bytes().to_vec()
    }
}

/// A process that ends with its owner, also when a test panics.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|error| panic!("failed to start `{}`: {error}", command.get_program().display())))
    }

    /// Sends QEMU a command, without waiting until it is done: it may wait for us.
    fn command(&mut self, name: &str) {
        let input = self.0.stdin.as_mut().expect("is piped");
        writeln!(input, r#"{{"execute":"{name}"}}"#).expect("QEMU is there");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has exited on its own is only waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

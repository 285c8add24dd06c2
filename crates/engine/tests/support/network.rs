//! Networks of the host for guests: a namespace with a TAP device. Both are removed with the test, however it ends.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::thread;

use camino::Utf8PathBuf;
use kiln_engine::{Attachment, Tap};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The name of the TAP device in each namespace.
pub const DEVICE: &str = "tap0";
/// The host's address in each of them, and the guest's.
pub const HOST: &str = "10.77.0.1";
pub const GUEST: &str = "10.77.0.2";
const HOST_MAC: &str = "02:fc:00:00:00:01";
/// The port on which the host serves its word.
pub const PORT: u16 = 777;

/// A network namespace that lives as long as this value. Its one process ends when its input does, also when this test
/// is killed. The namespace and the device end with it.
pub struct Network {
    holder: Child,
}

impl Network {
    /// A namespace with a TAP device. Its host side has [`HOST`] and serves `word` to every client of [`PORT`].
    pub fn serving(word: &'static str) -> Self {
        let script = "ip link set lo up && echo made && exec cat";
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`unshare` of util-linux");
        let mut line = String::new();
        let stdout = holder.stdout.as_mut().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("reads");
        assert_eq!(line, "made\n", "a network namespace needs root");
        let this = Self { holder };
        this.make_device();
        this.serve(HOST, word);
        this
    }

    /// Its file.
    pub fn namespace(&self) -> Utf8PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    /// Its TAP device, for a card.
    pub fn tap(&self) -> Attachment {
        Attachment::Tap(Tap { device: DEVICE.into(), namespace: Some(self.namespace()) })
    }

    /// Its host side always has the same address, because a guest that continues remembers it.
    pub fn make_device(&self) {
        let script = format!(
            "ip tuntap add {DEVICE} mode tap && ip link set {DEVICE} address {HOST_MAC} && \
             ip addr add {HOST}/24 dev {DEVICE} && ip link set {DEVICE} up"
        );
        self.run(&script);
    }

    pub fn remove_device(&self) {
        self.run(&format!("ip link del {DEVICE}"));
    }

    /// Serves a word at one of its addresses until this test ends.
    pub fn serve(&self, address: &'static str, word: &'static str) {
        let namespace = self.namespace();
        // A socket stays in the namespace of the thread that made it.
        let listen = move || {
            let file = std::fs::File::open(namespace).expect("is there");
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("needs root");
            TcpListener::bind((address, PORT)).expect("is free")
        };
        let listener = thread::spawn(listen).join().expect("no panic");
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                drop((&stream).write_all(word.as_bytes()));
            }
        });
    }

    /// Runs a script in it.
    pub fn run(&self, script: &str) {
        let namespace = format!("--net={}", self.namespace());
        let output = Command::new("nsenter").args([&namespace, "sh", "-c", script]).output().expect("runs");
        assert!(output.status.success(), "`{script}`: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.holder.kill().and_then(|()| self.holder.wait()));
    }
}

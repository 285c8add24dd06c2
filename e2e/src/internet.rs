//! A host with an internet of its own, for VMs with `--net nat`: two network namespaces and a link between them.
//!
//! ```text
//!   kiln, its slots ── up0 198.51.100.2 ═══ 198.51.100.1 world0, and all addresses that a test serves
//! ```
//! Both end with the test, however it ends.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::home::TestHome;
use crate::kiln::Kiln;

/// `/run` is its own, so that neither `ip netns` nor the slots meet those of the machine.
const SETUP: &str = "set -e; mount -t tmpfs tmpfs /run; ip link set lo up; ip netns add world; \
     ip link add up0 type veth peer name world0 netns world; \
     ip addr add 198.51.100.2/24 dev up0; ip link set up0 up; ip route add default via 198.51.100.1; \
     ip -n world link set lo up; ip -n world addr add 198.51.100.1/24 dev world0; ip -n world link set world0 up; \
     echo made; exec cat";

/// See the module.
#[derive(Debug)]
pub struct Internet {
    /// Its input is a pipe of this process. The namespaces end with it.
    holder: Child,
}

impl Internet {
    /// With no servers.
    ///
    /// # Panics
    /// If this user is not root, or can't make namespaces.
    pub fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "sh", "-c", SETUP])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`unshare` of util-linux");
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().expect("is piped")).read_line(&mut line).expect("reads");
        assert_eq!(line, "made\n", "namespaces and links need root");
        Self { holder }
    }

    /// Serves a word to each client of an address, until the test ends.
    ///
    /// # Panics
    /// If the address is not valid or is served already.
    pub fn serve(&self, address: &'static str, port: u16, word: &'static str) {
        self.sh(&format!("ip -n world addr add {address}/32 dev lo"));
        let namespace = format!("/proc/{}/root/run/netns/world", self.holder.id());
        // A socket stays in the namespace of the thread that made it.
        let listen = move || {
            let file = std::fs::File::open(namespace).expect("is there");
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("needs root");
            TcpListener::bind((address, port)).expect("is free")
        };
        let listener = thread::spawn(listen).join().expect("no panic");
        thread::spawn(move || {
            for client in listener.incoming() {
                // A client may be gone.
                let _ = client.and_then(|mut client| client.write_all(word.as_bytes()));
            }
        });
    }

    /// A `kiln` on this host.
    pub fn kiln<'a>(&self, home: &TestHome, args: impl IntoIterator<Item = &'a str>) -> Kiln {
        let pid = self.holder.id().to_string();
        home.kiln(args).under("nsenter", &["--target", &pid, "--net", "--mount"])
    }

    /// The output of a script on this host.
    ///
    /// # Panics
    /// If it fails.
    pub fn sh(&self, script: &str) -> String {
        let pid = self.holder.id().to_string();
        let output = Command::new("nsenter").args(["--target", &pid, "--net", "--mount", "sh", "-c", script]).output();
        let output = output.expect("`nsenter` of util-linux");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// All that a VM's network could leave on this host.
    pub fn listing(&self) -> String {
        self.sh("ip -br link; ip -br addr; ip route; ip netns; nft list ruleset; find /run -type f -size +0")
    }
}

impl Default for Internet {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

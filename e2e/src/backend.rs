//! vhost-user backends as processes of this host, which tests start, kill and start again.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::kiln::kiln_binary;
use crate::wait::until;

/// `__SO_ACCEPTCON` as `/proc/net/unix` has it: the socket listens.
const LISTENS: &str = "00010000";

/// A backend that listens. Ended when it is dropped.
#[derive(Debug)]
pub struct Backend {
    program: PathBuf,
    arguments: Vec<OsString>,
    socket: PathBuf,
    child: Child,
}

impl Backend {
    /// Starts `program`, which is to listen at `socket`, an absolute path.
    ///
    /// # Panics
    /// If it can't be started, ends, or does not listen in time.
    pub fn start<S: Into<OsString>>(
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = S>,
        socket: impl Into<PathBuf>,
    ) -> Self {
        let (program, socket) = (program.into(), socket.into());
        let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
        let child = spawn(&program, &arguments);
        let mut this = Self { program, arguments, socket, child };
        this.wait_until_it_listens();
        this
    }

    /// QEMU's storage daemon with a raw file as its disk.
    ///
    /// # Panics
    /// See [`start`](Self::start).
    pub fn storage_daemon(disk: &Path, socket: &Path) -> Self {
        let node = format!("driver=file,node-name=disk,filename={}", disk.display());
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={}",
            socket.display()
        );
        Self::start("qemu-storage-daemon", ["--blockdev", &node, "--export", &export], socket)
    }

    /// virtiofsd with a directory to share.
    ///
    /// # Panics
    /// See [`start`](Self::start). Also if the program was not built.
    pub fn virtiofsd(directory: &Path, socket: &Path) -> Self {
        // A sandbox is not what is tested, and would need root.
        let arguments = ["--sandbox=none".into(), flag("--shared-dir=", directory), flag("--socket-path=", socket)];
        Self::start(tool("KILN_TEST_VIRTIOFSD", "virtiofsd"), arguments, socket)
    }

    /// vhost-device-vsock, which offers the guest's ports at `streams` and takes its calls at `streams_PORT`.
    ///
    /// # Panics
    /// See [`start`](Self::start). Also if the program was not built.
    pub fn vsock_device(cid: u32, streams: &Path, socket: &Path) -> Self {
        let arguments = [format!("--guest-cid={cid}").into(), flag("--uds-path=", streams), flag("--socket=", socket)];
        Self::start(tool("KILN_TEST_VHOST_DEVICE_VSOCK", "vhost-device-vsock"), arguments, socket)
    }

    /// `kiln vhost mock` with a raw file as its disk.
    ///
    /// # Panics
    /// See [`start`](Self::start).
    pub fn mock_disk(disk: &Path, socket: &Path) -> Self {
        Self::mock("blk", &["--file".into(), disk.into()], socket)
    }

    /// `kiln vhost mock` with a network card, behind which a host answers pings at 10.77.0.1.
    ///
    /// # Panics
    /// See [`start`](Self::start).
    pub fn mock_host(socket: &Path) -> Self {
        Self::mock("net", &[], socket)
    }

    /// `kiln vhost mock` with a network card on a TAP device, in a network of its own where the kernel answers pings at
    /// 10.77.0.1.
    ///
    /// # Panics
    /// See [`start`](Self::start).
    pub fn mock_tap(socket: &Path) -> Self {
        let script =
            "ip tuntap add tap0 mode tap && ip addr add 10.77.0.1/24 dev tap0 && ip link set tap0 up && exec \"$@\"";
        let outer = ["--map-root-user", "--net", "sh", "-c", script, "sh"].map(OsString::from);
        let mock = mock_words("net", &["--tap".into(), "tap0".into()], socket);
        Self::start("unshare", outer.into_iter().chain([kiln_binary().into()]).chain(mock), socket)
    }

    /// `kiln vhost mock` with a vsock device, whose guest's ports are at `streams`, and its calls at `streams_PORT`.
    ///
    /// # Panics
    /// See [`start`](Self::start).
    pub fn mock_vsock(cid: u32, streams: &Path, socket: &Path) -> Self {
        Self::mock("vsock", &["--cid".into(), cid.to_string().into(), "--uds".into(), streams.into()], socket)
    }

    fn mock(device: &str, options: &[OsString], socket: &Path) -> Self {
        Self::start(kiln_binary(), mock_words(device, options, socket), socket)
    }

    /// The path of its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Kills it with SIGKILL and starts another one in its place.
    ///
    /// # Panics
    /// If it has ended already. See also [`start`](Self::start).
    pub fn kill_and_restart(&mut self) {
        assert_eq!(self.child.try_wait().expect("a child can be waited for"), None, "the backend exited on its own");
        self.child.kill().expect("it runs");
        self.child.wait().expect("a child can be waited for");
        self.child = spawn(&self.program, &self.arguments);
        self.wait_until_it_listens();
    }

    fn wait_until_it_listens(&mut self) {
        until("a backend that listens", || {
            let ended = self.child.try_wait().expect("a child can be waited for");
            assert_eq!(ended, None, "{} ended at once", self.program.display());
            listens(self.child.id(), &self.socket).then_some(())
        });
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(program: &Path, arguments: &[OsString]) -> Child {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    command.spawn().unwrap_or_else(|error| panic!("{} does not start: {error}", program.display()))
}

fn mock_words(device: &str, options: &[OsString], socket: &Path) -> Vec<OsString> {
    let words = ["vhost", "mock", "--device", device, "--socket"].map(OsString::from);
    words.into_iter().chain([socket.into()]).chain(options.iter().cloned()).collect()
}

fn flag(name: &str, path: &Path) -> OsString {
    let mut flag = OsString::from(name);
    flag.push(path);
    flag
}

/// Checked without a connection, because a backend would serve that as its client. It may be in another network
/// namespace.
fn listens(pid: u32, socket: &Path) -> bool {
    let table = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
    table.lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        words.nth(3) == Some(LISTENS) && words.last().is_some_and(|path| Path::new(path) == socket)
    })
}

/// A program that `scripts/install.sh backends` has built: the one named by `variable`, else the one in this tree.
fn tool(variable: &str, name: &str) -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin").join(name);
    let path = std::env::var_os(variable).map_or_else(built, PathBuf::from);
    assert!(path.is_file(), "no {name} at `{}`: scripts/install.sh backends, or set {variable}", path.display());
    path
}

/// The program that tests copy into guests.
///
/// # Panics
/// If it was not built.
pub fn guest_tool() -> PathBuf {
    let built =
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/x86_64-unknown-linux-gnu/debug/kiln-e2e-guest");
    let path = std::env::var_os("KILN_TEST_GUEST_TOOL").map_or_else(built, PathBuf::from);
    assert!(path.is_file(), "no guest tool at `{}`: make test builds it", path.display());
    path
}

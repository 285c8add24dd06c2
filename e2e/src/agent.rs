//! The real agent as a process of this host: test mode needs no root, no KVM and no VM.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use kiln_engine::link::{GuestLink, LinkError, LinkOptions};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::raw::RawLink;
use crate::wait::{WAIT_DEADLINE, until};

/// How often the state of a process that is being stopped is read.
const STOP_LOOKS: usize = 500;
/// Time between two reads of that state.
const STOP_LOOK_INTERVAL: Duration = Duration::from_micros(200);

/// The agent under test: `KILN_AGENT_BIN`, else the static one of this workspace.
///
/// # Panics
/// If there is no agent. The message has the command that builds it.
pub fn agent_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("KILN_AGENT_BIN") {
        return path.into();
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("e2e stands in the workspace");
    let path = workspace.join("target/x86_64-unknown-linux-gnu/agent/kiln-agent");
    assert!(
        path.exists(),
        "no agent at {}: build it with `RUSTFLAGS='-C target-feature=+crt-static' cargo build --profile agent \
         -p kiln-agent --target x86_64-unknown-linux-gnu`, or name one in KILN_AGENT_BIN",
        path.display()
    );
    path
}

/// One agent process with a directory of its own. Dropping it kills it and every process that it has started.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    directory: TempDir,
}

impl Agent {
    /// An agent that serves one link, and this host's end of it.
    pub fn serving_one() -> (Self, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let mut command = Command::new(agent_binary());
        command.args(["--socket-fd", "0"]).stdin(Stdio::from(OwnedFd::from(theirs)));
        (Self::spawn(command), ours)
    }

    /// An agent that serves one link, with the link of the product started on it.
    pub async fn linked() -> (Self, GuestLink) {
        let (agent, stream) = Self::serving_one();
        let link = link(stream, None).await.expect("the agent answers");
        (agent, link)
    }

    /// An agent that serves one link, with a raw link that has exchanged Hellos.
    pub fn greeted() -> (Self, RawLink) {
        let (agent, stream) = Self::serving_one();
        let mut raw = RawLink::new(stream);
        raw.greet();
        (agent, raw)
    }

    /// An agent that listens on a Unix socket.
    pub fn listening() -> Self {
        Self::listen(Command::new(agent_binary()), None)
    }

    /// An agent that listens and requires `token`.
    pub fn listening_with_token(token: &str) -> Self {
        Self::listen(Command::new(agent_binary()), Some(token))
    }

    /// An agent that listens, started by `wrapper`: a command that ends by executing the arguments it is given.
    pub fn listening_under(wrapper: &[&str]) -> Self {
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(agent_binary());
        Self::listen(command, None)
    }

    fn listen(mut command: Command, token: Option<&str>) -> Self {
        let directory = temporary_directory();
        let socket = directory.path().join("agent.sock");
        command.arg("--listen").arg(&socket).stdin(Stdio::null());
        if let Some(token) = token {
            let file = directory.path().join("token");
            fs::write(&file, token).expect("the directory is ours");
            command.arg("--token-file").arg(file);
        }
        let mut agent = Self::spawn_in(command, directory);
        until("the agent's socket", || {
            let exited = agent.child.try_wait().expect("a child of ours can be waited for");
            assert!(exited.is_none(), "the agent ended at once: {exited:?}");
            // Checks that the socket exists and does not connect: each connection would replace the link before.
            socket.exists().then_some(())
        });
        agent
    }

    fn spawn(command: Command) -> Self {
        Self::spawn_in(command, temporary_directory())
    }

    fn spawn_in(mut command: Command, directory: TempDir) -> Self {
        let child = command.stdout(Stdio::null()).spawn().expect("the agent can be started");
        Self { child, directory }
    }

    /// Another link's stream to an agent that listens.
    pub fn connect(&self) -> UnixStream {
        let socket = self.directory.path().join("agent.sock");
        // The socket exists after bind, and refuses connections until listen.
        until("a connection to the agent", || UnixStream::connect(&socket).ok())
    }

    /// Another link to an agent that listens.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn link(&self) -> Result<GuestLink, LinkError> {
        link(self.connect(), None).await
    }

    /// Another link to an agent that listens and requires a token.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn link_with_token(&self, token: Option<&str>) -> Result<GuestLink, LinkError> {
        link(self.connect(), token).await
    }

    /// A raw link to an agent that listens, after both Hellos.
    pub fn raw(&self) -> RawLink {
        let mut raw = RawLink::new(self.connect());
        raw.greet();
        raw
    }

    /// A directory of this test, which goes away with the agent.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A path in that directory, as text.
    pub fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().expect("temporary directories are UTF-8").to_owned()
    }

    /// The agent's pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The largest resident set that the agent has had, in bytes.
    pub fn rss_peak_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the agent runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a process has a peak");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        kib << 10
    }

    /// How many files the agent has open.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the agent runs").count()
    }

    /// Pids of the agent's children, zombies too.
    pub fn children(&self) -> Vec<u32> {
        children(self.pid())
    }

    /// How often the agent's first thread has gone to sleep so far.
    pub fn context_switches(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the agent runs");
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.expect("a process has slept").trim().parse().expect("a number")
    }

    /// Waits until the agent exits on its own.
    pub fn wait_exit(&mut self) -> ExitStatus {
        until("the agent's end", || self.child.try_wait().expect("a child of ours can be waited for"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        for pid in stopped_tree(self.pid()) {
            signal(pid, Signal::KILL);
        }
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn link(stream: UnixStream, token: Option<&str>) -> Result<GuestLink, LinkError> {
    stream.set_nonblocking(true)?;
    let mut options = LinkOptions::unix_socket(WAIT_DEADLINE);
    options.token = token.map(str::to_owned);
    GuestLink::connect(tokio::net::UnixStream::from_std(stream)?, options).await
}

fn temporary_directory() -> TempDir {
    tempfile::Builder::new().prefix("kiln-e2e-").tempdir().expect("a temporary directory can be made")
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended.
        let _ = kill_process(pid, signal);
    }
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return vec![] };
    let lists = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().flat_map(str::parse).collect::<Vec<_>>()).collect()
}

/// A process and its descendants, each stopped before its children are looked for, so that none is born unseen.
fn stopped_tree(root: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut to_see = vec![root];
    while let Some(pid) = to_see.pop() {
        if found.insert(pid) {
            stop(pid);
            to_see.extend(children(pid));
        }
    }
    found
}

/// Stops a process and waits, not for long, until it has stopped: a drop must not fail.
fn stop(pid: u32) {
    signal(pid, Signal::STOP);
    for _ in 0..STOP_LOOKS {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        match stat.rsplit(") ").next().and_then(|rest| rest.chars().next()) {
            None | Some('T' | 't' | 'Z' | 'X') => return,
            Some(_) => thread::sleep(STOP_LOOK_INTERVAL),
        }
    }
}

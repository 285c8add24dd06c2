//! The floor of forks and saves: QEMU alone, with Kiln's arguments but without Kiln's engine.
//!
//! ```text
//!   two sockets ─▶ QEMU: the same snapshot, mapped privately ─▶ QMP by hand: load the devices, cont ─▶ agent: hello, exec
//! ```
//! It has no journal, no identity, no clock, no randomness and no locks: only what every restore needs.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use kiln_engine::Vm;
use kiln_engine::snapshot::Snapshot;
use kiln_programs::{PATH_ONLY, command, keep};
use serde_json::json;

use super::raw_agent::RawAgent;
use super::raw_monitor::RawMonitor;

use crate::bench::guests::ms_since;

/// How QEMU's arguments name the sockets that it inherits, up to their numbers.
const MONITOR: &[u8] = b"socket,id=monitor,fd=";
const AGENT: &[u8] = b"socket,id=port0,fd=";
const LISTENER_END: &[u8] = b",server=on,wait=off";
/// What comes before the name of the memory file, which Kiln hands over under a name of its own.
const MEMORY: &str = "mem-path=";

/// How Kiln starts QEMU for forks of one snapshot.
#[derive(Debug, Clone)]
pub struct RawLine {
    program: Utf8PathBuf,
    arguments: Vec<OsString>,
    device: Utf8PathBuf,
}

/// A QEMU process. Dropping it kills it.
pub struct RawVm {
    monitor: RawMonitor,
    agent: RawAgent,
    /// Time from the start to the agent's first reply, in milliseconds.
    pub answered_ms: f64,
    start: Instant,
    _qemu: Qemu,
}

struct Qemu(Child);

impl RawLine {
    /// Reads it from a running fork.
    pub fn of(fork: &Vm, program: impl Into<Utf8PathBuf>, snapshot: &Snapshot) -> anyhow::Result<Self> {
        let line = fs_err::read(format!("/proc/{}/cmdline", fork.pid()))?;
        let words = line.strip_suffix(b"\0").unwrap_or(&line).split(|byte| *byte == 0);
        let memory = snapshot.memory_root();
        let arguments = words.skip(1).map(|word| with_memory(word, &memory)).collect();
        Ok(Self { program: program.into(), arguments, device: snapshot.device() })
    }
}

impl RawVm {
    /// Restores the snapshot and waits for the agent's first reply. Blocks.
    pub fn restore(line: &RawLine) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let start = Instant::now();
        let (monitor, to_monitor) = listen(&directory.path().join("monitor"))?;
        let (agent, to_agent) = listen(&directory.path().join("agent"))?;
        let device = File::open(&line.device)?;
        let arguments = with_sockets(&line.arguments, monitor.as_raw_fd(), agent.as_raw_fd());
        let mut command = command(&line.program, PATH_ONLY);
        for inherited in [monitor.as_fd(), agent.as_fd(), device.as_fd()] {
            keep(&mut command, inherited);
        }
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let qemu = Qemu(command.spawn().with_context(|| format!("failed to start `{}`", line.program))?);
        let device_fd = device.as_raw_fd();
        drop((monitor, agent, device));
        let mut monitor = RawMonitor::greet(to_monitor)?;
        let events = json!({"capabilities": [{"capability": "events", "state": true}]});
        monitor.execute("migrate-set-capabilities", &events)?;
        monitor.execute("migrate-incoming", &json!({"uri": format!("fd:{device_fd}")}))?;
        monitor.loaded()?;
        monitor.execute("cont", &json!({}))?;
        let agent = RawAgent::greet(to_agent)?;
        Ok(Self { monitor, agent, answered_ms: ms_since(start), start, _qemu: qemu })
    }

    /// Runs the first command. Returns the time since the start of QEMU, in milliseconds. Blocks.
    pub fn first_exec(&mut self) -> anyhow::Result<f64> {
        self.agent.exec_true()?;
        Ok(ms_since(self.start))
    }

    /// Stops the VM and writes the state of its devices. Returns how long that took, in milliseconds. Blocks.
    pub fn save_devices(&mut self, file: &Path) -> anyhow::Result<f64> {
        let start = Instant::now();
        self.monitor.execute("stop", &json!({}))?;
        self.monitor.execute("xen-save-devices-state", &json!({"filename": file, "live": false}))?;
        let took = ms_since(start);
        ensure!(fs_err::metadata(file)?.len() > 0, "QEMU wrote no state");
        Ok(took)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended, and then there is nothing to do.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn listen(path: &Path) -> anyhow::Result<(UnixListener, UnixStream)> {
    let listener = UnixListener::bind(path)?;
    Ok((listener, UnixStream::connect(path)?))
}

/// An argument with another memory file, if it has one.
fn with_memory(word: &[u8], memory: &Utf8Path) -> OsString {
    let replaced = str::from_utf8(word).ok().and_then(|word| {
        let (before, name) = word.split_once(MEMORY)?;
        let (_, after) = name.split_once(',')?;
        Some(format!("{before}{MEMORY}{},{after}", memory.as_str().replace(',', ",,")))
    });
    replaced.map_or_else(|| OsStr::from_bytes(word).to_owned(), OsString::from)
}

/// The arguments with other sockets.
fn with_sockets(arguments: &[OsString], monitor: RawFd, agent: RawFd) -> Vec<OsString> {
    let replaced = |word: &OsString| {
        let sockets = [(MONITOR, monitor), (AGENT, agent)];
        let found = sockets.into_iter().find(|(name, _)| word.as_bytes().starts_with(name));
        found.map_or_else(
            || word.clone(),
            |(name, fd)| OsString::from_vec([name, fd.to_string().as_bytes(), LISTENER_END].concat()),
        )
    };
    arguments.iter().map(replaced).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_is_the_snapshots_own_file() {
        let line = "memory-backend-file,id=memory,size=256M,mem-path=/a-name,share=off";
        let replaced = with_memory(line.as_bytes(), "/s,1/memory".into());
        assert_eq!(replaced, "memory-backend-file,id=memory,size=256M,mem-path=/s,,1/memory,share=off");
        assert_eq!(with_memory(b"q35,memory-backend=memory", "/m".into()), "q35,memory-backend=memory");
    }

    #[test]
    fn only_the_sockets_of_a_line_are_replaced() {
        let line = |monitor, agent| {
            let monitor = format!("socket,id=monitor,fd={monitor},server=on,wait=off");
            let agent = format!("socket,id=port0,fd={agent},server=on,wait=off");
            ["-m", "256M", "-chardev", &monitor, "-chardev", &agent, "-device", "virtserialport,chardev=port0,nr=1"]
                .map(OsString::from)
                .to_vec()
        };
        assert_eq!(with_sockets(&line(10, 12), 7, 8), line(7, 8));
    }
}

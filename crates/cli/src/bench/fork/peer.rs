//! The peer: gVisor's checkpoint and restore, if `runsc` is installed.
//!
//! ```text
//!   bundle: busybox, `sleep` ─▶ create, start, checkpoint ─▶ for each sample: restore ─▶ exec true ─▶ delete
//! ```
//! Its sandboxes keep the streams that they were started with, so those are files and never pipes. Restores are
//! detached and make their containers themselves; `runsc` of 2022 refuses one that was created before.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use kiln_engine::host;
use kiln_programs::{PATH_ONLY, command};
use rustix::process::{Pid, Signal};
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;

use crate::bench::guests::ms_since;

const PROGRAM: &str = "runsc";
/// Enough to run anywhere: no network, no control groups, and the platform that needs no hardware.
const OPTIONS: [&str; 3] = ["--network=none", "--ignore-cgroups", "--platform=ptrace"];
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);
const APPLETS: [&str; 3] = ["sh", "sleep", "true"];

/// A checkpoint of a sleeping container. Dropping it removes everything.
pub struct Peer {
    program: Utf8PathBuf,
    directory: TempDir,
    restored: usize,
}

/// One restore, in milliseconds from its start.
pub struct Restored {
    pub restored_ms: f64,
    pub exec_ms: f64,
}

impl Peer {
    /// Makes the checkpoint. `None` if `runsc` or a static busybox is not installed.
    pub async fn prepare() -> anyhow::Result<Option<Self>> {
        let busybox = host::find_program(Utf8Path::new("busybox"));
        let Some((program, busybox)) = host::find_program(Utf8Path::new(PROGRAM)).zip(busybox) else {
            return Ok(None);
        };
        let peer = Self { program, directory: tempfile::tempdir()?, restored: 0 };
        bundle(&peer.bundle(), &busybox)?;
        let (bundle, image, id) = (peer.bundle(), peer.image(), peer.id());
        peer.runsc(["create".as_ref(), "--bundle".as_ref(), bundle.as_path(), id.as_ref()]).await?;
        peer.runsc(["start", &id]).await?;
        peer.runsc(["checkpoint".as_ref(), "--image-path".as_ref(), image.as_path(), id.as_ref()]).await?;
        peer.runsc(["delete", "--force", &id]).await?;
        Ok(Some(peer))
    }

    /// Restores it once, and runs a first command in it.
    pub async fn restore(&mut self) -> anyhow::Result<Restored> {
        self.restored += 1;
        let (bundle, image, id) = (self.bundle(), self.image(), self.id());
        let words: [&Path; 7] = [
            "restore".as_ref(),
            "--bundle".as_ref(),
            &bundle,
            "--image-path".as_ref(),
            &image,
            "--detach".as_ref(),
            id.as_ref(),
        ];
        let start = Instant::now();
        self.runsc(words).await?;
        let restored_ms = ms_since(start);
        self.runsc(["exec", &id, "/bin/true"]).await?;
        let exec_ms = ms_since(start);
        self.runsc(["delete", "--force", &id]).await?;
        Ok(Restored { restored_ms, exec_ms })
    }

    fn bundle(&self) -> PathBuf {
        self.directory.path().join("bundle")
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// Abstract sockets of the whole host have this name.
    fn id(&self) -> String {
        format!("kiln-bench-{}-{}", std::process::id(), self.restored)
    }

    fn root_option(&self) -> String {
        format!("--root={}", self.directory.path().join("root").display())
    }

    async fn runsc<W: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = W>) -> anyhow::Result<()> {
        let said = self.directory.path().join("said");
        let (out, err) = (fs_err::File::create(&said)?, fs_err::OpenOptions::new().append(true).open(&said)?);
        let mut command = Command::from(command(&self.program, PATH_ONLY));
        command.arg(self.root_option()).args(OPTIONS).args(words).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(out.into_file()).stderr(err.into_file());
        let ended = tokio::time::timeout(COMMAND_DEADLINE, command.status()).await;
        let status = ended.with_context(|| format!("`{PROGRAM}` does not end: {command:?}"))??;
        if !status.success() {
            bail!("`{PROGRAM}` failed with {status}: {}", fs_err::read_to_string(&said)?.trim());
        }
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Sandboxes of a restore that failed or was cut short: no others have this root.
        for pid in with_argument(&self.root_option()) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

fn bundle(path: &Path, busybox: &Utf8Path) -> anyhow::Result<()> {
    ensure!(host::is_static(busybox), "`{busybox}` needs libraries that the peer's container lacks");
    let programs = path.join("rootfs/bin");
    fs_err::create_dir_all(&programs)?;
    fs_err::copy(busybox, programs.join("busybox"))?;
    for applet in APPLETS {
        fs_err::os::unix::fs::symlink("busybox", programs.join(applet))?;
    }
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|name| json!({"type": name}));
    let config = json!({
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sleep", "1000000"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "bench",
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": namespaces},
    });
    Ok(fs_err::write(path.join("config.json"), serde_json::to_vec(&config)?)?)
}

/// Processes that were started with this argument, except this one.
fn with_argument(argument: &str) -> Vec<Pid> {
    let Ok(entries) = fs_err::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has = |pid: &i32| {
        let line = fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
    };
    pids.filter(has).filter_map(Pid::from_raw).filter(|pid| *pid != rustix::process::getpid()).collect()
}

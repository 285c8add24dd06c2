//! What several groups measure with: commands in guests, whole runs of `kiln`, and time.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kiln_engine::link::GuestLink;
use kiln_programs::{Environment, command};
use kiln_wire::{ExecRequest, ExitStatus, Text};
use tokio::process::Command;

/// The program of every first exec, run without a shell and without output.
pub(super) const TRUE: &str = "/bin/true";
/// Deadline of `kiln run`, which takes a third of a second with a fork.
const RUN_DEADLINE: Duration = Duration::from_secs(120);

/// Runs a program in the guest, which must succeed.
pub(super) async fn run(link: &GuestLink, argv: &[&str]) -> anyhow::Result<()> {
    let request = ExecRequest { argv: argv.iter().copied().map(Text::from).collect(), ..ExecRequest::default() };
    let output = link.run(request, b"", 4096).await?;
    let (status, words) = (output.exited.status, String::from_utf8_lossy(&output.stderr));
    ensure!(status == ExitStatus::Code(0), "`{}` ended with {status:?}: {}", argv.join(" "), words.trim());
    Ok(())
}

/// The time of a whole `kiln run` with these arguments, which must succeed, in milliseconds.
pub(super) async fn kiln_run(accel: &str, arguments: &[&str]) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut command = Command::from(command(std::env::current_exe()?, Environment::Callers));
    command.args(["run", "--accel", accel]).args(arguments).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let ended = tokio::time::timeout(RUN_DEADLINE, command.status()).await;
    let status = ended.context("`kiln run` did not end in time")??;
    ensure!(status.success(), "`kiln run {}` ended with {status}", arguments.join(" "));
    Ok(ms_since(start))
}

pub(super) fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

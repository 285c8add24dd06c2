//! One attempt of a suite: a fork, its command, and what the kernel said meanwhile.

use std::io::Write as _;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use kiln_detect::Finding;
use kiln_engine::Guest;
use kiln_engine::guest::Gone;
use kiln_engine::link::{ChildStderr, ChildStdout, StreamError};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;

use super::decide::{Ended, Seen};
use super::dispatch::{Stop, stopped};
use super::taint;
use crate::plan::{Suite, SuiteKind};
use crate::results::{CaseResult, Reader};

/// Bytes kept of each stream of a command.
pub const ARTIFACT_BYTES_MAX: usize = 16 << 20;
/// A file of results is read as a whole.
const RESULTS_BYTES_MAX: usize = 64 << 20;
/// Rows of the console that are kept of an attempt that failed.
const CONSOLE_ROWS: usize = 2000;
/// For the end of a killed VM, and for the last rows of its console.
const END_DEADLINE: Duration = Duration::from_secs(10);
/// For a small file of the guest.
const FILE_DEADLINE: Duration = Duration::from_secs(5);
const TAINT_FILE: &str = "/proc/sys/kernel/tainted";
const READ_BYTES: usize = 64 << 10;

/// What is left of an attempt in memory.
#[derive(Debug)]
pub(super) struct Traces {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) console: Vec<String>,
}

/// Runs the command of a suite in a guest. Returns the guest if it is in use further: its command ended, and its kernel
/// is well.
pub(super) async fn attempt(
    guest: Guest,
    suite: &Suite,
    env: &[(String, String)],
    keeps_guest: bool,
    stop: &mut Stop,
) -> (Seen, Traces, Option<Guest>) {
    let started = Instant::now();
    let taint_before = taint_of(&guest).await;
    let mut output = Output::new(suite);
    let ended = run(&guest, suite, env, &mut output, stop).await;
    let duration = started.elapsed();
    let mut results_problem = None;
    if let (Ended::Code(_), Some(path)) = (&ended, &suite.results) {
        match timeout(suite.timeout, guest.link.read_file(path.as_str(), RESULTS_BYTES_MAX)).await {
            Ok(Ok(bytes)) => output.read_results(&bytes),
            Ok(Err(error)) => results_problem = Some(format!("the file `{path}` can't be read: {error}")),
            Err(_) => results_problem = Some(format!("the file `{path}` was not read within {:?}", suite.timeout)),
        }
    }
    let taint_after = match ended {
        Ended::Code(_) => taint_of(&guest).await,
        _ => None,
    };
    let taint = taint_before.zip(taint_after).and_then(|(before, after)| taint::problem(before, after));
    let is_well = matches!(ended, Ended::Code(_)) && guest.findings().is_empty() && taint.is_none();
    let (findings, console, guest) = if keeps_guest && is_well {
        (guest.findings(), Vec::new(), Some(guest))
    } else {
        // The kernel may have reported something a moment ago. All that it wrote is read before its VM has ended.
        guest.vm.kill().await;
        drop(timeout(END_DEADLINE, guest.gone()).await);
        (guest.findings(), guest.console_tail(CONSOLE_ROWS), None)
    };
    let code = match ended {
        Ended::Code(code) => code,
        _ => -1,
    };
    let Output { reader, mut results, stdout, stderr, expected, has_expected_output, .. } = output;
    let (rest, problem) = reader.finish(code);
    results.extend(rest);
    let seen = Seen {
        ended,
        results,
        problem: results_problem.or(problem),
        findings,
        taint,
        has_expected_output: has_expected_output || expected.is_none(),
        last_words: last_words(&stderr),
        duration,
    };
    (seen, Traces { stdout, stderr, console }, guest)
}

/// Runs the command to its end, that of the guest, the deadline, or the end of the run.
async fn run(guest: &Guest, suite: &Suite, env: &[(String, String)], output: &mut Output, stop: &mut Stop) -> Ended {
    let mut command = guest.command("sh");
    command.args(["-c", &suite.run]).envs(env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    command.envs(suite.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let ended = async {
        let mut child = command.spawn().await?;
        let stdout = child.stdout.take().expect("is taken once");
        let stderr = child.stderr.take().expect("it has no terminal");
        output.read(stdout, stderr).await;
        child.wait().await
    };
    tokio::select! {
        // A crash explains a lost link, and an end of the guest explains a command that does not end.
        biased;
        gone = guest.gone() => ended_by(&gone),
        ended = timeout(suite.timeout, ended) => match ended {
            Ok(Ok(exited)) => Ended::Code(exited.status.shell_code()),
            Ok(Err(error)) => lost(guest, &error).await,
            Err(_) => Ended::TimedOut,
        },
        _ = stopped(stop) => Ended::Stopped,
    }
}

fn ended_by(gone: &Gone) -> Ended {
    match gone {
        Gone::Silent(_) => Ended::TimedOut,
        gone => Ended::Gone(gone.to_string()),
    }
}

async fn lost(guest: &Guest, error: &StreamError) -> Ended {
    match guest.gone_soon().await {
        Some(gone) => ended_by(&gone),
        None => Ended::Lab(format!("the command could not run: {error}")),
    }
}

async fn taint_of(guest: &Guest) -> Option<u64> {
    let read = timeout(FILE_DEADLINE, guest.link.read_file(TAINT_FILE, 64)).await;
    taint::parse(&read.ok()?.ok()?)
}

/// What a command wrote, as far as there is room, and the results in it.
struct Output {
    reader: Reader,
    results: Vec<CaseResult>,
    /// Results are in stdout.
    is_result: bool,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    expected: Option<Vec<u8>>,
    has_expected_output: bool,
    /// The end of stdout, in which an expected text may begin.
    tail: Vec<u8>,
}

impl Output {
    fn new(suite: &Suite) -> Self {
        Self {
            reader: Reader::new(suite.kind),
            results: Vec::new(),
            is_result: suite.results.is_none() && suite.kind != SuiteKind::Command,
            stdout: Vec::new(),
            stderr: Vec::new(),
            expected: suite.expect.stdout.clone().map(String::into_bytes),
            has_expected_output: false,
            tail: Vec::new(),
        }
    }

    /// Reads both streams to their ends. What exceeds the bound is read and dropped, so that the command can go on.
    async fn read(&mut self, mut stdout: ChildStdout, mut stderr: ChildStderr) {
        let (mut out, mut err) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
        let (mut out_open, mut err_open) = (true, true);
        while out_open || err_open {
            tokio::select! {
                length = next(&mut stdout, &mut out), if out_open => match length {
                    0 => out_open = false,
                    length => self.take_stdout(&out[..length]),
                },
                length = next(&mut stderr, &mut err), if err_open => match length {
                    0 => err_open = false,
                    length => keep(&mut self.stderr, &err[..length]),
                },
            }
        }
    }

    fn take_stdout(&mut self, bytes: &[u8]) {
        keep(&mut self.stdout, bytes);
        if self.is_result {
            self.results.extend(self.reader.push(bytes));
        }
        if let Some(expected) = self.expected.as_ref().filter(|_| !self.has_expected_output) {
            self.tail.extend_from_slice(bytes);
            self.has_expected_output = memchr::memmem::find(&self.tail, expected).is_some();
            let surplus = self.tail.len().saturating_sub(expected.len());
            self.tail.drain(..surplus);
        }
    }

    fn read_results(&mut self, bytes: &[u8]) {
        self.results.extend(self.reader.push(bytes));
    }
}

/// Reads some bytes. 0 at the end, also if the stream is lost.
async fn next(stream: &mut (impl AsyncRead + Unpin), buffer: &mut [u8]) -> usize {
    stream.read(buffer).await.unwrap_or(0)
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = ARTIFACT_BYTES_MAX.saturating_sub(kept.len());
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

/// The last line of a text that is not empty, without what would steer a terminal.
fn last_words(stderr: &[u8]) -> String {
    let start = stderr.len().saturating_sub(4 << 10);
    let mut lines = kiln_detect::Lines::new();
    let mut rows = lines.push(&stderr[start..]);
    rows.extend(lines.finish());
    rows.iter()
        .rev()
        .find(|row| !row.trim().is_empty())
        .map(|row| row.trim().chars().take(200).collect())
        .unwrap_or_default()
}

impl Traces {
    /// Writes them to a new directory. Returns its name.
    pub(super) fn save(&self, run: &Utf8Path, name: &str, findings: &[Finding]) -> std::io::Result<Utf8PathBuf> {
        let relative = Utf8Path::new("attempts").join(name);
        let directory = run.join(&relative);
        std::fs::create_dir_all(&directory)?;
        for (file, bytes) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            std::fs::write(directory.join(file), bytes)?;
        }
        let mut console = std::fs::File::create(directory.join("console"))?;
        self.console.iter().try_for_each(|row| writeln!(console, "{row}"))?;
        if !findings.is_empty() {
            let mut reports = std::fs::File::create(directory.join("findings"))?;
            for finding in findings {
                writeln!(reports, "{}", finding.title)?;
                finding.extract.iter().try_for_each(|row| writeln!(reports, "    {row}"))?;
            }
        }
        Ok(relative)
    }
}

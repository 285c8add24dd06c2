//! Commands in the guest.

use bytes::Bytes;
use kiln_wire::{Channel, ExecRequest, ExitStatus, Exited, Message, Started, Stdin};

use super::stream::{Event, StreamError, StreamReceiver, StreamSender, beside};
use super::transport::GuestLink;

/// A running command. Dropping it kills the command and all its processes.
#[derive(Debug)]
pub struct Exec {
    /// Its pid, and the name of its session.
    pub started: Started,
    /// Stdin, signals, size of the terminal.
    pub input: StreamSender,
    /// Its output and its end.
    pub output: StreamReceiver,
}

/// Everything that a command wrote, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub exited: Exited,
}

impl ExecOutput {
    /// Whether it returned 0.
    pub fn success(&self) -> bool {
        self.exited.status == ExitStatus::Code(0)
    }

    /// The code that it returned; `None` if a signal ended it.
    pub fn code(&self) -> Option<i32> {
        match self.exited.status {
            ExitStatus::Code(code) => Some(code),
            ExitStatus::Signal(_) => None,
        }
    }
}

impl GuestLink {
    /// Starts a command.
    ///
    /// # Errors
    /// [`StreamError::Fault`] with `command_not_found`, `not_executable`, … if it did not start.
    pub async fn exec(&self, request: ExecRequest) -> Result<Exec, StreamError> {
        let (input, mut output) = self.open(&Message::Exec(Box::new(request)))?;
        match output.next().await? {
            Event::Started(started) => Ok(Exec { started, input, output }),
            other => Err(StreamError::unexpected(&other)),
        }
    }

    /// Runs a command to its end with `stdin`, and keeps at most `limit_bytes` of its output. The agent drops the rest
    /// and reports that in `exited.truncated`.
    ///
    /// # Errors
    /// See [`exec`](Self::exec).
    pub async fn run(
        &self,
        mut request: ExecRequest,
        stdin: &[u8],
        limit_bytes: u64,
    ) -> Result<ExecOutput, StreamError> {
        request.stdin = if stdin.is_empty() { Stdin::None } else { Stdin::Stream };
        request.limits.output_bytes = Some(request.limits.output_bytes.unwrap_or(limit_bytes).min(limit_bytes));
        let Exec { input, mut output, .. } = self.exec(request).await?;
        let feed = async {
            if !stdin.is_empty() {
                // A command may end before it has read all its input.
                let _ = input.send(stdin).await;
                let _ = input.eof().await;
            }
        };
        beside(collect(&mut output, limit_bytes), feed).await
    }
}

async fn collect(output: &mut StreamReceiver, limit_bytes: u64) -> Result<ExecOutput, StreamError> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match output.next().await? {
            Event::Data(channel, bytes) => {
                // The agent counts too, but a guest must not decide how much memory the host spends.
                let room = usize::try_from(limit_bytes).unwrap_or(usize::MAX) - stdout.len() - stderr.len();
                let kept: Bytes = bytes.slice(..bytes.len().min(room));
                if channel == Channel::Err { &mut stderr } else { &mut stdout }.extend_from_slice(&kept);
            }
            Event::Eof => {}
            Event::Exited(exited) => return Ok(ExecOutput { stdout, stderr, exited }),
            other => return Err(StreamError::unexpected(&other)),
        }
    }
}

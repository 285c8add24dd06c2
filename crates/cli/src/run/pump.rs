//! Passes bytes between the user's stdin, stdout and stderr and a command in the guest.

use std::io::{self, Read as _};

use bytes::Bytes;
use kiln_engine::link::{Event, StreamError, StreamReceiver, StreamSender};
use kiln_wire::{Channel, Exited};
use tokio::io::{AsyncWriteExt as _, Stderr, Stdout};
use tokio::sync::mpsc;

/// Most pieces of stdin that were read and not yet sent.
const STDIN_PIECES: usize = 4;
const STDIN_PIECE_BYTES: usize = 64 << 10;
/// The most that `--json` keeps of stdout, and of stderr.
pub const CAPTURE_BYTES_MAX: usize = 16 << 20;

/// How passing on a command's output ended.
#[derive(Debug)]
pub enum End {
    /// The command ended.
    Exited(Exited),
    /// The reader of kiln's output closed it.
    OutputClosed,
    /// A write to kiln's output failed.
    OutputFailed(io::Error),
}

/// Where a command's output goes. Enforces `--limit-output`: the agent does so too, but the guest may have changed it.
pub struct Sink {
    target: Target,
    /// Bytes of stdout and stderr together that may still be passed on.
    left: u64,
    /// Some output exceeded the limit and was dropped.
    dropped: bool,
}

enum Target {
    /// To kiln's own stdout and stderr.
    Pass(Stdout, Stderr),
    /// Into memory, up to [`CAPTURE_BYTES_MAX`] each.
    Capture(Captured),
}

/// Output in memory.
#[derive(Debug, Default)]
pub struct Captured {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Some output was dropped.
    pub truncated: bool,
}

impl Sink {
    /// A sink to kiln's own stdout and stderr; at most `limit_bytes`.
    pub fn pass(limit_bytes: Option<u64>) -> Self {
        Self::new(Target::Pass(tokio::io::stdout(), tokio::io::stderr()), limit_bytes)
    }

    /// A sink to memory; at most `limit_bytes`.
    pub fn capture(limit_bytes: Option<u64>) -> Self {
        Self::new(Target::Capture(Captured::default()), limit_bytes)
    }

    fn new(target: Target, limit_bytes: Option<u64>) -> Self {
        Self { target, left: limit_bytes.unwrap_or(u64::MAX), dropped: false }
    }

    /// The output of a sink to memory.
    pub fn captured(self) -> Option<Captured> {
        match self.target {
            Target::Pass(..) => None,
            Target::Capture(mut captured) => {
                captured.truncated |= self.dropped;
                Some(captured)
            }
        }
    }

    async fn take(&mut self, channel: Channel, bytes: &[u8]) -> io::Result<()> {
        let passed = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= passed as u64;
        self.dropped |= passed < bytes.len();
        let bytes = &bytes[..passed];
        match (&mut self.target, channel) {
            (Target::Pass(_, stderr), Channel::Err) => {
                stderr.write_all(bytes).await?;
                stderr.flush().await
            }
            (Target::Pass(stdout, _), _) => {
                stdout.write_all(bytes).await?;
                stdout.flush().await
            }
            (Target::Capture(captured), channel) => {
                let into = if channel == Channel::Err { &mut captured.stderr } else { &mut captured.stdout };
                let kept = bytes.len().min(CAPTURE_BYTES_MAX - into.len());
                into.extend_from_slice(&bytes[..kept]);
                captured.truncated |= kept < bytes.len();
                Ok(())
            }
        }
    }
}

/// Passes output on until the command ends.
pub async fn output(receiver: &mut StreamReceiver, sink: &mut Sink) -> Result<End, StreamError> {
    loop {
        match receiver.next().await? {
            // The caller drops the stream, which cancels the command, like SIGPIPE.
            Event::Data(channel, bytes) => match sink.take(channel, &bytes).await {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(End::OutputClosed),
                Err(error) => return Ok(End::OutputFailed(error)),
            },
            Event::Eof => {}
            Event::Exited(mut exited) => {
                exited.truncated |= sink.dropped;
                return Ok(End::Exited(exited));
            }
            other => return Err(StreamError::unexpected(&other)),
        }
    }
}

/// Passes stdin on until it ends, or until the command closes its stdin or ends.
pub async fn stdin(sender: StreamSender) {
    let (pieces, mut arriving) = mpsc::channel::<Bytes>(STDIN_PIECES);
    // A thread, because a read of a terminal blocks and can't be cancelled.
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; STDIN_PIECE_BYTES];
        loop {
            match stdin.read(&mut buffer) {
                Ok(count) if count > 0 => {
                    if pieces.blocking_send(Bytes::copy_from_slice(&buffer[..count])).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A closed stdin is treated as empty.
                _ => return,
            }
        }
    });
    while let Some(piece) = arriving.recv().await {
        if sender.send(&piece).await.is_err() {
            return;
        }
    }
    // Fails only if the command has ended.
    let _ = sender.eof().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_cut_at_the_limit_whatever_the_agent_sends() {
        let mut sink = Sink::capture(Some(1000));
        for channel in [Channel::Out, Channel::Err, Channel::Out, Channel::Err] {
            sink.take(channel, &[b'x'; 400]).await.expect("memory takes it");
        }
        let captured = sink.captured().expect("it was captured");
        assert_eq!((captured.stdout.len(), captured.stderr.len(), captured.truncated), (600, 400, true));
    }

    #[tokio::test]
    async fn output_of_exactly_the_limit_is_complete() {
        let mut sink = Sink::capture(Some(1000));
        sink.take(Channel::Out, &[b'x'; 1000]).await.expect("memory takes it");
        assert!(!sink.captured().expect("it was captured").truncated);
    }
}

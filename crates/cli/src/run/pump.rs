//! Bytes between the user's stdin, stdout and stderr and a command in the guest.

use std::io::{self, Read as _};

use bytes::Bytes;
use kiln_engine::link::{Event, StreamError, StreamReceiver, StreamSender};
use kiln_wire::{Channel, Exited};
use tokio::io::{AsyncWriteExt as _, Stderr, Stdout};
use tokio::sync::mpsc;

/// Pieces of stdin that were read and not sent.
const STDIN_PIECES: usize = 4;
const STDIN_PIECE_BYTES: usize = 64 << 10;
/// Output that `--json` keeps of each of stdout and stderr.
pub const CAPTURE_BYTES_MAX: usize = 16 << 20;

/// How a command came to its end.
#[derive(Debug)]
pub enum End {
    /// It ended.
    Exited(Exited),
    /// Whoever read kiln's output has gone.
    OutputClosed,
    /// Kiln's output takes no more.
    OutputFailed(io::Error),
}

/// Where a command's output goes. At most `--limit-output` of it: the agent counts too, but the agent is the guest's.
pub struct Sink {
    target: Target,
    /// Bytes of stdout and stderr together that may still be passed on.
    left: u64,
    /// Something came after that, and was dropped.
    dropped: bool,
}

enum Target {
    /// To kiln's own stdout and stderr, as it comes.
    Pass(Stdout, Stderr),
    /// Into memory, up to [`CAPTURE_BYTES_MAX`] each.
    Capture(Captured),
}

/// Output in memory.
#[derive(Debug, Default)]
pub struct Captured {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Something was dropped.
    pub truncated: bool,
}

impl Sink {
    /// To kiln's own stdout and stderr; at most `limit_bytes`.
    pub fn pass(limit_bytes: Option<u64>) -> Self {
        Self::new(Target::Pass(tokio::io::stdout(), tokio::io::stderr()), limit_bytes)
    }

    /// Into memory; at most `limit_bytes`.
    pub fn capture(limit_bytes: Option<u64>) -> Self {
        Self::new(Target::Capture(Captured::default()), limit_bytes)
    }

    fn new(target: Target, limit_bytes: Option<u64>) -> Self {
        Self { target, left: limit_bytes.unwrap_or(u64::MAX), dropped: false }
    }

    /// What was captured, if it was.
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
            // Like a program that SIGPIPE ends: the command is cancelled when its stream is dropped.
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

/// Passes stdin on until it ends, or until the command does not want any more.
pub async fn stdin(sender: StreamSender) {
    let (pieces, mut arriving) = mpsc::channel::<Bytes>(STDIN_PIECES);
    // A thread of its own, because a read of a terminal can't be taken back.
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
                // A closed stdin is an empty one.
                _ => return,
            }
        }
    });
    while let Some(piece) = arriving.recv().await {
        if sender.send(&piece).await.is_err() {
            return;
        }
    }
    // The command has ended where this fails.
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
    async fn output_that_just_fits_is_whole() {
        let mut sink = Sink::capture(Some(1000));
        sink.take(Channel::Out, &[b'x'; 1000]).await.expect("memory takes it");
        assert!(!sink.captured().expect("it was captured").truncated);
    }
}

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

/// Where a command's output goes.
pub enum Sink {
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
    pub fn pass() -> Self {
        Self::Pass(tokio::io::stdout(), tokio::io::stderr())
    }

    async fn take(&mut self, channel: Channel, bytes: &[u8]) -> io::Result<()> {
        match (self, channel) {
            (Self::Pass(_, stderr), Channel::Err) => {
                stderr.write_all(bytes).await?;
                stderr.flush().await
            }
            (Self::Pass(stdout, _), _) => {
                stdout.write_all(bytes).await?;
                stdout.flush().await
            }
            (Self::Capture(captured), channel) => {
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
            Event::Exited(exited) => return Ok(End::Exited(exited)),
            other => return Err(StreamError::Unexpected(format!("{other:?}"))),
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

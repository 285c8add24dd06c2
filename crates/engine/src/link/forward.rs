//! Connections to sockets in the guest.

use std::io;

use kiln_wire::{ForwardRequest, Message, Reply};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::stream::{Event, StreamError, StreamReceiver, StreamSender};
use super::transport::GuestLink;

/// Bytes that are read from the host's socket at once.
const CHUNK_BYTES: usize = 64 << 10;

/// A connection to a socket in the guest. Dropping it closes the connection.
///
/// ```no_run
/// # async fn example(
/// #     link: &kiln_engine::link::GuestLink,
/// #     client: tokio::net::TcpStream,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// use kiln_wire::ForwardRequest;
///
/// let request = ForwardRequest::Tcp { host: "localhost".into(), port: 80 };
/// link.forward(request).await?.copy(client).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Forward {
    input: StreamSender,
    output: StreamReceiver,
}

/// Why a forwarded connection broke off.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The guest's side.
    #[error(transparent)]
    Guest(#[from] StreamError),
    /// The host's side.
    #[error("failed to read or write the connection")]
    Host(#[from] io::Error),
}

impl GuestLink {
    /// Connects to a socket in the guest.
    ///
    /// # Errors
    /// [`StreamError::Fault`] with `connection_refused`, `unreachable`, … if nothing accepts the connection.
    pub async fn forward(&self, request: ForwardRequest) -> Result<Forward, StreamError> {
        let (input, mut output) = self.open(&Message::Forward(request))?;
        match output.next().await? {
            Event::Reply(reply) if matches!(*reply, Reply::Connected) => Ok(Forward { input, output }),
            other => Err(StreamError::unexpected(&other)),
        }
    }
}

impl Forward {
    /// Copies in both directions until the guest has closed its side and has received all that the host sent.
    ///
    /// # Errors
    /// [`ForwardError`]. The other side is closed then, too.
    pub async fn copy(self, host: impl AsyncRead + AsyncWrite) -> Result<(), ForwardError> {
        let Self { input, mut output } = self;
        let (mut from_host, mut to_host) = tokio::io::split(host);
        let up = async {
            let mut buffer = vec![0; CHUNK_BYTES];
            loop {
                let sent = match from_host.read(&mut buffer).await? {
                    0 => {
                        // An error means that the guest's side has ended. How it ended is in the output.
                        let _ = input.eof().await;
                        break;
                    }
                    count => input.send(&buffer[..count]).await,
                };
                if sent.is_err() {
                    break;
                }
            }
            std::future::pending::<Result<(), ForwardError>>().await
        };
        let down = async {
            loop {
                match output.next().await? {
                    Event::Data(_, bytes) => to_host.write_all(&bytes).await?,
                    Event::Eof => to_host.shutdown().await?,
                    Event::Done(_) => break Ok(()),
                    other => break Err(StreamError::unexpected(&other).into()),
                }
            }
        };
        tokio::select! {
            ended = up => ended,
            ended = down => ended,
        }
    }
}

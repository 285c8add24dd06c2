//! Starts a link: reset marker, Hello, Auth, Sync, under one deadline.
//!
//! Virtio-serial has no connections. If a link ends, the agent does not notice, and bytes of it stay in the port's
//! buffers, in both directions. A restored guest even continues a link of the saved VM. So the host starts with a
//! marker that has a random nonce, and the agent echoes it. Every byte before the echo of this nonce belongs to an
//! earlier link and is skipped, also the echoes of earlier markers. Every byte after it belongs to the new link,
//! because the port keeps the order and the agent drops its old link when it reads the marker.
//!
//! QEMU drops bytes for a port that the guest has not opened, and sends no error. So the marker is repeated until its
//! echo arrives. If the agent gets it more than once, it ignores the repetitions, because it knows the nonce of its
//! link.

use std::io;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use kiln_wire::reset::{NONCE_BYTES, Nonce, Piece, ResetScanner, marker};
use kiln_wire::{
    Auth, Decoder, ErrorCode, FrameError, Goodbye, GoodbyeReason, Hello, Identity, Message, Mount, Network, StreamId,
    Sync, VERSION, negotiate,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout, timeout_at};

use super::stream::StreamError;
use super::transport::GuestLink;

use crate::error::ErrorKind;

/// The first pause before the marker is repeated. A port that the guest has not opened yet loses the marker …
const MARKER_REPEAT_FIRST: Duration = Duration::from_millis(5);
/// … so it is repeated. Each pause is twice as long as the last, up to this.
const MARKER_REPEAT_MAX: Duration = Duration::from_millis(20);
/// Bytes before the agent's marker that are skipped: an older link may have left them in the transport.
const STALE_BYTES_MAX: usize = 64 << 20;
const READ_BYTES: usize = 16 << 10;
/// A guest's clock is late by the time that Sync took to reach it, which is less than the round trip. On a host that
/// starts many guests at once that can be a quarter of a second. So if the round trip took longer than this, the time
/// is sent again …
const SYNC_LAG_MAX: Duration = Duration::from_millis(40);
/// … up to so many times in all. If that does not help either, the host is too busy to run its guests.
const SYNC_ATTEMPTS_MAX: usize = 5;
/// Randomness that a restored guest gets: twice what its kernel's generator holds.
const SEED_BYTES: usize = 64;

/// How to start a link.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// Starts with a reset marker. Transports without connections of their own need it, like virtio-serial.
    pub marker: bool,
    /// Proves that the host may use this agent, if the agent requires it.
    pub token: Option<String>,
    /// Gives a restored guest its own identity before anything else uses it.
    pub renewal: Option<Renewal>,
    /// For all steps together.
    pub deadline: Duration,
}

impl LinkOptions {
    /// For a VM that is booting or restored.
    pub const fn virtio_serial(deadline: Duration) -> Self {
        Self { marker: true, token: None, renewal: None, deadline }
    }

    /// For an agent behind a Unix socket.
    pub const fn unix_socket(deadline: Duration) -> Self {
        Self { marker: false, token: None, renewal: None, deadline }
    }
}

/// What a restored guest gets with its first link, beside the time and fresh randomness.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renewal {
    /// Its names and addresses. If absent, it keeps those of the snapshot.
    pub identity: Option<Identity>,
    /// What its interfaces are connected to. If absent, they stay as they are.
    pub network: Option<Network>,
    /// Disks to mount. One that is mounted there already is grown to the size of its device.
    pub mounts: Vec<Mount>,
}

impl Renewal {
    /// Gives a machine its names and addresses, and nothing else.
    pub fn of(identity: Identity) -> Self {
        Self { identity: Some(identity), ..Self::default() }
    }

    /// The request, with the time of now.
    fn sync(&self) -> io::Result<Sync> {
        let mut seed = [0; SEED_BYTES];
        if rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())? < SEED_BYTES {
            return Err(io::Error::other("short read of randomness"));
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(io::Error::other)?;
        let host_time_ns = u64::try_from(now.as_nanos()).map_err(io::Error::other)?;
        let Self { identity, network, mounts } = self.clone();
        Ok(Sync { host_time_ns, seed: STANDARD.encode(seed), identity, network, mounts })
    }
}

/// Why a link was not started.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The agent did not complete a step in time.
    #[error("no {waiting_for} from the agent within {waited:?}")]
    TimedOut {
        /// The missing step.
        waiting_for: &'static str,
        /// The deadline.
        waited: Duration,
    },
    /// The guest's end is closed.
    #[error("the guest closed the link before its {waiting_for}")]
    Closed {
        /// The missing step.
        waiting_for: &'static str,
    },
    /// The transport failed.
    #[error("failed to exchange bytes with the agent")]
    Io(#[from] io::Error),
    /// Bytes that are not a frame.
    #[error("the guest does not follow Kiln's protocol")]
    Frame(#[from] FrameError),
    /// A frame that does not belong there, or no frame in all the bytes that arrived.
    #[error("the guest does not follow Kiln's protocol: {0}")]
    Garbage(String),
    /// The agent has another protocol version.
    #[error("the agent has protocol version {theirs}, this kiln has {ours}")]
    Version {
        /// Ours.
        ours: u16,
        /// The agent's.
        theirs: u16,
    },
    /// The agent ended the link.
    #[error("the agent refused the link: {0}")]
    Refused(Goodbye),
    /// The agent requires a token, but the options have none.
    #[error("the agent requires a token")]
    NoToken,
    /// The token is wrong.
    #[error("the agent did not accept the token")]
    Unauthorized,
    /// The link ended before the agent accepted the token.
    #[error("failed to send the agent its token")]
    Auth(#[source] StreamError),
    /// The guest did not get its own identity.
    #[error("failed to sync the guest's clock, randomness and names")]
    Sync(#[source] StreamError),
}

impl LinkError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Version { .. } => ErrorKind::Incompatible,
            Self::NoToken | Self::Unauthorized => ErrorKind::Denied,
            // Whatever else there is comes from the guest's end of the link.
            _ => ErrorKind::Guest,
        }
    }
}

impl GuestLink {
    /// Starts a link on a fresh stream to the agent's transport.
    ///
    /// # Errors
    /// Returns a [`LinkError`], and closes the stream.
    pub async fn connect(stream: UnixStream, options: LinkOptions) -> Result<Self, LinkError> {
        let deadline = Instant::now() + options.deadline;
        let (read, write) = stream.into_split();
        let mut start = Start { read, write, decoder: Decoder::new(), waiting_for: "answer" };
        let greeted = match timeout_at(deadline, start.greet(options.marker)).await {
            Ok(outcome) => outcome?,
            Err(_) => return Err(LinkError::TimedOut { waiting_for: start.waiting_for, waited: options.deadline }),
        };
        let auth = greeted.capabilities.contains(&kiln_wire::Capability::Auth);
        let link = Self::start(start.read, start.write, start.decoder, greeted);
        let late = |waiting_for| LinkError::TimedOut { waiting_for, waited: options.deadline };
        if auth {
            let token = options.token.ok_or(LinkError::NoToken)?;
            let asked = timeout_at(deadline, link.ask(&Message::Auth(Auth { token }), "auth")).await;
            asked.map_err(|_| late("answer to the token"))?.map_err(|error| match error {
                StreamError::Fault(fault) if fault.code == ErrorCode::Unauthorized => LinkError::Unauthorized,
                other => LinkError::Auth(other),
            })?;
        }
        if let Some(renewal) = options.renewal {
            link.renew_by(renewal, deadline, options.deadline).await?;
        }
        Ok(link)
    }
}

impl GuestLink {
    /// Gives a restored guest its own identity, with the time of now. All of it ends at the deadline.
    ///
    /// # Errors
    /// [`LinkError::Sync`] or [`LinkError::TimedOut`]: the guest must not be used.
    pub async fn renew(&self, renewal: Renewal, deadline: Duration) -> Result<(), LinkError> {
        self.renew_by(renewal, Instant::now() + deadline, deadline).await
    }

    async fn renew_by(&self, mut renewal: Renewal, until: Instant, waited: Duration) -> Result<(), LinkError> {
        for attempt in 1..=SYNC_ATTEMPTS_MAX {
            let from = Instant::now();
            let synced = timeout_at(until, self.sync(renewal.sync()?)).await;
            let late = |_| LinkError::TimedOut { waiting_for: "answer to sync", waited };
            synced.map_err(late)?.map_err(LinkError::Sync)?;
            let took = from.elapsed();
            tracing::debug!(attempt, ?took, "synced a guest");
            // A fork with a late clock is better than no fork, so no attempt starts that may pass the deadline.
            if took <= SYNC_LAG_MAX || Instant::now() + 2 * took > until {
                break;
            }
            // It has its names, networks and disks now, and keeps them. Only the time is sent again.
            renewal = Renewal::default();
        }
        Ok(())
    }
}

struct Start {
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
    decoder: Decoder,
    waiting_for: &'static str,
}

impl Start {
    async fn greet(&mut self, with_marker: bool) -> Result<Hello, LinkError> {
        if with_marker {
            self.reset().await?;
        }
        self.waiting_for = "hello";
        let hello = Message::Hello(Hello {
            version: VERSION,
            agent: concat!("kiln ", env!("CARGO_PKG_VERSION")).into(),
            capabilities: vec![],
            boot_id: String::new(),
        });
        let mut bytes = Vec::new();
        hello.encode(StreamId::LINK, &mut bytes)?;
        self.write.write_all(&bytes).await?;
        self.hello().await
    }

    /// Sends the marker until it comes back, and skips all bytes before it.
    async fn reset(&mut self) -> Result<(), LinkError> {
        let nonce = fresh_nonce()?;
        let (mut scanner, mut skipped, mut wait) = (ResetScanner::default(), 0, MARKER_REPEAT_FIRST);
        let mut buffer = [0; READ_BYTES];
        let mut send = true;
        loop {
            if send {
                self.write.write_all(&marker(&nonce)).await?;
            }
            let Ok(read) = timeout(wait, self.read.read(&mut buffer)).await else {
                wait = (wait * 2).min(MARKER_REPEAT_MAX);
                send = true;
                continue;
            };
            send = false;
            let count = read?;
            if count == 0 {
                return Err(LinkError::Closed { waiting_for: self.waiting_for });
            }
            let mut input = &buffer[..count];
            while let Some(piece) = scanner.next(&mut input) {
                match piece {
                    Piece::Reset(found) if found == nonce => {
                        self.decoder.push(input);
                        return Ok(());
                    }
                    Piece::Reset(_) => {}
                    Piece::Bytes(bytes) => skipped += bytes.len(),
                }
            }
            if skipped > STALE_BYTES_MAX {
                return Err(LinkError::Garbage(format!("{skipped} bytes without its reset marker")));
            }
        }
    }

    async fn hello(&mut self) -> Result<Hello, LinkError> {
        let mut buffer = [0; READ_BYTES];
        loop {
            if let Some(frame) = self.decoder.next()? {
                return match Message::parse(frame) {
                    Ok(Message::Hello(hello)) => match negotiate(&hello) {
                        Ok(()) => Ok(hello),
                        Err(_) => Err(LinkError::Version { ours: VERSION, theirs: hello.version }),
                    },
                    Ok(Message::Goodbye(Goodbye { reason: GoodbyeReason::Version { ours, .. } })) => {
                        Err(LinkError::Version { ours: VERSION, theirs: ours })
                    }
                    Ok(Message::Goodbye(goodbye)) => Err(LinkError::Refused(goodbye)),
                    Ok(other) => Err(LinkError::Garbage(format!("{:?} before Hello", other.kind()))),
                    Err(error) => Err(LinkError::Garbage(error.to_string())),
                };
            }
            match self.read.read(&mut buffer).await? {
                0 => return Err(LinkError::Closed { waiting_for: self.waiting_for }),
                count => self.decoder.push(&buffer[..count]),
            }
        }
    }
}

fn fresh_nonce() -> io::Result<Nonce> {
    let mut nonce = [0; NONCE_BYTES];
    let filled = rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())?;
    if filled == NONCE_BYTES { Ok(nonce) } else { Err(io::Error::other("short read of randomness")) }
}

#[cfg(test)]
mod tests {
    use kiln_wire::{ErrorCode, Fault, GoodbyeReason};

    use super::super::outbox::Unread;
    use super::*;
    use crate::every_variant::{chains, every_variant};

    #[test]
    fn each_error_of_a_link_has_its_text() {
        let errors = every_variant!(LinkError {
            TimedOut: [LinkError::TimedOut { waiting_for: "hello", waited: Duration::from_secs(60) }],
            Closed: [LinkError::Closed { waiting_for: "hello" }],
            Io: [LinkError::Io(io::ErrorKind::BrokenPipe.into())],
            Frame: [LinkError::Frame(FrameError::TooShort(1))],
            Garbage: [LinkError::Garbage("no frame in 65536 bytes".into())],
            Version: [LinkError::Version { ours: 2, theirs: 1 }],
            Refused: [LinkError::Refused(Goodbye { reason: GoodbyeReason::Unauthorized })],
            NoToken: [LinkError::NoToken],
            Unauthorized: [LinkError::Unauthorized],
            Auth: [LinkError::Auth(StreamError::Ended)],
            Sync: [LinkError::Sync(StreamError::LinkLost("end of file".into()))],
        });
        insta::assert_snapshot!(chains(&errors, |error| vec![error.kind().to_string()]));
    }

    #[test]
    fn each_error_of_a_stream_has_its_text() {
        let errors = every_variant!(StreamError {
            Fault: [StreamError::Fault(Fault::new(ErrorCode::NotFound, "`/x` does not exist"))],
            LinkLost: [StreamError::LinkLost("end of file".into())],
            NoAnswer: [StreamError::NoAnswer { request: "freeze", waited: Duration::from_secs(2) }],
            Ended: [StreamError::Ended],
            TooLarge: [StreamError::TooLarge { bytes: 1 << 30 }],
            Unexpected: [StreamError::unexpected(&"Pong")],
        });
        let unread = every_variant!(Unread { Frames: [Unread::Frames(64)], Pongs: [Unread::Pongs] });
        let texts = [chains(&errors, |_| Vec::new()), chains(&unread, |_| Vec::new())];
        insta::assert_snapshot!(texts.join("\n"));
    }
}

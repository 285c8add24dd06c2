//! Starting a link: reset marker, Hello, Auth, Sync, under one deadline.

use std::io;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use kiln_wire::reset::{NONCE_BYTES, Nonce, Piece, ResetScanner, marker};
use kiln_wire::{
    Auth, Decoder, ErrorCode, FrameError, Goodbye, GoodbyeReason, Hello, Identity, Message, StreamId, Sync, VERSION,
    negotiate,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout, timeout_at};

use super::stream::StreamError;
use super::transport::GuestLink;

use crate::error::ErrorKind;

/// The marker is repeated after this long at first, because a port that the guest has not opened yet loses it …
const MARKER_REPEAT_FIRST: Duration = Duration::from_millis(5);
/// … and after twice as long each time, up to this.
const MARKER_REPEAT_MAX: Duration = Duration::from_millis(20);
/// Garbage that is skipped before the agent's marker: what an older link may have left in the transport.
const STALE_BYTES_MAX: usize = 64 << 20;
const READ_BYTES: usize = 16 << 10;
/// A guest's clock is late by what its time took to get there, which is less than its answer took. On a host that starts
/// many guests at once that can be a quarter of a second, so one that may be later than this is told the time again …
const SYNC_LAG_MAX: Duration = Duration::from_millis(40);
/// … up to so many times in all. Where that does not help either, the host has no time for its guests.
const SYNC_ATTEMPTS_MAX: usize = 5;
/// Randomness that a restored guest gets: twice what its generator holds.
const SEED_BYTES: usize = 64;

/// How to start a link.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// Starts with a reset marker: for transports without connections of their own, like virtio-serial.
    pub marker: bool,
    /// Proves that the host may talk to this agent, where the agent asks for it.
    pub token: Option<String>,
    /// Makes a restored guest its own machine before anything else may use it.
    pub renewal: Option<Renewal>,
    /// For all of it.
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

/// What a restored guest gets with its first link, beside the time and randomness of that moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renewal {
    /// Its names and addresses; kept where absent.
    pub identity: Option<Identity>,
}

impl Renewal {
    /// The request, as of now.
    fn sync(&self) -> io::Result<Sync> {
        let mut seed = [0; SEED_BYTES];
        if rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())? < SEED_BYTES {
            return Err(io::Error::other("short read of randomness"));
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(io::Error::other)?;
        let host_time_ns = u64::try_from(now.as_nanos()).map_err(io::Error::other)?;
        Ok(Sync { host_time_ns, seed: STANDARD.encode(seed), identity: self.identity.clone() })
    }
}

/// A link could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The agent did not get this far in time.
    #[error("no {waiting_for} from the agent within {waited:?}")]
    TimedOut {
        /// The step that did not come.
        waiting_for: &'static str,
        /// The deadline.
        waited: Duration,
    },
    /// The guest's end is closed.
    #[error("the guest closed the link before its {waiting_for}")]
    Closed {
        /// The step that did not come.
        waiting_for: &'static str,
    },
    /// The transport failed.
    #[error("failed to talk to the agent")]
    Io(#[from] io::Error),
    /// Bytes that are no frame.
    #[error("the guest does not speak Kiln's protocol")]
    Frame(#[from] FrameError),
    /// A frame that does not belong there, or none in all that came.
    #[error("the guest does not speak Kiln's protocol: {0}")]
    Garbage(String),
    /// Another version.
    #[error("the agent speaks protocol version {theirs}, this kiln {ours}")]
    Version {
        /// Ours.
        ours: u16,
        /// The agent's.
        theirs: u16,
    },
    /// The agent ended the link.
    #[error("the agent refused the link: {0}")]
    Refused(Goodbye),
    /// The agent asks for a token and there is none.
    #[error("the agent asks for a token")]
    NoToken,
    /// The token is wrong.
    #[error("the agent did not accept the token")]
    Unauthorized,
    /// The link ended before the agent accepted the token.
    #[error("failed to show the agent its token")]
    Auth(#[source] StreamError),
    /// The guest could not be made a machine of its own.
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
    /// See [`LinkError`]; the stream is closed then.
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
    /// Makes a restored guest its own machine, as of now. All of it ends at the deadline.
    ///
    /// # Errors
    /// [`LinkError::Sync`] and [`LinkError::TimedOut`]: the guest must not be used then.
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
            // A clock that is late is better than a fork that is not there, so no attempt is begun that may be too long.
            if took <= SYNC_LAG_MAX || Instant::now() + 2 * took > until {
                break;
            }
            // It has its names, and they stay.
            renewal.identity = None;
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

    /// Sends the marker until it comes back, and skips everything before it.
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

//! Why a pull failed, and whether to try again.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use super::cache::CacheError;
use super::credentials::CredentialsError;
use super::location::LocationError;
use crate::config_check::ConfigError;
use crate::descend::DescendError;
use crate::digest::Digest;
use crate::image::DocumentError;
use crate::manifest::ManifestError;

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// A URL is malformed, or of a kind that is not followed.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// The file with more certificates can't be used.
    #[error("failed to read certificates from `{}`", .path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// The error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The registry does not speak TLS.
    #[error("`{server}` does not speak TLS")]
    NoTls {
        /// The server.
        server: String,
    },
    /// The certificate of the server is not trusted, or TLS failed.
    #[error("failed to trust `{server}`")]
    Tls {
        /// The server.
        server: String,
        /// The error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The server can't be reached, or its answer is not HTTP.
    #[error("failed to get an answer of `{server}`")]
    Connect {
        /// The server.
        server: String,
        /// The error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// There is no server of this name.
    #[error("there is no server `{server}`")]
    NoServer {
        /// The server.
        server: String,
    },
    /// The server sent nothing for some time.
    #[error("`{server}` sent nothing for {waited:?}")]
    Silent {
        /// The server.
        server: String,
        /// How long.
        waited: Duration,
    },
    /// The server sends too slowly.
    #[error("`{server}` sent {bytes} bytes in {window:?}, which is too slow")]
    Slow {
        /// The server.
        server: String,
        /// What arrived.
        bytes: u64,
        /// In which time.
        window: Duration,
    },
    /// The connection ended early.
    #[error("`{server}` ended the connection after {received} bytes of {expected}")]
    Cut {
        /// The server.
        server: String,
        /// What arrived.
        received: u64,
        /// What was expected.
        expected: u64,
    },
    /// A redirect, or the name of the token server, leads to an address that is not permitted.
    #[error("the registry leads to a server that is not asked")]
    Redirect(#[source] Box<dyn Error + Send + Sync>),
    /// A redirect leads from https to http.
    #[error("`{server}` redirects to `{target}` without TLS")]
    Downgrade {
        /// The server.
        server: String,
        /// Where it redirects to.
        target: String,
    },
    /// There are too many redirects, or one without a target.
    #[error("`{server}` redirects more than {hops} times, or to nowhere")]
    Redirects {
        /// The registry.
        server: String,
        /// The bound.
        hops: usize,
    },
    /// The server answered with an error.
    #[error("`{server}` returned status {status}{}", shown(.message))]
    Status {
        /// The server.
        server: String,
        /// The status.
        status: u16,
        /// What the server wrote about it.
        message: String,
    },
    /// The server returned too many requests.
    #[error("`{server}` limits the rate of requests{}{}", wait(.after.as_ref()), shown(.message))]
    RateLimited {
        /// The server.
        server: String,
        /// How long it requires to wait, if it is known.
        after: Option<Duration>,
        /// What the server wrote about it.
        message: String,
    },
    /// The registry has no such image.
    #[error("`{reference}` does not exist")]
    NotFound {
        /// The reference.
        reference: String,
    },
    /// The registry requires other credentials, or any at all.
    #[error("`{registry}` does not permit to pull `{repository}` {}", if *.with_credentials { "with these credentials" } else { "without credentials" })]
    Unauthorized {
        /// The registry.
        registry: String,
        /// The repository.
        repository: String,
        /// Whether credentials were sent.
        with_credentials: bool,
    },
    /// The registry requires authentication of a kind that Kiln does not know.
    #[error("`{server}` requires authentication in a way that Kiln does not know")]
    Challenge {
        /// The registry.
        server: String,
    },
    /// The token server that the registry names is not used.
    #[error("the registry names `{realm}` as its token server, which has no TLS")]
    Realm {
        /// The token server.
        realm: String,
    },
    /// The token server's answer is malformed.
    #[error("the answer of the token server `{server}` has no token")]
    Token {
        /// The token server.
        server: String,
    },
    /// There are no usable credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A blob is encoded for the transport, so its length and ranges are not its own.
    #[error("`{server}` sent `{digest}` with the encoding `{}`", .encoding.escape_debug())]
    Encoding {
        /// The server.
        server: String,
        /// The blob.
        digest: Digest,
        /// The encoding.
        encoding: String,
    },
    /// A blob has another length than its descriptor.
    #[error("`{server}` has {found} bytes or more for `{digest}`, not {expected}")]
    Length {
        /// The server.
        server: String,
        /// The blob.
        digest: Digest,
        /// Its length according to the manifest.
        expected: u64,
        /// What the server has.
        found: u64,
    },
    /// A blob has another digest.
    #[error("what `{server}` sent for `{digest}` has another digest")]
    Digest {
        /// The server.
        server: String,
        /// The blob.
        digest: Digest,
    },
    /// The server sent another part than it was asked for.
    #[error("`{server}` sent the range `{}` of `{digest}`, not the rest from {start}", .range.escape_debug())]
    Range {
        /// The server.
        server: String,
        /// The blob.
        digest: Digest,
        /// What the server sent.
        range: String,
        /// What was asked for.
        start: u64,
    },
    /// The registry does not have a blob of the image.
    #[error("`{server}` does not have `{digest}`, which is part of the image")]
    NoBlob {
        /// The registry.
        server: String,
        /// The blob.
        digest: Digest,
    },
    /// A document is too large.
    #[error("`{server}` sent a document of more than {limit} bytes")]
    DocumentTooLarge {
        /// The server.
        server: String,
        /// The bound.
        limit: usize,
    },
    /// The image is too large.
    #[error("the layers of the image have {bytes} bytes, over {limit}")]
    TooLarge {
        /// Their size.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// A document is not what its digest promises.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A manifest is refused.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// No manifest was reached.
    #[error(transparent)]
    Descend(#[from] DescendError),
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The cache can't be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// It took too long.
    #[error("the pull did not end within {limit:?}")]
    Deadline {
        /// The bound.
        limit: Duration,
    },
    /// The caller ended it.
    #[error("the pull was cancelled")]
    Cancelled,
}

impl PullError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoTls { .. } => Some("`--plain-http` permits a registry without TLS; its answers can be forged"),
            Self::Tls { .. } => Some("`--ca-file FILE` trusts more certificates"),
            Self::Unauthorized { with_credentials: false, .. } => {
                Some("the image may not exist, or be private: log in with `docker login` or `skopeo login`")
            }
            Self::Unauthorized { .. } => Some("the image may not exist, or these credentials may not pull it"),
            Self::RateLimited { .. } => Some("log in, use a mirror, or try again later"),
            Self::NoBlob { .. } => Some("layers that a vendor does not permit to distribute must be added by hand"),
            Self::Manifest(error) | Self::Descend(DescendError::Manifest(error)) => error.hint(),
            _ => None,
        }
    }

    /// Whether the same request may succeed later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 425 | 500 | 502..=599),
            Self::Connect { .. } | Self::Silent { .. } | Self::Slow { .. } | Self::Cut { .. } => true,
            Self::RateLimited { .. } => true,
            _ => false,
        }
    }
}

fn shown(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {}", message.escape_debug()) }
}

fn wait(after: Option<&Duration>) -> String {
    after.map(|after| format!(" for {after:?}")).unwrap_or_default()
}

//! Images in registries: the pull of one, over HTTP, from a server that may lie.
//!
//! ```text
//!   pull ──▶ Client: manifest, config ─▶ Http ─▶ a server, or after redirects another one
//!     │         │ 401: challenge ─▶ Tokens ─▶ the server's token server, with Credentials
//!     └─▶ download, several at once ─▶ BlobCache: partial file, resumed; renamed once its digest is right
//! ```
//! Credentials and tokens go to no other server than the registry, and the token server that the registry names in its
//! challenge. A redirect leads only to addresses that are as public as the registry's own. All waits have a deadline,
//! all answers a bound.

mod address;
mod cache;
mod challenge;
mod client;
mod credential_helper;
mod credentials;
mod download;
mod error;
mod http;
mod location;
mod options;
mod pull;
mod retry;
mod stop;
mod token;

pub use cache::{BlobCache, CacheError};
pub use credentials::{Credentials, CredentialsError, docker_config_path};
pub use error::PullError;
pub use location::{Location, LocationError};
pub use options::{MinimumRate, PullOptions, RetryOptions};
pub use pull::{LayerProgress, Progress, Pulled, pull, resolve};

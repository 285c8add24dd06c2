//! What a caller decides about a pull.

use std::path::PathBuf;
use std::time::Duration;

use super::credentials::Credentials;
use crate::platform::CpuLevel;

/// Layers that are downloaded at once, as docker does.
const PARALLEL_LAYERS: usize = 3;
/// A whole pull.
const PULL_DEADLINE: Duration = Duration::from_secs(4 * 3600);
/// All layers of an image, as they are stored.
const PACKED_BYTES_MAX: u64 = 64 << 30;
/// Attempts for one request or blob, if none of them made progress.
const ATTEMPTS_MAX: u32 = 6;
/// Wait after the first failed attempt. It doubles after each of them.
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// The longest wait that a server may require; after it the user decides.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);
/// How long a server may send nothing.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// In this time the bytes of [`RATE_BYTES`] must arrive.
const RATE_WINDOW: Duration = Duration::from_secs(60);
/// A modem of the last century is faster.
const RATE_BYTES: u64 = 64 << 10;

/// How to pull.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// The CPU of the VMs.
    pub cpu: CpuLevel,
    /// Whether a registry that is not on this machine may be asked without TLS, if it does not speak TLS.
    pub plain_http: bool,
    /// Certificates in PEM that are trusted in addition to those of the system.
    pub ca_file: Option<PathBuf>,
    /// Where user names and passwords come from.
    pub credentials: Credentials,
    /// Layers that are downloaded at once, at least one.
    pub parallel_layers: usize,
    /// How long the whole pull may take.
    pub deadline: Duration,
    /// How large all layers together may be, as they are stored.
    pub packed_bytes_max: u64,
    /// When to try again.
    pub retry: RetryOptions,
    /// When a download is too slow.
    pub rate: MinimumRate,
}

/// When to try again after a fault that may pass.
#[derive(Debug, Clone)]
pub struct RetryOptions {
    /// Attempts without progress.
    pub attempts: u32,
    /// Wait after the first one. It doubles after each, and varies by half.
    pub first_delay: Duration,
    /// The longest wait that a server may require.
    pub retry_after_max: Duration,
}

/// When a download is too slow.
#[derive(Debug, Clone)]
pub struct MinimumRate {
    /// In each window ..
    pub window: Duration,
    /// .. so many bytes must arrive.
    pub bytes: u64,
    /// How long the server may send nothing at all.
    pub silence_max: Duration,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            cpu: CpuLevel::V1,
            plain_http: false,
            ca_file: None,
            credentials: Credentials::None,
            parallel_layers: PARALLEL_LAYERS,
            deadline: PULL_DEADLINE,
            packed_bytes_max: PACKED_BYTES_MAX,
            retry: RetryOptions::default(),
            rate: MinimumRate::default(),
        }
    }
}

impl Default for RetryOptions {
    fn default() -> Self {
        Self { attempts: ATTEMPTS_MAX, first_delay: FIRST_DELAY, retry_after_max: RETRY_AFTER_MAX }
    }
}

impl Default for MinimumRate {
    fn default() -> Self {
        Self { window: RATE_WINDOW, bytes: RATE_BYTES, silence_max: SILENCE_MAX }
    }
}

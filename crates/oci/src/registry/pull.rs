//! Pulls an image: its documents one after another, then its layers, several at once.
//!
//! ```text
//!   caller's thread: watches, reports progress, ends the pull      driver: documents      workers: layers
//! ```
//! All requests are made by other threads than the caller's. So the caller can end the pull at any time, although a
//! request blocks: that closes its connection.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::cache::BlobCache;
use super::client::{Client, server_of};
use super::download::download;
use super::error::PullError;
use super::http::Http;
use super::options::PullOptions;
use super::stop::{Reason, Stop};
use crate::config_check::ConfigDocument;
use crate::descend::{DescendError, descend};
use crate::digest::Digest;
use crate::image::{Blob, DocumentError, Image, Origin, blob_path, check_document};
use crate::json::DOCUMENT_BYTES_MAX;
use crate::layer::Expected;
use crate::manifest::{Descriptor, Document, Manifest};
use crate::reference::Reference;

/// How often the caller is told of progress, and can end the pull.
const TICK: Duration = Duration::from_millis(100);

/// An image that was pulled.
#[derive(Debug)]
pub struct Pulled {
    /// Under what name.
    pub reference: Reference,
    /// Digest of what the name leads to: an index, or the manifest itself.
    pub digest: Digest,
    /// The image. Its layers are in the cache.
    pub image: Image,
}

/// How far a pull is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The layers, once they are known; each blob once.
    pub layers: Vec<LayerProgress>,
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// Its digest.
    pub digest: Digest,
    /// Bytes that are on disk.
    pub bytes: u64,
    /// All of its bytes.
    pub total: u64,
}

impl Progress {
    /// Bytes of all layers that are on disk.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes).sum()
    }

    /// Bytes of all layers.
    pub fn total(&self) -> u64 {
        self.layers.iter().map(|layer| layer.total).sum()
    }
}

/// A layer that workers download.
#[derive(Debug)]
struct Job {
    blob: Descriptor,
    done: AtomicU64,
}

/// Pulls an image into a cache. `watch` is called several times a second; [`ControlFlow::Break`] ends the pull. What was
/// downloaded so far stays in the cache.
///
/// # Errors
/// See [`PullError`].
pub fn pull(
    reference: &Reference,
    cache: &BlobCache,
    options: &PullOptions,
    watch: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Pulled, PullError> {
    let jobs = Mutex::default();
    supervise(reference, options, &jobs, watch, |client, http, stop| {
        drive(client, http, stop, cache, options, reference, &jobs)
    })
}

/// The digest of what a reference names now. This does not count as a pull where those are counted.
///
/// # Errors
/// See [`PullError`].
pub fn resolve(reference: &Reference, options: &PullOptions) -> Result<Digest, PullError> {
    let jobs = Mutex::default();
    let mut watch = |_: &Progress| ControlFlow::Continue(());
    supervise(reference, options, &jobs, &mut watch, |client, _, _| match client.digest(&reference.object())? {
        Some(digest) => Ok(digest),
        None => Ok(Digest::sha256(&client.manifest(&reference.object())?.0)),
    })
}

/// Runs the work in a thread of its own and watches it.
fn supervise<T: Send>(
    reference: &Reference,
    options: &PullOptions,
    jobs: &Mutex<Arc<Vec<Job>>>,
    watch: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    work: impl FnOnce(&Client<'_>, &Http, &Stop) -> Result<T, PullError> + Send,
) -> Result<T, PullError> {
    let stop = Arc::new(Stop::default());
    let http = Arc::new(Http::new(&server_of(reference)?, options, Arc::clone(&stop))?);
    let end = Instant::now() + options.deadline;
    let outcome = std::thread::scope(|scope| {
        let (finished, outcome) = channel();
        scope.spawn(|| {
            let finished = finished;
            let client = Client::new(reference, Arc::clone(&http), options, Arc::clone(&stop));
            let outcome = client.and_then(|client| work(&client, &http, &stop));
            // The receiver lives until this arrives, or this thread panicked.
            let _ = finished.send(outcome);
        });
        loop {
            match outcome.recv_timeout(TICK) {
                Ok(outcome) => break outcome,
                // The scope passes the panic on.
                Err(RecvTimeoutError::Disconnected) => break Err(PullError::Cancelled),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if stop.reason().is_none() {
                let reason = if watch(&progress(jobs)).is_break() {
                    Some(Reason::Cancelled)
                } else {
                    (Instant::now() > end).then_some(Reason::Deadline)
                };
                if let Some(reason) = reason {
                    stop.stop(reason);
                    http.shutdown();
                }
            }
        }
    });
    // An end from outside looks like a broken connection from inside.
    match (outcome, stop.reason()) {
        (Err(_), Some(Reason::Cancelled)) => Err(PullError::Cancelled),
        (Err(_), Some(Reason::Deadline)) => Err(PullError::Deadline { limit: options.deadline }),
        (outcome, _) => {
            // The last state, so that a display ends at the whole.
            let _ = watch(&progress(jobs));
            outcome
        }
    }
}

fn progress(jobs: &Mutex<Arc<Vec<Job>>>) -> Progress {
    let jobs = Arc::clone(&jobs.lock().unwrap_or_else(PoisonError::into_inner));
    let layer = |job: &Job| LayerProgress {
        digest: job.blob.digest.clone(),
        bytes: job.done.load(Ordering::Relaxed),
        total: job.blob.size,
    };
    Progress { layers: jobs.iter().map(layer).collect() }
}

fn drive(
    client: &Client<'_>,
    http: &Http,
    stop: &Stop,
    cache: &BlobCache,
    options: &PullOptions,
    reference: &Reference,
    jobs: &Mutex<Arc<Vec<Job>>>,
) -> Result<Pulled, PullError> {
    let (digest, manifest_digest, manifest) = manifest(client, cache, options, reference)?;
    let total = manifest.layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
    if total > options.packed_bytes_max {
        return Err(PullError::TooLarge { bytes: total, limit: options.packed_bytes_max });
    }
    let config = document(cache, &manifest.config, || client.document(&manifest.config.digest))?;
    let config = ConfigDocument::parse(&config)?;
    let blob = |layer: &Descriptor| {
        let blob = Blob::File { folder: Arc::clone(cache.folder()), path: blob_path(&layer.digest) };
        (Expected::from(layer), blob)
    };
    // This compares the configuration with the layers and the CPU, so it comes before the download.
    let mut image = Image::new(Origin::Registry, config, manifest.layers.iter().map(blob).collect(), options.cpu)?;
    image.names = vec![reference.to_string()];
    image.manifest_digest = Some(manifest_digest);
    image.config_digest = Some(manifest.config.digest);

    let mut seen = BTreeSet::new();
    let first = |layer: &&Descriptor| seen.insert(layer.digest.clone());
    let list = manifest.layers.iter().filter(first).cloned().map(|blob| Job { blob, done: AtomicU64::new(0) });
    let list: Arc<Vec<Job>> = Arc::new(list.collect());
    *jobs.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&list);
    download_all(client, http, stop, cache, options, &list)?;
    Ok(Pulled { reference: reference.clone(), digest, image })
}

/// The digest of what the reference names, and the manifest that it leads to.
fn manifest(
    client: &Client<'_>,
    cache: &BlobCache,
    options: &PullOptions,
    reference: &Reference,
) -> Result<(Digest, Digest, Manifest), PullError> {
    // A request for the digest alone does not count as a pull, and the documents may be in the cache.
    let known = match reference.digest() {
        Some(digest) => Some(digest.clone()),
        None => client.digest(&reference.object())?,
    };
    let cached = known.as_ref().and_then(|digest| Some((digest.clone(), cache.document(digest, DOCUMENT_BYTES_MAX)?)));
    let (digest, bytes, served) = if let Some((digest, bytes)) = cached {
        (digest, bytes, None)
    } else {
        let object = known.as_ref().map_or_else(|| reference.object(), Digest::to_string);
        let (bytes, served) = client.manifest(&object)?;
        let digest = known.unwrap_or_else(|| Digest::sha256(&bytes));
        if !digest.matches(&bytes) {
            return Err(DocumentError::Digest { digest }.into());
        }
        (digest, bytes, served)
    };
    let first = Document::parse(&bytes, served.as_deref())?;
    cache.keep_document(&digest, &bytes)?;
    match first {
        Document::Manifest(manifest) => Ok((digest.clone(), digest, manifest)),
        Document::Index(index) => {
            let fetch = |descriptor: &Descriptor| -> Result<Vec<u8>, PullError> {
                document(cache, descriptor, || {
                    let (bytes, served) = client.manifest(&descriptor.digest.to_string())?;
                    // Also what is served must fit the document.
                    Document::parse(&bytes, served.as_deref()).map_err(DescendError::from)?;
                    Ok(bytes)
                })
            };
            let (inner, manifest) = descend(&index, options.cpu, fetch)?;
            Ok((digest, inner, manifest))
        }
    }
}

/// A document from the cache or the registry, compared with its descriptor.
fn document(
    cache: &BlobCache,
    descriptor: &Descriptor,
    fetch: impl FnOnce() -> Result<Vec<u8>, PullError>,
) -> Result<Vec<u8>, PullError> {
    if let Some(bytes) = cache.document(&descriptor.digest, DOCUMENT_BYTES_MAX) {
        return Ok(check_document(descriptor, bytes)?);
    }
    let bytes = check_document(descriptor, fetch()?)?;
    cache.keep_document(&descriptor.digest, &bytes)?;
    Ok(bytes)
}

fn download_all(
    client: &Client<'_>,
    http: &Http,
    stop: &Stop,
    cache: &BlobCache,
    options: &PullOptions,
    jobs: &[Job],
) -> Result<(), PullError> {
    let (next, first_error) = (AtomicUsize::new(0), Mutex::new(None));
    let work = || {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stop.reason().is_some() {
                return;
            }
            if let Err(error) = download(client, cache, &job.blob, &job.done, stop) {
                first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                // The others end too; what they have is continued by the next pull.
                stop.stop(Reason::Failed);
                http.shutdown();
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.parallel_layers.clamp(1, jobs.len().max(1)) {
            scope.spawn(work);
        }
    });
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None if stop.reason().is_some() => Err(PullError::Cancelled),
        None => Ok(()),
    }
}

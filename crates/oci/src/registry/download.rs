//! Downloads one blob into the cache: continues where an earlier attempt ended, and compares every byte.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use super::cache::{BlobCache, CacheError, Partial, hash};
use super::client::Client;
use super::error::PullError;
use super::http::Reply;
use super::stop::Stop;
use crate::digest::{Digest, Hasher};
use crate::manifest::Descriptor;

const BUFFER_BYTES: usize = 128 << 10;
/// An attempt that got so much counts as progress, so that attempts without progress are bounded, and the number of all
/// attempts as well.
const PROGRESS_BYTES: u64 = 4 << 20;

/// What is on disk of a blob.
struct State<'a> {
    file: &'a File,
    hasher: Hasher,
    bytes: u64,
    /// Whether a part of it was there before this attempt.
    is_resumed: bool,
}

/// Downloads a blob unless it is in the cache. `done` has how many bytes there are.
pub(crate) fn download(
    client: &Client<'_>,
    cache: &BlobCache,
    blob: &Descriptor,
    done: &AtomicU64,
    stop: &Stop,
) -> Result<(), PullError> {
    if cache.has(&blob.digest, blob.size)? {
        done.store(blob.size, Ordering::Relaxed);
        return Ok(());
    }
    let Some(partial) = cache.partial(&blob.digest, stop)? else { return Err(PullError::Cancelled) };
    // The pull that had the lock before may have finished the blob.
    if cache.has(&blob.digest, blob.size)? {
        done.store(blob.size, Ordering::Relaxed);
        return Ok(partial.remove()?);
    }
    let outcome = fill(client, &partial, blob, done);
    match &outcome {
        Ok(()) => return Ok(cache.finish(&partial, &blob.digest)?),
        // What is wrong for good must not be continued.
        Err(PullError::Digest { .. } | PullError::Length { .. }) => partial.remove()?,
        Err(_) => {}
    }
    outcome
}

fn fill(client: &Client<'_>, partial: &Partial, blob: &Descriptor, done: &AtomicU64) -> Result<(), PullError> {
    let written = |source| PullError::Cache(CacheError::writing(partial.path(), source));
    let mut state =
        State { file: &partial.file, hasher: Hasher::new(blob.digest.algorithm()), bytes: 0, is_resumed: false };
    let length = partial.file.metadata().map_err(written)?.len();
    if length > blob.size {
        state.restart(&blob.digest).map_err(written)?;
    } else if length > 0 {
        state.bytes = hash(&partial.file, &mut state.hasher).map_err(written)?;
        state.is_resumed = true;
    }
    let (mut retry, mut is_restarted) = (client.retry(), false);
    loop {
        let before = state.bytes;
        done.store(before, Ordering::Relaxed);
        let attempt = if state.bytes < blob.size || blob.size == 0 {
            client.blob(&blob.digest, state.bytes).and_then(|reply| state.receive(reply, blob, partial, done))
        } else {
            Ok(())
        };
        match attempt {
            Ok(()) if state.hasher.clone().finish() == blob.digest => return Ok(()),
            // A part that was there before may be damaged, so a new download decides. It does so only once: a server could
            // send wrong parts, with progress in each of them, without an end.
            Ok(()) if state.is_resumed && !is_restarted => {
                is_restarted = true;
                state.restart(&blob.digest).map_err(written)?;
            }
            Ok(()) => {
                return Err(PullError::Digest { server: client.server(), digest: blob.digest.clone() });
            }
            Err(error) => {
                if state.bytes >= before + PROGRESS_BYTES {
                    retry.progress();
                }
                state.is_resumed |= state.bytes > 0;
                retry.after(error)?;
            }
        }
    }
}

impl State<'_> {
    /// Begins at the first byte.
    fn restart(&mut self, digest: &Digest) -> std::io::Result<()> {
        self.file.set_len(0)?;
        let mut file = self.file;
        file.seek(SeekFrom::Start(0))?;
        (self.hasher, self.bytes, self.is_resumed) = (Hasher::new(digest.algorithm()), 0, false);
        Ok(())
    }

    /// Takes the rest of the blob, or as much as arrives.
    fn receive(
        &mut self,
        reply: Reply,
        blob: &Descriptor,
        partial: &Partial,
        done: &AtomicU64,
    ) -> Result<(), PullError> {
        let written = |source| PullError::Cache(CacheError::writing(partial.path(), source));
        match reply.status {
            206 => check_range(&reply, blob, self.bytes)?,
            // The server has no such rest. A whole blob would be compared; this one is begun again.
            416 => {
                self.restart(&blob.digest).map_err(written)?;
                let (server, expected) = (reply.url.server(), blob.size);
                return Err(PullError::Cut { server, received: 0, expected });
            }
            // The server does not know ranges, or ignores them.
            _ if self.bytes > 0 => self.restart(&blob.digest).map_err(written)?,
            _ => {}
        }
        let server = reply.url.server();
        let wrong = |found| PullError::Length {
            server: server.clone(),
            digest: blob.digest.clone(),
            expected: blob.size,
            found,
        };
        let length = reply.header("content-length").and_then(|length| length.parse::<u64>().ok());
        if let Some(length) = length.filter(|length| self.bytes.checked_add(*length) != Some(blob.size)) {
            return Err(wrong(self.bytes.saturating_add(length)));
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut body = reply.body;
        let mut file = self.file;
        loop {
            let count = body.next(&mut buffer)?;
            if count == 0 {
                break;
            }
            if self.bytes + count as u64 > blob.size {
                // How much more there is depends on what arrived at once, so it is not reported.
                return Err(wrong(blob.size + 1));
            }
            file.write_all(&buffer[..count]).map_err(written)?;
            self.hasher.update(&buffer[..count]);
            self.bytes += count as u64;
            done.store(self.bytes, Ordering::Relaxed);
        }
        if self.bytes < blob.size {
            return Err(PullError::Cut { server, received: self.bytes, expected: blob.size });
        }
        Ok(())
    }
}

/// A part must be exactly the rest: `bytes START-END/SIZE`.
fn check_range(reply: &Reply, blob: &Descriptor, start: u64) -> Result<(), PullError> {
    let range = reply.header("content-range").unwrap_or_default();
    let right = format!("bytes {start}-{}/", blob.size - 1);
    let is_right = range.strip_prefix(&right).is_some_and(|size| size == "*" || size.parse() == Ok(blob.size));
    if is_right {
        return Ok(());
    }
    let (server, range) = (reply.url.server(), range.chars().take(64).collect());
    Err(PullError::Range { server, digest: blob.digest.clone(), range, start })
}

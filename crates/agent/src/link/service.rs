//! The interface between a link and the services above it. A link handles streams and frames, and services handle
//! requests.

use std::pin::Pin;

use kiln_wire::Message;

use super::dispatch::Stream;

/// The work of one stream. It ends when the stream has ended.
pub type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Serves the requests of hosts.
pub trait Service {
    /// Serves a stream that a host has opened with `request`. Work that must be done before the link's next frame is
    /// handled is done in this call. The rest is done in the task that it returns.
    fn open(&self, stream: Stream, request: Message<'_>) -> Option<Task>;
}

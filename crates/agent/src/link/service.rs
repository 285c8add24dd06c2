//! What a link expects of the code above it. The link knows streams and frames; what a request means is not its matter.

use std::pin::Pin;

use kiln_wire::Message;

use super::dispatch::Stream;

/// The work of one stream. It ends when the stream has ended.
pub type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Answers the requests of hosts.
pub trait Service {
    /// Serves a stream that a host has opened with `request`. What has to happen before the next frame of the link is
    /// looked at happens in this call; the rest is in the task that it returns.
    fn open(&self, stream: Stream, request: Message<'_>) -> Option<Task>;
}

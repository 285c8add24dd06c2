//! The links to hosts, one at a time on one transport.
//!
//! ```text
//!           ┌──────────── marker with a new nonce (virtio-serial) ───────────┐
//!           ▼                                                                │
//!   NoLink ───▶ Hello ───▶ Auth (if a token is set) ───▶ Open ─────▶ NoLink (end, protocol error, refusal)
//!                └──────────────── without a token ──────▲
//! ```
//!
//! The reader decodes and dispatches frames and never waits for a stream. A writer task drains the [`Outbox`].
//!
//! # Where a link starts
//! A virtio-serial port has no connections: it is one byte stream for the whole life of the VM. When a host starts a
//! link, the stream may still contain half a frame of the host before, and the agent may be in the middle of writing
//! one. So the host sends a reset marker with a random nonce (see [`kiln_wire::reset`]), and repeats it until the agent
//! has sent it back.
//!
//! - The reader searches for markers in all input, also inside of frames. A marker with a new nonce ends everything of
//!   the old link: the decoder drops its partial frame, streams end, queued frames are dropped, and the writer is
//!   aborted. The agent then sends the marker back as the first bytes of the new link.
//! - An aborted writer may leave half a frame in the stream. This is harmless: the host ignores all bytes before the
//!   marker with its own nonce, and no bytes of an older link contain that nonce.
//! - A marker with the nonce of the current link is a repetition, which the host sent before it received the reply. It
//!   is ignored; otherwise it would end the link that it started.
//! - Without a link, bytes that are not a marker are ignored, so stale frames start nothing.
//!
//! # Flow control
//! Memory is bounded for each direction of each stream, and a stream that is stuck stops no other stream.
//!
//! - From the host: a stream's [`Inbox`] holds at most the stream's window, because data beyond the window ends the
//!   stream with a fault. Credit is sent when the stream's task takes data, so a command that doesn't read its input
//!   fills its own window only. The reader never blocks on a full inbox.
//! - To the host: a task waits for its stream's window and for room in the [`Outbox`] before it reads more output. A
//!   host that doesn't read one stream gives no credit for it, and that task waits alone.
//! - Replies and credits have no window: they must be sent even if every window is spent, and credit that waited for
//!   credit would be a deadlock. They are bounded by their cause instead. Each is the consequence of a frame from the
//!   host, and the reader takes no further frame while the replies that are queued exceed their bound. A host that
//!   sends requests and reads no replies so stops only itself.

mod dispatch;
mod inbox;
mod links;
mod outbox;
mod server;
mod service;

pub use dispatch::Stream;
pub use inbox::{Control, End, Inbox, cancelled};
pub use links::Links;
pub use outbox::{CHUNK_BYTES, FRAME_BYTES, Gone, Outbox, Outlet, frame_buffer};
pub use server::serve;
pub use service::{Service, Task};

//! One link to the host after the other on one transport.
//!
//! ```text
//!           ┌──────────── marker with a new nonce (virtio-serial) ───────────┐
//!           ▼                                                                │
//!   Silent ───▶ Hello ───▶ Auth (where a token is set) ───▶ Open ─────▶ Silent (end, protocol error, refusal)
//!                └──────────────── without a token ──────────▲
//! ```
//!
//! The reader decodes and dispatches and never waits for a stream; a writer task drains the [`Outbox`].

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

//! Sessions: commands that outlive the stream that started them, with their last output.
//!
//! ```text
//!   command ─▶ Ring ─┬▶ view (first stream)      each with its own offset; one that is slow is told what it missed
//!      ▲             ├▶ view (attached)
//!      └── Inbox ◀───┴─ the one that may write
//! ```
//!
//! A session's own task watches its command and never waits for a viewer.

mod registry;
mod ring;
mod view;

pub use registry::{Session, Sessions};
pub use ring::Ring;
pub use view::{attach, manage, start};

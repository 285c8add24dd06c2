//! Sessions: commands that outlive the stream that started them, with their last output.
//!
//! ```text
//!   command ─▶ Ring ─┬▶ view (first stream)      each has its own offset; a slow one gets the range that it missed
//!      ▲             ├▶ view (attached)
//!      └── Inbox ◀───┴─ the view that may write
//! ```
//!
//! A session's own task supervises its command and never waits for a viewer.

mod registry;
mod ring;
mod view;

pub use registry::{Session, Sessions};
pub use ring::Ring;
pub use view::{attach, manage, start};

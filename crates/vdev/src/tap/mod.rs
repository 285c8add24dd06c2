//! A decoding man in the middle, and what can be done with what it saw.
//!
//! ```text
//!   frontend ─▶ tap ─▶ backend          show: every field by name, latencies, what breaks the specification
//!                │
//!                └─▶ recording ─▶       replay: the frontend's part again, to another backend; are the replies the same?
//! ```

mod compare;
mod decode;
mod descriptor;
mod entry;
mod pipe;
mod recorder;
mod recording;
mod relay;
mod remake;
mod replay;
mod story;
mod witness;

pub use decode::Shown;
pub use descriptor::Descriptor;
pub use entry::{Side, TapChannel};
pub use recording::{Recording, RecordingError};
pub use relay::{TapEnd, TapError, TapOptions, tap};
pub use replay::{Difference, Replay, ReplayOptions, ReplayReport};
pub use story::{Story, Summary, Told, ToldWhat};

#[cfg(feature = "testing")]
pub use entry::{Ending, Entry, Recorded, TapEvent};

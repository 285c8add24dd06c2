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

pub use decode::{Decoded, Known, Shown, ShownFields, decode};
pub use descriptor::Descriptor;
pub use entry::{Ending, Entry, Opening, RECORDING_VERSION, Recorded, Side, TapChannel, TapEvent};
pub use recorder::{Recorder, RecorderEnd, RecorderError};
pub use recording::{LINE_BYTES_MAX, Recording, RecordingError};
pub use relay::{TapEnd, TapError, TapOptions, tap};
pub use replay::{Difference, Replay, ReplayOptions, ReplayReport};
pub use story::{RequestSummary, Story, Summary, Told, ToldWhat, ViolationSummary};
pub use witness::{Answered, Violation, Witness};

//! Requests of a block device (VIRTIO 1.2, section 5.2), from the driver's side.
//!
//! ```text
//!   BlkDriver::connect ─▶ queues_mut() ─▶ BlkQueue: submit … submit ─▶ publish ─▶ next_done ─▶ Done ─▶ data, release
//!                └─ read, write, flush, … one after the other, with recovery when the backend goes
//! ```
//! A queue has as many slots as requests may be under way, each with memory for header, status and data that is shared
//! from the start: a request allocates nothing. Statuses and lengths that can't be true are errors.

mod driver;
mod options;
mod patience;
mod queue;
mod request;

pub use options::BlkOptions;

for_tests! {
    pub use driver::BlkDriver;
    pub use queue::{BlkQueue, Slot};
    pub use request::{BlkRequest, BlkStatus, Done};
}

//! Guest memory that two processes share. Every access is checked against its region, and a peer that truncates its
//! file later does not end the process: see `fault.rs`.
//!
//! ```text
//!   frontend: Region::create ──▶ memfd ──▶ SET_MEM_TABLE ──▶ backend: Region::map
//!                    guest address ─┐                        ┌─ user address (rings)
//!                                   └──▶ Span ──▶ slice ◀────┘
//! ```

mod area;
mod dirty_log;
mod error;
mod fault;
pub(crate) mod file_io;
mod guest_memory;
mod region;

pub use region::SharedFile;

pub(crate) use error::MemoryError;
pub(crate) use vm_memory::{ByteValued, VolatileSlice};

for_tests! {
    pub use area::Area;
    pub use dirty_log::DirtyLog;
    pub use guest_memory::{GuestMemory, Span};
    pub use region::Region;
}

//! Guest memory that two processes share. Every access is checked against its region, and a peer that truncates its
//! file later does not end the process: see [`fault`].
//!
//! ```text
//!   frontend: Region::create ──▶ memfd ──▶ SET_MEM_TABLE ──▶ backend: Region::map
//!                    guest address ─┐                        ┌─ user address (rings)
//!                                   └──▶ Span ──▶ slice ◀────┘
//! ```

mod area;
mod dirty_log;
mod error;
pub mod fault;
pub mod file_io;
mod guest_memory;
mod region;

pub use area::Area;
pub use dirty_log::{DIRTY_PAGE_BYTES, DirtyLog};
pub use error::MemoryError;
pub use guest_memory::{GuestMemory, Span};
pub use region::{Region, SharedFile};
pub use vm_memory::{ByteValued, VolatileSlice};

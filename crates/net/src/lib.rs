//! Networks of VMs: what a VM may reach, the rules that hold it to that, and the devices that connect it.
//!
//! ```text
//!   flags ──▶ policy ──▶ names      the resolver of guests: which names have an answer, which addresses it opens
//!               │  │
//!               │  └───▶ user       a network without root: each connection of a guest is judged, then made by us
//!               └──────▶ explain    the rule that decides, in words
//! ```
//!
//! [`policy`] decides and does no I/O. The other modules ask it.

pub mod explain;
pub mod gate;
pub mod inner;
pub mod names;
pub mod policy;
pub mod slots;
pub mod user;

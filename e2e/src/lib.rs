//! What the end-to-end tests share: they start the real agent, send it requests, inspect it and leave nothing behind.
//!
//! ```text
//!   Agent ── --socket-fd / --listen ──▶ kiln-agent
//!     ├─ link()     kiln_engine's GuestLink: what the product does
//!     └─ connect()  RawLink: any bytes at all, for what a broken or hostile host does
//! ```

pub mod guest;
pub mod image;
pub mod registry;

mod agent;
mod backend;
mod home;
mod internet;
mod kiln;
mod raw;
mod wait;

pub use agent::{Agent, agent_binary};
pub use backend::{Backend, guest_tool};
pub use home::TestHome;
pub use internet::Internet;
pub use kiln::{KILN_DEADLINE, Kiln, Outcome, Running, is_running, kiln_binary, vm_dir};
pub use raw::{RawFrame, RawLink};
pub use wait::{WAIT_DEADLINE, bounded, until, until_booted, until_within};

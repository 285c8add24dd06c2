//! A backend to test frontends with: right by default, wrong on purpose if a script requires it, and watching what the
//! frontend does.
//!
//! ```text
//!    Device ──▶ Server ──▶ frontend under test (QEMU, a VMM)
//!                 │  ▲
//!      SessionEvent  Faults
//!                 ▼  │
//!              Watch Script (misbehave.toml)
//!                 │
//!                 └──▶ check::Report: one case for each rule that frontends are to follow
//! ```
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
//! use kiln_vdev::mock::{Mock, Script, Watch};
//! use kiln_vdev::socket::Event;
//!
//! let stop = Event::new()?;
//! let disk = Arc::new(Blk::open(&BlkOptions::new(Backing::Null { bytes: 1 << 30 }))?);
//! let script: Script = "[[message]]\nname = \"GET_FEATURES\"\nreply.size = 4\n".parse()?;
//! let watch = Arc::new(Watch::new("mock.sock"));
//! Mock::new(disk).script(&script)?.observer(Arc::clone(&watch) as _).serve("mock.sock".as_ref(), &stop)?;
//! print!("{}", watch.report().to_text());
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod hint;
mod misbehave;
mod script;
mod serve;
mod watch;

pub use script::{Script, ScriptError};
pub use serve::{Mock, MockError};
pub use watch::Watch;

//! `kiln verify`: checks Kiln's guarantees about VMs on this host.
//!
//! ```text
//!   fork ─▶ proof: boot, prepare, save, fork ─▶ guest: facts of each fork ─▶ checks: judge the facts ─▶ report
//!             └── kept: the snapshots of the proof, removed at the end
//! ```

mod checks;
mod facts;
mod fork;
mod guest;
mod kept;
mod proof;
mod report;

use crate::args::{VerifyArgs, VerifyCommand};
use crate::failure::Failure;

/// Runs `kiln verify …`.
pub fn run(args: &VerifyArgs) -> Result<u8, Failure> {
    match &args.command {
        VerifyCommand::Fork(args) => fork::run(args),
    }
}

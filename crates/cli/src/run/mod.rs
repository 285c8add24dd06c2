//! `kiln run`: one command in one VM.
//!
//! ```text
//!   check arguments ─▶ fork or boot ─▶ link ─▶ --in ─▶ exec ⇄ stdin, stdout, stderr, signals ─▶ --out ─▶ VM gone ─▶ exit code
//! ```
//!
//! The VM is always killed before kiln exits.

mod command;
mod env_file;
mod growth;
#[cfg(test)]
mod hostile;
mod image_word;
mod job;
mod out;
mod pack;
mod publish;
mod pump;
mod report;
mod request;
mod save;
mod start;
mod step;
mod terminal;
mod transfer;
mod volumes;

pub use job::{create, run};
pub use request::Copy;
pub use transfer::copy_in;

//! `kiln scan`: the detectors of `kiln run` and the lab, on a saved log.

mod findings;
mod log_file;
mod symbols;

pub use findings::run;

//! `kiln scan`: the detectors of `kiln run` and the lab, on a saved log.

mod findings;
mod log_file;

pub use findings::run;

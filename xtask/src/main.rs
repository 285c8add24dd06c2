//! Rules of this repository, as a program.
//!
//! `cargo xtask tidy` prints all that breaks a rule as `file:line: what`, and exits with 1 if it found anything. `cargo
//! xtask coverage LCOV --floor PERCENT CRATE…` sums a coverage report per crate and fails if a named crate is below the
//! floor.

mod coverage;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

const USAGE: &str = "usage: cargo xtask tidy
       cargo xtask coverage LCOV --floor PERCENT CRATE…";

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<ExitCode> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["tidy"] => tidy::run(&root()),
        ["coverage", lcov, "--floor", floor, crates @ ..] if !crates.is_empty() => {
            let floor = floor.parse().with_context(|| format!("`{floor}` is not a percentage"))?;
            coverage::run(&root(), Path::new(lcov), floor, crates)
        }
        _ => bail!("{USAGE}"),
    }
}

/// The repository: the folder above this crate.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace").to_path_buf()
}

//! The `kiln` command: arguments in, exit code out. Each command has a file of its name.

mod agent_binary;
mod args;
mod bench;
mod console;
mod doctor;
mod failure;
mod guest;
mod hints;
mod image;
mod interrupt;
mod output;
mod ready;
mod run;
mod scan;
mod snapshot;
mod verify;
mod vhost;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Args, Command};
use failure::Failure;

fn main() -> ExitCode {
    let args = Args::parse();
    output::start_log(args.verbose);
    let outcome = match args.command {
        Command::Run(args) => run::run(*args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Image(args) => image::run(args),
        Command::Snapshot(args) => snapshot::run(args),
        Command::Scan(args) => scan::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Vhost(args) => vhost::run(*args),
    };
    let code = outcome.unwrap_or_else(|failure: Failure| {
        failure.print();
        failure.code
    });
    // Not a return from main: a thread may still be blocked in a read of stdin, and must not hold up the end.
    std::process::exit(i32::from(code))
}

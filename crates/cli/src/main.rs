//! The `kiln` command: arguments in, exit code out. Each command has a file of its name.

mod agent_binary;
mod args;
mod bench;
mod console;
mod doctor;
mod engine_failure;
mod failure;
mod generated;
mod guest;
mod hints;
mod image;
mod interrupt;
mod kernel;
mod lab;
mod net;
mod output;
mod ready;
mod run;
mod scan;
mod snapshot;
mod snapshot_names;
mod usage;
mod verify;
mod vhost;
mod volume;

use std::ffi::OsString;
use std::process::ExitCode;

use args::{Args, Command};
use failure::{Failure, INTERRUPTED};

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let json = usage::wants_json(&words);
    let outcome = usage::parse(&words, json).map_or_else(|ended| ended, run);
    let code = outcome.unwrap_or_else(|failure| {
        if json {
            failure.print_json();
        } else {
            failure.print();
        }
        failure.code
    });
    // A command that was interrupted has nothing to print, and a program that requested JSON gets an object all the
    // same.
    if json && !output::has_printed_json() {
        Failure::words(code, if code == INTERRUPTED { "interrupted" } else { "ended without a result" }).print_json();
    }
    // Not a return from main: a thread may still be blocked in a read of stdin, and must not hold up the end.
    std::process::exit(i32::from(code))
}

fn run(args: Args) -> Result<u8, Failure> {
    output::start_log(args.verbose);
    // What a VMM of this user must not read: the memory of this process, which has the guests' secrets, and what it was
    // given in its environment. It leaves no core file either.
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "other processes of this user can read this one's memory");
    }
    match args.command {
        Command::Run(args) => run::run(*args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Image(args) => image::run(args),
        Command::Kernel(args) => kernel::run(args),
        Command::Commit(args) => image::commit(&args),
        Command::Net(args) => net::run(args),
        Command::Snapshot(args) => snapshot::run(args),
        Command::Volume(args) => volume::run(args),
        Command::Lab(args) => lab::run(*args),
        Command::Scan(args) => scan::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Vhost(args) => vhost::run(*args),
        Command::Completion(args) => generated::completion(&args),
        Command::Man(args) => generated::man(&args),
        Command::Version(args) => generated::version(&args),
    }
}

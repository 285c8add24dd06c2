//! `kiln vhost`: a frontend for backends, a backend for frontends, and a man in the middle.

mod bench;
mod check;
mod failure;
mod mock;
mod own_disk;
mod probe;
mod replay;
mod show;
mod stop;
mod stress;
mod tap;

use crate::args::vhost::{VhostArgs, VhostCommand};
use crate::failure::Failure;

/// A case failed, an answer differs.
const FAILED: u8 = 100;

/// Runs a command of `kiln vhost`.
pub fn run(args: VhostArgs) -> Result<u8, Failure> {
    match args.command {
        VhostCommand::Probe(args) => probe::run(&args),
        VhostCommand::Check(args) => check::run(&args),
        VhostCommand::Bench(args) => bench::run(&args),
        VhostCommand::Stress(args) => stress::run(&args),
        VhostCommand::Mock(args) => mock::run(&args),
        VhostCommand::Tap(args) => tap::run(args),
        VhostCommand::Show(args) => show::run(&args),
        VhostCommand::Replay(args) => replay::run(&args),
    }
}

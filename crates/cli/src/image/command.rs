//! `kiln image …`: from arguments to the function that does it.

use super::{boot, export, list, remove, root, warm};
use crate::args::image::{ImageArgs, ImageCommand};
use crate::failure::Failure;

/// Runs `kiln image …`.
pub fn run(args: ImageArgs) -> Result<u8, Failure> {
    match args.command {
        ImageCommand::Pull(args) => root::pull(&args),
        ImageCommand::Import(args) => root::import(&args),
        ImageCommand::Build(args) => boot::build(args),
        ImageCommand::Warm(args) => warm::warm(&args),
        ImageCommand::Ls { json } => list::list(json),
        ImageCommand::Inspect { name } => list::inspect(&name),
        ImageCommand::History { name, json } => list::history(&name, json),
        ImageCommand::Export(args) => export::export(&args),
        ImageCommand::Rm { names } => remove::remove(&names),
        ImageCommand::Prune { dry_run, json } => remove::prune(dry_run, json),
        ImageCommand::Verify { name } => list::verify(&name),
    }
}

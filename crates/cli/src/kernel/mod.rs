//! `kiln kernel`. The kernel of a run is chosen in `image/kernel.rs`.

mod add;
mod build;
mod cancel;
mod list;
mod remove;

use crate::args::kernel::{KernelArgs, KernelCommand};
use crate::failure::Failure;

/// Runs `kiln kernel …`.
pub fn run(args: KernelArgs) -> Result<u8, Failure> {
    match args.command {
        KernelCommand::Add(args) => add::add(&args),
        KernelCommand::Build(args) => build::build(&args),
        KernelCommand::Ls { json } => list::list(json),
        KernelCommand::Inspect { kernel } => list::inspect(&kernel),
        KernelCommand::Rm { kernels, force } => remove::remove(&kernels, force),
    }
}

//! `kiln lab`: plans in, runs and their reports out.
//!
//! ```text
//!   PLAN ── plan_file ──▶ Plan ── run ──▶ kiln_lab::run ⇄ host: images, kernels, disks, files of this host
//!                          │               │ events ──▶ view: stderr
//!                          │               └──▶ place: $KILN_HOME/lab/RUN ──▶ report: stdout
//!                          └──▶ check, list            ▲                      └──▶ runs
//!                                     resume ───────────┘
//! ```

mod host;
mod list;
mod place;
mod plan_file;
mod report;
mod run;
mod view;

use crate::args::lab::{LabArgs, LabCommand};
use crate::failure::Failure;
use crate::output::print;

/// Runs `kiln lab …`.
pub fn run(args: LabArgs) -> Result<u8, Failure> {
    match args.command {
        LabCommand::Check(args) => plan_file::check(&args),
        LabCommand::Schema => {
            let schema = serde_json::to_string_pretty(&kiln_lab::plan::schema())?;
            print(schema)?;
            Ok(0)
        }
        LabCommand::List(args) => list::list(&args),
        LabCommand::Run(args) => run::run(&args),
        LabCommand::Resume(args) => run::resume(&args),
        LabCommand::Runs(args) => report::runs(&args),
        LabCommand::Report(args) => report::report(&args),
    }
}

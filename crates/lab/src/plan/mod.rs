//! Plans: a TOML file that says what to test, in which VMs, and how.

mod check;
mod keys;
mod model;
mod problem;
mod read;
mod schema;

#[cfg(test)]
mod tests;

pub use model::{
    Alert, AlertEvent, Day, Detect, Expect, Ignored, Isolate, Plan, Prepare, Quarantine, Retry, ScratchDisk, Suite,
    SuiteKind, VmPlan,
};
pub use problem::Problem;
pub(crate) use read::size_mib;
pub use read::{CELLS_MAX, PLAN_BYTES_MAX};
pub use schema::schema;

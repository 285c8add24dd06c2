//! What this host can do, what is missing, and the command that gets it: `kiln doctor`.

mod inspect;
mod report;

mod confinement;
mod facts;
mod findings;
mod networks;
mod tools;

pub use self::facts::HostFacts;
pub use self::inspect::inspect;
pub use self::report::{FindingStatus, HostFinding, HostReport};

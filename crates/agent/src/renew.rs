//! `Sync`: makes a fork its own machine.

use kiln_wire::{ErrorCode, Fault, Sync};

use crate::agent::Agent;

/// Sets the clock, credits randomness and names the machine.
///
/// # Errors
/// The agent is not PID 1, a value is no such value, or the kernel refuses.
pub fn sync(agent: &Agent, sync: &Sync) -> Result<(), Fault> {
    let _ = (agent, sync);
    Err(Fault::new(ErrorCode::Unsupported, "only PID 1 of a guest can be synced"))
}

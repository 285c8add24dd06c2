//! What keeps a VMM from its host, also one that its guest has taken over.
//!
//! ```text
//!   Policy (what is asked for) ─▶ Border: files, limits, user, cgroup of one VM ─▶ exec::Launch ─▶ the VMM, inside it
//!                                                     └─ a step that the host refuses: the same without its measure ─┐
//!   Confinement: each measure is on, refused by this host, or off ◀────────────────────────────────────────────────────┘
//! ```
//! Each [`Measure`] holds on its own, because hosts differ: a kernel without Landlock, a container without namespaces, a
//! user who is not root. A measure that this host refuses is left out and written down with the reason, in
//! `vms/<id>/confinement.json` and in `kiln doctor`. What every host can do is no measure: a VMM always has a session,
//! an environment and descriptors of its own, gains no privileges, leaves no core file, and is filtered by QEMU's seccomp
//! rules.

mod account;
mod border;
mod broker;
mod cgroup;
mod exec;
mod landlock;
mod measure;
mod policy;

pub(crate) use self::border::{Border, Needs};
pub(crate) use self::broker::Broker;
pub(crate) use self::cgroup::{Cgroup, Entry, sweep as sweep_cgroups};
pub(crate) use self::exec::{Launch, Request};
pub use self::measure::{Confinement, Measure, MeasureState};
pub use self::policy::{POLICY_VARIABLE, Policy, PolicyError};

#[cfg(test)]
#[expect(unsafe_code, reason = "an attacker makes system calls")]
mod tests;

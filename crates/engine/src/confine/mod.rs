//! Confines VMMs, to protect the host even from a VMM that its guest has taken over.
//!
//! ```text
//!   Policy (required measures) ─▶ Border: files, limits, user, cgroup of one VM ─▶ exec::Launch ─▶ the confined VMM
//!                                      ▲               └─ a step that the host refuses: again without its measure ─┐
//!                                      └───────────────────────────────────────────────────────────────────────────┘
//!   Confinement: each measure is on, refused by this host, or off
//! ```
//! Each [`Measure`] works on its own, because hosts differ: a kernel without Landlock, a container without namespaces,
//! a user who is not root. If this host refuses a measure, it is left out, and the reason is recorded in
//! `vms/<id>/confinement.json` and shown by `kiln doctor`. What every host can do is not a measure: a VMM always has
//! its own session, environment and descriptors, gains no privileges, leaves no core file, and is filtered by QEMU's
//! seccomp rules.

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

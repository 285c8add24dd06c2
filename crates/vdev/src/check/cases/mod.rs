//! The rules, a file for each group.

use super::case::Case;

mod channel;
mod config;
mod data;
mod features;
mod handshake;
mod hostile;
mod hostile_rings;
mod inflight;
mod layouts;
mod lifecycle;
mod log;
mod memory;
mod notify;
mod resources;
mod rings;

/// What every file of rules needs.
mod prelude {
    pub(super) use crate::check::Level::{May, Must, Should};
    pub(super) use crate::check::case::{Case, Need};
    pub(super) use crate::check::context::{Context, USUAL, usual_features};
    pub(super) use crate::check::link::Link;
    pub(super) use crate::check::outcome::{Answer, Outcome, Stop};
    pub(super) use crate::protocol::frontend::*;
    pub(super) use crate::protocol::{
        Config, Empty, Flags, MemoryRegion, MemoryTable, Message, ProtocolFeatures, SingleRegion, VringAddress,
        VringFile, VringState,
    };
    pub(super) use crate::virtio::{DeviceKind, feature};
}

const GROUPS: &[&[Case]] = &[
    handshake::CASES,
    features::CASES,
    memory::CASES,
    rings::CASES,
    config::CASES,
    data::CASES,
    layouts::CASES,
    notify::CASES,
    log::CASES,
    inflight::CASES,
    channel::CASES,
    lifecycle::CASES,
    hostile::CASES,
    hostile_rings::CASES,
    resources::CASES,
];

/// Every rule, in the order in which they are run.
pub fn all() -> impl Iterator<Item = &'static Case> {
    GROUPS.iter().copied().flatten()
}
